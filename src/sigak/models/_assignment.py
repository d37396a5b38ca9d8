"""Which places of a detector learn which object: task-aligned assignment.

"TOOD: task-aligned one-stage object detection", Feng et al. 2021, https://arxiv.org/abs/2108.07755.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from sigak.ops.boxes import aligned_iou

__all__ = ["Targets", "assign"]


@dataclass(frozen=True)
class Targets:
    """What every place should say: whether an object is assigned to it (B, M), which of its picture
    (B, M) int64, that object's box (B, M, 4) xyxy, and the score of each class (B, M, K).
    """

    assigned: Tensor
    owners: Tensor
    boxes: Tensor
    scores: Tensor


@torch.no_grad()
def assign(
    scores: Tensor, boxes: Tensor, places: Tensor, goals: Tensor, labels: Tensor, real: Tensor
) -> Targets:
    """Task-aligned assignment: scores (B, M, K) and boxes (B, M, 4) predicted at
    places (M, 3); goals (B, G, 4), labels (B, G) and real (B, G) are the truth.

    An object takes the 10 places within it whose score^0.5 x CIoU^6 is highest; a place that
    several objects take goes to the one it overlaps most. The target score of an object's best
    place is the highest overlap any of its places has; the others' is lower in proportion.
    """
    x, y = places[:, 0], places[:, 1]
    left, top, right, bottom = goals[..., None].unbind(2)  # each (B, G, 1)
    inside = (x > left) & (x < right) & (y > top) & (y < bottom) & real[..., None]  # (B, G, M)
    if not inside.any():
        nothing = torch.zeros_like(scores)
        none = nothing[..., 0].bool()
        return Targets(none, none.long(), torch.zeros_like(boxes), nothing)
    picture, goal, place = inside.nonzero(as_tuple=True)
    overlap = aligned_iou(boxes[picture, place], goals[picture, goal], "ciou").clamp(min=0)
    said = scores[picture, place, labels[picture, goal]]
    overlaps, merits = scores.new_zeros(2, *inside.shape)
    overlaps[picture, goal, place] = overlap
    merits[picture, goal, place] = said**0.5 * overlap**6

    best = merits.topk(min(10, len(places)), dim=-1).indices
    taken = torch.zeros_like(inside).scatter_(-1, best, True) & inside
    owner = overlaps.masked_fill(~taken, -1).argmax(1, keepdim=True)  # (B, 1, M)
    taken &= torch.zeros_like(taken).scatter_(1, owner, True)

    highest = (overlaps * taken).amax(-1, keepdim=True)  # (B, G, 1)
    most = (merits * taken).amax(-1, keepdim=True)
    strength = (merits * taken * highest / (most + 1e-9)).sum(1)  # (B, M), of its one owner
    owner = owner[:, 0]
    wanted = F.one_hot(labels.gather(1, owner), scores.shape[2]) * strength[..., None]
    chosen = goals.gather(1, owner[..., None].expand(-1, -1, 4))
    return Targets(taken.any(1), owner, chosen, wanted)
