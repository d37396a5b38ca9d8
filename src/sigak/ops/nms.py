"""Non-maximum suppression: of boxes that overlap, keep the best.

Greedy suppression takes the best box, drops what overlaps it, and repeats with what is left. It
does all of its work every time: no limit of time or of candidates drops a box unseen.

Boxes are (N, 4) float xyxy, scores (N,), labels (N,) int64; with labels None all boxes are of one
class. Equal scores keep the order in which they came.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor
from torchvision.ops import nms as torchvision_nms

from sigak.errors import SigakError
from sigak.ops.boxes import iou as box_iou

__all__ = ["Decay", "nms", "soft_nms"]

Decay = Literal["linear", "gaussian"]
_FIRST_LOOK = 1024


def nms(
    boxes: Tensor, scores: Tensor, labels: Tensor | None = None, iou: float = 0.7, most: int = 0
) -> Tensor:
    """Indices (K,) int64 of the boxes that are kept, best first; at most `most` of them, 0 for all.

    A box is dropped where a kept one of its class with a better score overlaps it with an IoU above
    `iou`. The work grows with N times K within a class; with `most` it ends early.
    """
    _check(boxes, scores, labels, iou)
    boxes = boxes.detach().float() if boxes.dtype.itemsize < 4 else boxes.detach()
    order = scores.detach().argsort(descending=True, stable=True)
    boxes = boxes[order]
    labels = None if labels is None else labels[order]
    # What is kept of the best M candidates does not depend on the others, so a first look at few of
    # them often is enough. Looking again at four times as many costs a third more at the worst.
    seen = max(_FIRST_LOOK, 4 * most) if most > 0 else len(boxes)
    while True:
        kept = _greedy(boxes[:seen], None if labels is None else labels[:seen], iou)
        if seen >= len(boxes) or len(kept) >= most > 0:
            return order[kept[:most] if most > 0 else kept]
        seen *= 4


def _greedy(boxes: Tensor, labels: Tensor | None, iou: float) -> Tensor:
    """`nms` of boxes that are sorted, best first: places (K,), ascending."""
    if labels is None:
        return _suppress(boxes, iou)
    if boxes.device.type == "cuda":  # every call has to wait for the device: one for all classes
        return _suppress(_apart(boxes, labels), iou)
    places = labels.argsort(stable=True)
    groups = torch.split(places, torch.unique(labels, return_counts=True)[1].tolist())
    kept = [group[_suppress(boxes[group], iou)] for group in groups]
    return torch.cat(kept).sort().values if kept else places


def _apart(boxes: Tensor, labels: Tensor) -> Tensor:
    """The boxes with every class on a stretch of the plane of its own, in float64, which has the
    digits for it: float32 would move small boxes.
    """
    if not len(boxes):
        return boxes
    boxes = boxes.double()
    return boxes + (labels * (boxes.max() - boxes.min() + 1))[:, None]


def _suppress(boxes: Tensor, iou: float) -> Tensor:
    """`nms` of sorted boxes of one class: places (K,), ascending."""
    falling = torch.arange(len(boxes), 0, -1, device=boxes.device, dtype=boxes.dtype)
    kept: Tensor = torchvision_nms(boxes, falling, iou)
    return kept


def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor | None = None,
    *,
    iou: float = 0.3,
    decay: Decay = "gaussian",
    sigma: float = 0.5,
    least: float = 0.001,
    most: int = 0,
) -> tuple[Tensor, Tensor]:
    """Suppression that lowers scores instead of dropping boxes (Bodla et al. 2017,
    https://arxiv.org/abs/1704.04503): indices (K,) int64 of the boxes whose score stays at `least`
    or above, and these scores (K,), best first; at most `most`, 0 for all.

    Every kept box multiplies the scores of the later ones of its class: "linear" by 1 - IoU where
    the IoU is above `iou`, "gaussian" by exp(-IoU^2 / sigma). The work grows with N times K within
    a class.
    """
    _check(boxes, scores, labels, iou)
    if decay not in get_args(Decay) or sigma <= 0:
        raise SigakError(
            f"decay must be linear or gaussian and sigma above 0, received {decay!r}, {sigma}"
        )
    boxes, scores = boxes.detach(), scores.detach().clone()
    boxes = boxes.float() if boxes.dtype.itemsize < 4 else boxes
    kinds = [torch.ones_like(scores, dtype=torch.bool)]
    if labels is not None:
        kinds = [labels == label for label in torch.unique(labels)]
    kept = [scores.new_zeros(0, dtype=torch.int64)]
    for kind in kinds:
        left = kind.nonzero()[:, 0]
        while len(left := left[scores[left] >= least]):
            best = scores[left].argmax()
            chosen = left[best]
            kept.append(chosen[None])
            left = torch.cat([left[:best], left[best + 1 :]])
            overlap = box_iou(boxes[chosen][None], boxes[left])[0]
            if decay == "linear":
                factor = torch.where(overlap > iou, 1 - overlap, torch.ones_like(overlap))
            else:
                factor = torch.exp(-(overlap**2) / sigma)
            scores[left] *= factor.to(scores.dtype)
    found = torch.cat(kept).sort().values
    found = found[scores[found].argsort(descending=True, stable=True)]
    found = found[:most] if most > 0 else found
    return found, scores[found]


def _check(boxes: Tensor, scores: Tensor, labels: Tensor | None, iou: float) -> None:
    given = [boxes.shape, scores.shape, scores.shape if labels is None else labels.shape]
    if given != [(len(boxes), 4), (len(boxes),), (len(boxes),)]:
        raise SigakError(
            "suppression needs boxes (N, 4), and scores and labels (N,), received shapes "
            + ", ".join(str(tuple(shape)) for shape in given)
        )
    if not 0 <= iou <= 1:
        raise SigakError(f"the IoU threshold must be between 0 and 1, received {iou}")
