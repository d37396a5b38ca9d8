"""The names of YOLOX's published weights -> ours, for its checkpoints and its ONNX files."""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = ["from_official", "from_onnx"]

_EPS = 1e-3  # of the batch norms

# The publisher's names -> ours, in this order.
_RENAMES = tuple(
    (re.compile(pattern), ours)
    for pattern, ours in (
        (r"\.bn\.", ".norm."),
        (r"\.dconv\.", ".0."),
        (r"\.pconv\.", ".1."),
        (r"^backbone\.backbone\.stem\.conv\.", "backbone.stem.block."),
        (r"dark5\.1\.conv2\.", "dark5.1.merge."),
        (r"\.m\.(\d+)\.conv1\.", r".blocks.\1.reduce."),
        (r"\.m\.(\d+)\.conv2\.", r".blocks.\1.expand."),
        (r"\.conv1\.", ".main."),
        (r"\.conv2\.", ".skip."),
        (r"\.conv3\.", ".merge."),
        (r"^backbone\.backbone\.dark(\d)", lambda m: f"backbone.stages.{int(m[1]) - 2}"),
        (r"^backbone\.lateral_conv0\.", "neck.lateral5."),
        (r"^backbone\.reduce_conv1\.", "neck.lateral4."),
        (r"^backbone\.C3_p(\d)\.", r"neck.up\1."),
        (r"^backbone\.bu_conv2\.", "neck.down3."),
        (r"^backbone\.bu_conv1\.", "neck.down4."),
        (r"^backbone\.C3_n(\d)\.", lambda m: f"neck.out{int(m[1]) + 1}."),
        (r"^head\.stems\.(\d)\.", r"towers.\1.stem."),
        (r"^head\.cls_convs\.(\d)\.", r"towers.\1.classes."),
        (r"^head\.reg_convs\.(\d)\.", r"towers.\1.boxes."),
        (r"^head\.cls_preds\.", "class_outputs."),
        (r"^head\.reg_preds\.", "box_outputs."),
        (r"^head\.obj_preds\.", "object_outputs."),
    )
)


def from_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The publisher's names -> ours."""
    renamed = {}
    for name, value in state.items():
        for pattern, ours in _RENAMES:
            name = pattern.sub(ours, name)
        renamed[name] = value
    return renamed


def from_onnx(
    state: dict[str, Tensor], layouts: Iterable[dict[str, torch.Size]]
) -> dict[str, Tensor]:
    """An exported file, in which batch norm was folded into kernels and biases without names.

    They stand in the order of use. layouts: for each form of the network its blocks' names and the
    shapes of their kernels, in that order; where none has the file's shapes, `state` comes back as
    it is. Batch norm gets the statistics that leave its input as it is, and the bias:
    `sigak.layers.statistics.restore_statistics` makes it fit for training.
    """
    numbered = [value for name, value in state.items() if name.startswith("onnx::")]
    kernels, biases = numbered[::2], numbered[1::2]
    shapes = [kernel.shape for kernel in kernels]
    for layout in layouts:
        if shapes == list(layout.values()):
            named = {k: v for k, v in state.items() if not k.startswith("onnx::")}
            for name, kernel, bias in zip(layout, kernels, biases, strict=True):
                named |= _without_norm(name, kernel, bias)
            return from_official(named)
    return state


def _without_norm(name: str, kernel: Tensor, bias: Tensor) -> dict[str, Tensor]:
    ones = torch.ones_like(bias)
    return {
        f"{name}.conv.weight": kernel,
        f"{name}.norm.weight": ones,
        f"{name}.norm.bias": bias,
        f"{name}.norm.running_mean": torch.zeros_like(bias),
        f"{name}.norm.running_var": ones - _EPS,
    }
