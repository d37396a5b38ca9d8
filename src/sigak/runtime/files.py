"""Exported files: what each format needs to be written and opened, and what its header must carry.

The header is that of the checkpoint, so that a file answers as the checkpoint does. What reads a
detector's raw output is rebuilt from it: its weights are not needed for that, but anchors are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from sigak import models
from sigak.models._detector import Detector
from sigak.models._segmenter import Segmenter
from sigak.runtime import onnx_engine, openvino_engine
from sigak.runtime.onnx_engine import OnnxEngine
from sigak.runtime.openvino_engine import OpenVINOEngine
from sigak.structures import SigakError

__all__ = ["FORMATS", "SUFFIXES", "Elsewhere", "Format", "open_file", "write"]

FileEngine = OnnxEngine | OpenVINOEngine


@dataclass(frozen=True)
class Format:
    """write(path, ONNX model, header, half) -> the files written; open(path) -> an engine."""

    suffix: str
    write: Callable[[Path, bytes, dict[str, Any], bool], list[Path]]
    open: Callable[[Path], FileEngine]


FORMATS = {
    "onnx": Format(".onnx", onnx_engine.write, OnnxEngine),
    "openvino": Format(".xml", openvino_engine.write, OpenVINOEngine),
}
SUFFIXES = {row.suffix: name for name, row in FORMATS.items()}


class Elsewhere(nn.Module):
    """Stands for a network whose layers are in a file for another engine; stride: what the sides of
    its canvas are multiples of, 0 where they are fixed.
    """

    def __init__(self, stride: int = 0) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, *_: Any) -> Any:
        raise SigakError(
            "this needs the layers themselves, which an exported file keeps for its own engine; "
            "give the checkpoint it was exported from"
        )


def write(
    kind: str, path: Path, network: nn.Module, header: dict[str, Any], *, half: bool = False
) -> list[Path]:
    """Write `network` to `path` as a file of `kind`; returns all files that were written. half:
    weights take half the bytes.
    """
    stride = getattr(network, "stride", 0)
    about = {"format": kind, "half": half, "buffers": _buffers(network), "stride": stride}
    said = header | {"export": about}
    shape = models.input_shape(network, header["arguments"])
    if isinstance(network, Detector | Segmenter):
        shape = (shape[0], *header["preparation"]["size"])
    return FORMATS[kind].write(path, onnx_engine.convert(network, shape), said, half)


def _buffers(network: nn.Module) -> dict[str, Any] | None:
    """The numbers that `decode` may read, such as anchors; None where there is no decode."""
    if not isinstance(network, Detector):
        return None
    saved = network.state_dict()
    return {
        f"{prefix}.{name}" if prefix else name: value.tolist()
        for prefix, module in network.named_modules()
        if not isinstance(module, _NormBase)
        for name, value in module.named_buffers(recurse=False)
        if (f"{prefix}.{name}" if prefix else name) in saved
    }


def open_file(path: Path) -> FileEngine:
    """The engine of an exported file, with what reads its raw output."""
    engine = FORMATS[SUFFIXES[path.suffix.lower()]].open(path)
    if "export" not in engine.header:
        raise SigakError(
            f"{path} holds a network but not how to use it; expected a file that `sigak export` "
            f"wrote"
        )
    engine.network = _reader(engine.header)
    return engine


def _reader(header: dict[str, Any]) -> nn.Module:
    """The module whose decode reads the raw output."""
    buffers = header["export"]["buffers"]
    if buffers is None:
        return Elsewhere(header["export"].get("stride", 0))
    with torch.random.fork_rng([]):  # weights nobody will use are drawn
        network = models.entry(header["name"]).build(**header["arguments"])
    own: dict[str, Tensor] = network.state_dict()
    kept = {name: torch.tensor(value, dtype=own[name].dtype) for name, value in buffers.items()}
    network.load_state_dict(own | kept)
    return network.eval()
