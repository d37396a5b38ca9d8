"""OpenVINO files (NAME.xml with NAME.bin beside it), and OpenVINO as an engine for them."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sigak.structures import Failure, SigakError

__all__ = ["OpenVINOEngine", "write"]

_KEY = "sigak"
_TELEMETRY = "openvino_telemetry"


def _package() -> Any:
    """The module openvino; SigakError where it is not installed.

    Its import sends a message to its makers where the package openvino_telemetry is there. That
    package is held away from it, so that nothing is sent.
    """
    if "openvino" in sys.modules:
        return sys.modules["openvino"]
    known = {name: sys.modules.pop(name) for name in list(sys.modules) if _is_telemetry(name)}
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # importing it fails from here on
    try:
        import openvino
    except ImportError as error:
        raise SigakError(
            f"OpenVINO needs the package openvino ({error}): pip install 'sigak[export]'"
        ) from error
    finally:
        del sys.modules[_TELEMETRY]
        sys.modules.update(known)
    return openvino


def _is_telemetry(name: str) -> bool:
    return name.partition(".")[0] == _TELEMETRY


def write(path: Path, model: bytes, header: dict[str, Any], half: bool) -> list[Path]:
    """NAME.xml and NAME.bin from an ONNX model; `header` goes into the first. half: weights are
    kept in float16.
    """
    openvino = _package()
    converted = openvino.Core().read_model(model)
    converted.set_rt_info(json.dumps(header), [_KEY])
    openvino.save_model(converted, str(path), compress_to_fp16=half)
    return [path.with_suffix(".bin"), path]


class OpenVINOEngine:
    """OpenVINO on the CPU, with as many threads as PyTorch has, computing in float32 (or bfloat16).

    header: what the file says of itself, empty where another program made it. network: reads raw
    output; whoever opens the file sets it.
    """

    network: nn.Module

    def __init__(self, path: Path, precision: str = "f32") -> None:
        openvino = _package()
        self.device = torch.device("cpu")
        core = openvino.Core()
        wishes = {
            "INFERENCE_PRECISION_HINT": precision,  # else it takes bfloat16 where there is any
            "INFERENCE_NUM_THREADS": min(torch.get_num_threads(), os.cpu_count() or 1),
            "PERFORMANCE_HINT": "LATENCY",
        }
        try:
            model = core.read_model(str(path))
            self._request = core.compile_model(model, "CPU", wishes).create_infer_request()
        except RuntimeError as error:
            raise SigakError(
                f"{path} is not a whole OpenVINO file with its .bin beside it, or needs a newer "
                f"openvino ({str(error).strip().splitlines()[-1]}); export it again"
            ) from error
        said = model.get_rt_info([_KEY]).astype(str) if model.has_rt_info([_KEY]) else "{}"
        self.header: dict[str, Any] = json.loads(said)
        self._outputs = len(model.outputs)
        self._single = "output" in model.outputs[0].get_names()

    def __call__(self, images: Tensor) -> Any:
        try:
            self._request.infer({0: images.float().contiguous().numpy()})
        except RuntimeError as error:
            raise Failure(
                f"OpenVINO cannot run this file on inputs of {tuple(images.shape)} "
                f"({str(error).strip().splitlines()[-1][:200]})"
            ) from error
        # Copied: the next call writes to the same memory.
        raw = [torch.tensor(self._request.get_output_tensor(i).data) for i in range(self._outputs)]
        return raw[0] if self._single else raw
