"""The weights in an ONNX file: the constants that its layers use. The graph itself is not run.

The onnx package reads the files (`pip install sigak[export]`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sigak.structures import SigakError

__all__ = ["read"]

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization")


def read(path: str | Path) -> dict[str, Tensor]:
    """The constants of the layers with weights, by their names in the file, in order of use.

    Exporters keep the names of what they leave as it was, and number what they compute: kernels
    with batch norm folded in are called like "onnx::Conv_17". The order is then all that tells
    which layer they belong to. float32, whatever the file has. Raises SigakError where the file is
    damaged, keeps its weights in other files, or the onnx package is missing.
    """
    path = Path(path)
    try:
        import onnx
    except ImportError as error:
        raise SigakError(
            f"{path} is an ONNX file, and reading it needs onnx; install it with "
            "`pip install sigak[export]`"
        ) from error
    try:
        graph = onnx.load(str(path), load_external_data=False).graph
    except FileNotFoundError:
        raise SigakError(f"expected a weights file, but {path} does not exist") from None
    except Exception as error:  # the parser of protobuf has errors of its own
        raise SigakError(
            f"{path} is not a whole ONNX file ({error}); export or copy it again"
        ) from error
    constants = {tensor.name: tensor for tensor in graph.initializer}
    used = [name for node in graph.node if node.op_type in _LAYERS for name in node.input]
    found = {name: constants[name] for name in used if name in constants}
    if not found:
        raise SigakError(f"{path} holds no layers with weights; export the network again")
    return {name: _tensor(tensor, path) for name, tensor in found.items()}


def _tensor(constant: Any, path: Path) -> Tensor:
    from onnx import TensorProto, numpy_helper

    if constant.data_location == TensorProto.EXTERNAL:
        raise SigakError(
            f"{path} keeps its weights in other files beside it; save it as one file with "
            "onnx.save and no external data"
        )
    try:
        array = numpy_helper.to_array(constant)
    except (ValueError, TypeError) as error:
        raise SigakError(f"{path}: {constant.name} is damaged ({error}); copy it again") from error
    return torch.from_numpy(np.array(array, np.float32))
