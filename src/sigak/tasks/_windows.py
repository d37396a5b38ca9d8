"""Scores of pixels: averaged over mirrored and scaled views, over windows, and taken to the file.

A picture may be larger than what a network or the memory takes: `sliding` keeps the scores of one
row of windows at a time.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sigak.ops.warp import stretch, warp_device
from sigak.structures import SigakError

__all__ = ["OVERLAP", "Views", "best_classes", "highest", "sliding"]

OVERLAP = 0.25  # least share of a window that it has in common with the next
_VALUES = 1 << 25  # scores that are resampled at a time
_GRAY = 114  # beside a picture that is smaller than a window


@dataclass(frozen=True)
class Views:
    """What is averaged for one answer: the picture at `scales`, each also mirrored if `mirror`."""

    scales: tuple[float, ...] = (1.0,)
    mirror: bool = False

    @classmethod
    def parse(cls, text: str) -> Views:
        """From words such as "mirror" or "mirror,0.75,1.25"; the scale 1 always counts. Raises
        SigakError for other words, and scales that are not from 0.25 to 4.
        """
        words = [word.strip() for word in text.split(",") if word.strip()]
        try:
            scales = {1.0, *(float(word) for word in words if word != "mirror")}
        except ValueError:
            scales = {0.0}
        if not all(0.25 <= scale <= 4 for scale in scales):
            raise SigakError(
                f"--tta takes mirror and scales from 0.25 to 4, such as mirror,0.75,1.25; received "
                f"{text!r}"
            )
        return cls(tuple(sorted(scales)), "mirror" in words)

    def scores(self, network: Any, images: Tensor) -> Tensor:
        """(B, K, H, W) float32 on the CPU: the network's logits for images (B, C, H, W) in [0, 1]
        or, of several views, the mean of their probabilities.
        """
        if self == Views():
            return network(images).float().cpu()  # type: ignore[no-any-return]
        size = (int(images.shape[2]), int(images.shape[3]))
        total = torch.zeros(())
        for scale in self.scales:
            view = images if scale == 1 else _scaled(images, size, scale, _stride(network))
            total = total + _back(network(view), size)
            if self.mirror:
                total = total + _back(network(view.flip(3)).flip(3), size)
        return total / (len(self.scales) * (1 + self.mirror))


def _stride(network: Any) -> int:
    stride = int(getattr(network.network, "stride", 0))
    if not stride:
        raise SigakError(
            "this network takes pictures of its own size alone; leave scales out of --tta"
        )
    return stride


def _scaled(images: Tensor, size: tuple[int, int], scale: float, stride: int) -> Tensor:
    sides = [max(stride, round(side * scale / stride) * stride) for side in size]
    return F.interpolate(images, sides, mode="bilinear", antialias=scale < 1)


def _back(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Probabilities at `size`."""
    chances = logits.float().cpu().softmax(1)
    if chances.shape[2:] == size:
        return chances
    return F.interpolate(chances, size, mode="bilinear")


def best_classes(scores: Tensor, matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(K, h, w) scores on the canvas -> (H, W) uint8 best classes in the file's frame of `size`.

    matrix (3, 3) leads from the file to the canvas. What the canvas does not show takes the class
    at its edge. Some rows at a time, so that large files need little memory.
    """
    whole = _shown_whole(matrix, scores, size)
    if whole is not None:
        planes = scores[:, whole[0], whole[1]].float().contiguous().unbind()
        if planes[0].shape == tuple(size):
            return highest(planes).numpy()
        return highest(stretch(plane, size) for plane in planes).numpy()
    found = np.empty(size, np.uint8)
    home = np.linalg.inv(matrix)
    rows = max(1, _VALUES // (len(scores) * size[1]))
    for top in range(0, size[0], rows):
        height = min(rows, size[0] - top)
        up = np.array([[1.0, 0, 0], [0, 1, -top], [0, 0, 1]]) @ home
        part = warp_device(scores[None], up[None], (height, size[1]), "nearest")
        found[top : top + height] = highest(part[0].unbind()).numpy()
    return found


def _shown_whole(
    matrix: np.ndarray, scores: Tensor, size: tuple[int, int]
) -> tuple[slice, slice] | None:
    """Rows and columns of the canvas that show the file, where it is shown upright, whole and
    in whole pixels.
    """
    left, top = matrix[:2, 2]
    right, bottom = left + matrix[0, 0] * size[1], top + matrix[1, 1] * size[0]
    edges = np.array([left, top, right, bottom])
    ends = np.rint(edges).astype(int)
    straight = not (matrix[0, 1] or matrix[1, 0] or matrix[2, 0] or matrix[2, 1])
    inside = ends.min() >= 0 and ends[2] <= scores.shape[2] and ends[3] <= scores.shape[1]
    if (
        not straight
        or not inside
        or np.abs(edges - ends).max() > 1e-6
        or (ends[2:] <= ends[:2]).any()
    ):
        return None
    return slice(ends[1], ends[3]), slice(ends[0], ends[2])


def highest(planes: Iterable[Tensor]) -> Tensor:
    """uint8: at each place which of the planes, all of one shape, is the highest, the first of
    equal ones. One plane after another: `argmax` across planes takes several times as long.
    """
    best, label = torch.zeros(()), torch.zeros((), dtype=torch.uint8)
    for number, plane in enumerate(planes):
        if number == 0:
            best, label = plane.clone(), torch.zeros_like(plane, dtype=torch.uint8)
            continue
        label.masked_fill_(plane > best, number)
        torch.maximum(best, plane, out=best)
    return label


def sliding(network: Any, views: Views, image: Tensor, side: int) -> np.ndarray:
    """(C, H, W) uint8 -> (H, W) uint8 best classes, by windows of `side` x `side` pixels that
    overlap by a quarter or more.

    Where windows meet, their probabilities are weighed by the distance from their edges. A picture
    smaller than a window stands in its upper left corner.
    """
    stride = int(getattr(network.network, "stride", 0)) or 1
    if side % stride:
        raise SigakError(f"--tile must be a multiple of {stride} for this network, received {side}")
    height, width = int(image.shape[1]), int(image.shape[2])
    tops, lefts = _starts(height, side), _starts(width, side)
    ramp = torch.arange(side).add(0.5)
    ramp = torch.minimum(ramp, side - ramp)
    weight = ramp[:, None] * ramp
    found = np.empty((height, width), np.uint8)
    band = torch.zeros(0)
    for place, top in enumerate(tops):
        for left in lefts:
            scores = views.scores(network, _cut(image, top, left, side))[0]
            if views == Views():
                scores = scores.softmax(0)  # windows are blended as probabilities
            if not len(band):
                band = torch.zeros(len(scores), side, max(width, side))
            band[:, :, left : left + side] += scores * weight
        done = (tops[place + 1] if place + 1 < len(tops) else height) - top
        found[top : top + done] = highest(band[:, :done, :width].unbind()).numpy()
        band = torch.cat([band[:, done:], torch.zeros_like(band[:, :done])], 1)
    return found


def _starts(length: int, side: int) -> list[int]:
    """Where windows begin: as few as overlap enough, evenly spread."""
    if length <= side:
        return [0]
    count = 1 + -(-(length - side) // max(1, int(side * (1 - OVERLAP))))
    return [round(at) for at in np.linspace(0, length - side, count).tolist()]


def _cut(image: Tensor, top: int, left: int, side: int) -> Tensor:
    """(1, C, side, side) float32 in [0, 1], gray beside the picture."""
    part = image[None, :, top : top + side, left : left + side]
    beside = (0, side - part.shape[3], 0, side - part.shape[2])
    whole = F.pad(part, beside, value=_GRAY).float() / 255
    return whole.contiguous(memory_format=torch.channels_last)
