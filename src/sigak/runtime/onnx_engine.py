"""ONNX files: a PyTorch network written as one, and ONNX Runtime as an engine for them."""

from __future__ import annotations

import io
import json
import os
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sigak.models._detector import Detector
from sigak.models._segmenter import Segmenter
from sigak.structures import Failure, SigakError

__all__ = ["KEY", "OnnxEngine", "convert", "write"]

KEY = "sigak"  # of the header among a file's metadata
_OPSET = 17  # the first with layer normalisation; ONNX Runtime reads it since 1.12
_HALF_FROM = 64  # numbers; smaller tensors save nothing and may be shapes or thresholds
_LARGEST_HALF = 65504.0


def _packages() -> tuple[Any, Any]:
    """The modules onnx and onnxruntime; SigakError where they are not installed."""
    # Its import makes a number for this machine, to be sent with what it notes down.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise SigakError(
            f"ONNX needs the packages onnx and onnxruntime ({error}): pip install 'sigak[export]'"
        ) from error
    onnxruntime.disable_telemetry_events()
    return onnx, onnxruntime


def convert(network: nn.Module, shape: tuple[int, ...]) -> bytes:
    """`network` as an ONNX model that takes any batch of inputs of `shape` (C, H, W), and any
    canvas where it is a detector or segmenter that does.

    Outputs are called "output", or "output0" and so on where raw output is a sequence.
    """
    _packages()
    images = torch.rand(2, *shape)
    training = network.training
    network.eval()
    file = io.BytesIO()
    try:
        with torch.no_grad(), _PoolsAsProducts():
            names = _output_names(network(images))
            with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
                # What tracing might have fixed shows in the comparison of answers; and the exporter
                # that is said to be old is the one that needs no further packages.
                warnings.simplefilter("ignore")
                torch.onnx.export(
                    _Flat(network),
                    (images,),
                    file,  # type: ignore[arg-type]  # a path by its hints, either by its code
                    dynamo=False,
                    opset_version=_OPSET,
                    input_names=["images"],
                    output_names=names,
                    dynamic_axes=_axes(network, names),
                )
    except (RuntimeError, ValueError, TypeError) as error:
        raise SigakError(
            f"this network cannot be written as ONNX ({_first(error)}); use the checkpoint itself"
        ) from error
    finally:
        network.train(training)
    return file.getvalue()


class _PoolsAsProducts(TorchFunctionMode):
    """While active, adaptive average pooling is two matrix products where the output's sides do not
    divide the input's, which ONNX does not know.
    """

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is not nn.functional.adaptive_avg_pool2d:
            return function(*args, **(kwargs or {}))
        return _pool(*args, **(kwargs or {}))


def _pool(input: Tensor, output_size: Any) -> Tensor:
    """`input` (..., H, W) averaged to `output_size`: (H, W) or one number; None keeps a side."""
    height, width = (int(side) for side in input.shape[-2:])
    sides = output_size if isinstance(output_size, Sequence) else (output_size, output_size)
    rows, columns = sides[0] or height, sides[1] or width
    if height % rows == 0 and width % columns == 0:
        return nn.functional.adaptive_avg_pool2d(input, (rows, columns))
    return _shares(height, rows) @ input @ _shares(width, columns).T


def _shares(cells: int, outputs: int) -> Tensor:
    """(outputs, cells): what each cell gives to each output, by PyTorch's rule that output i covers
    the cells from floor(i * cells / outputs) to ceil((i + 1) * cells / outputs).
    """
    shares = torch.zeros(outputs, cells)
    for i in range(outputs):
        first, last = i * cells // outputs, -(-(i + 1) * cells // outputs)
        shares[i, first:last] = 1 / (last - first)
    return shares


def _first(error: Exception) -> str:
    """What went wrong, without the listing that follows."""
    return str(error).strip().split("\n")[0][:200]


def _axes(network: nn.Module, names: list[str]) -> dict[str, dict[int, str]]:
    """The axes that are not fixed."""
    any_canvas = isinstance(network, Detector | Segmenter) and network.stride
    canvas = {2: "height", 3: "width"} if any_canvas else {}
    answer = canvas if isinstance(network, Segmenter) else {}  # as large as the picture
    return {
        "images": {0: "batch", **canvas},
        **{name: {0: "batch", **answer} for name in names},
    }


class _Flat(nn.Module):
    """A network whose sequences of tensors are tuples, which is all that tracing takes."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Any:
        raw = self.network(images)
        return raw if isinstance(raw, Tensor) else tuple(raw)


def _output_names(raw: Any) -> list[str]:
    if isinstance(raw, Tensor):
        return ["output"]
    if not all(isinstance(part, Tensor) for part in raw):
        raise ValueError("its raw output is neither a tensor nor a sequence of tensors")
    return [f"output{i}" for i in range(len(raw))]


def _halve(model: Any, onnx: Any) -> None:
    """Keep large float32 constants in float16, each with a cast behind it."""
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT:
            continue
        values = onnx.numpy_helper.to_array(tensor)
        if values.size < _HALF_FROM or np.abs(values).max() > _LARGEST_HALF:
            continue
        name, stored = tensor.name, f"{tensor.name}_half"
        tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float16), stored))
        casts.append(onnx.helper.make_node("Cast", [stored], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]  # a node stands behind what it uses
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def write(path: Path, model: bytes, header: dict[str, Any], half: bool) -> list[Path]:
    """One file; `header` goes into its metadata. half: weights are kept in float16 and turned back
    before use.
    """
    onnx, _ = _packages()
    loaded = onnx.load_model_from_string(model)
    if half:
        _halve(loaded, onnx)
    onnx.helper.set_model_props(loaded, {KEY: json.dumps(header)})
    path.write_bytes(loaded.SerializeToString())
    return [path]


class OnnxEngine:
    """ONNX Runtime on the CPU, with as many threads as PyTorch has.

    header: what the file says of itself, empty where another program made it. network: reads raw
    output; whoever opens the file sets it.
    """

    network: nn.Module

    def __init__(self, path: Path) -> None:
        _, runtime = _packages()
        self.device = torch.device("cpu")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors; they come as exceptions too
        try:
            self._session = runtime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its errors have no common base but this
            raise SigakError(
                f"{path} is not a whole ONNX file, or needs a newer onnxruntime "
                f"({_first(error)}); export it again"
            ) from error
        known = self._session.get_modelmeta().custom_metadata_map
        self.header: dict[str, Any] = json.loads(known.get(KEY, "{}"))
        self._input = self._session.get_inputs()[0].name
        self._single = [one.name for one in self._session.get_outputs()] == ["output"]

    def __call__(self, images: Tensor) -> Any:
        feed = {self._input: images.float().contiguous().numpy()}
        try:
            raw = [torch.from_numpy(part) for part in self._session.run(None, feed)]
        except Exception as error:
            raise Failure(
                f"ONNX Runtime cannot run this file on inputs of {tuple(images.shape)} "
                f"({_first(error)})"
            ) from error
        return raw[0] if self._single else raw
