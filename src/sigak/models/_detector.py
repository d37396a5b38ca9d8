"""What all detectors are: a network whose raw output has a loss and an answer of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sigak.structures import Instances

__all__ = ["Detector", "candidates"]


class Detector(nn.Module):
    """A network that finds objects.

    `raw` may be a tensor or a sequence of tensors. `loss` and `decode` use no parameters: the first
    learns from raw output, the second reads it, also where another engine computed it.
    """

    head: tuple[str, ...] = ()  # submodules that start fresh when the classes change
    nms_iou: ClassVar[float] = 0.7  # overlap above which the lesser of two boxes goes
    stride: ClassVar[int] = 32  # the canvas's sides are multiples of it
    finished: ClassVar[bool] = False  # `decode` has removed doubled boxes itself

    def raw(self, images: Tensor) -> Any:
        """(B, 3, H, W) in [0, 1] -> tensors."""
        raise NotImplementedError(type(self).__name__)

    def loss(
        self, raw: Any, truth: Sequence[Instances], size: tuple[int, int]
    ) -> dict[str, Tensor]:
        """What is minimised, "loss", a mean over the pictures, and its parts by name; truth on the
        canvas of `size` (H, W).
        """
        raise NotImplementedError(type(self).__name__)

    def decode(self, raw: Any, size: tuple[int, int], conf: float) -> list[Instances]:
        """Per picture all boxes that score above `conf`, on the canvas of `size` (H, W), doubled
        ones among them.
        """
        raise NotImplementedError(type(self).__name__)

    def forward(self, images: Tensor, truth: Sequence[Instances] | None = None) -> Any:
        """Raw output; with the truth its loss, computed in float32. Both in one call, because
        processes that train together exchange gradients of what one call computed.
        """
        raw = self.raw(images)
        if truth is None:
            return raw
        with torch.autocast(images.device.type, enabled=False):
            return self.loss(_float(raw), truth, (images.shape[2], images.shape[3]))


def _float(raw: Any) -> Any:
    return raw.float() if isinstance(raw, Tensor) else [_float(part) for part in raw]


def candidates(boxes: Tensor, scores: Tensor, conf: float) -> list[Instances]:
    """boxes (B, M, 4) xyxy and scores (B, M, K) -> per picture every (box, class) that scores above
    `conf`; one box may stand for several classes.
    """
    found = []
    for corners, probabilities in zip(boxes, scores, strict=True):
        place, label = (probabilities > conf).nonzero(as_tuple=True)
        found.append(Instances(corners[place], label, probabilities[place, label]))
    return found
