"""Anchors: shapes (width, height) that boxes are told against, and finding those of a data set.

"YOLO9000: better, faster, stronger", Redmon and Farhadi 2016, section 2, "dimension clusters",
https://arxiv.org/abs/1612.08242: k-means with the overlap of shapes in place of a distance.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sigak.ops.boxes import iou

__all__ = ["cluster", "fitted", "mean_overlap", "overlaps", "reached", "sides_of"]

_MOST = 20_000  # objects that are looked at
_ROUNDS = 100


def sides_of(boxes: Sequence[Tensor]) -> np.ndarray:
    """(N, 2) widths and heights of all that have an area, of boxes (., 4) xyxy a picture."""
    parts = [(b[:, 2:] - b[:, :2]).double().cpu().numpy() for b in boxes]
    sides = np.concatenate([np.zeros((0, 2)), *parts])
    return np.asarray(sides[(sides > 0).all(1)])


def fitted(before: float, after: float) -> str:
    """What is told of a fit: how much objects overlap their best anchor, on average."""
    return (
        f"anchors fitted to the training pictures: an object and its nearest anchor overlap by "
        f"{after:.0%} on average, by {before:.0%} before"
    )


def reached(boxes: Sequence[Tensor], anchors: Tensor) -> float:
    """How much boxes (., 4) of up to 200 pictures overlap their best anchor of all places (M, 4),
    xyxy, on average; 0 where there is none.
    """
    found = [iou(b.to(anchors), anchors).amax(1) for b in boxes[:: -(-len(boxes) // 200) or 1]]
    best = torch.cat([torch.zeros(0), *found])
    return float(best.mean()) if len(best) else 0.0


def overlaps(sides: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    """IoU of boxes with one centre: (N, 2) and (A, 2) widths and heights -> (N, A)."""
    common = np.minimum(sides[:, None], anchors).prod(2)
    return np.asarray(common / (sides.prod(1)[:, None] + anchors.prod(1) - common))


def mean_overlap(sides: np.ndarray, anchors: np.ndarray) -> float:
    """How much the objects overlap their best anchor, on average."""
    return float(overlaps(sides, anchors).max(1).mean())


def cluster(sides: np.ndarray, count: int) -> np.ndarray:
    """`count` anchors (count, 2), the smallest first, for objects (N, 2) of these widths and
    heights; the same for the same objects.
    """
    sides = sides[np.linspace(0, len(sides) - 1, min(len(sides), _MOST)).astype(int)]
    # From evenly spread sizes: each start is near some objects, and none is a matter of chance.
    order = sides[np.argsort(sides.prod(1), kind="stable")]
    anchors = order[((np.arange(count) + 0.5) / count * len(order)).astype(int)]
    owner = np.full(len(sides), -1)
    for _ in range(_ROUNDS):
        nearest = overlaps(sides, anchors).argmax(1)
        if (nearest == owner).all():
            break
        owner = nearest
        own = [sides[owner == k] for k in range(count)]
        anchors = np.stack([np.median(o, 0) if len(o) else a for o, a in zip(own, anchors)])
    return np.asarray(anchors[np.argsort(anchors.prod(1), kind="stable")])
