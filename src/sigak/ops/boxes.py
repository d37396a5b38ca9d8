"""Boxes: (N, 4) float tensors of corners x1, y1, x2, y2 in continuous pixels, conversions to other
forms, and how well two boxes agree: IoU and its generalisations.

Agreement comes in two shapes. `iou`, `giou`, `diou` and `ciou` compare every box of one list with
every box of another; `aligned_iou` compares the boxes that stand at the same place of two lists, as
a loss does. All have gradients.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from sigak.errors import SigakError
from sigak.ops.points import transform_xy

__all__ = [
    "Agreement",
    "aligned_iou",
    "area",
    "ciou",
    "clip",
    "cxcywh_to_xyxy",
    "denormalized",
    "diou",
    "giou",
    "iou",
    "normalized",
    "transform_boxes",
    "xywh_to_xyxy",
    "xyxy_to_cxcywh",
    "xyxy_to_xywh",
]

Agreement = Literal["iou", "giou", "diou", "ciou"]


def area(boxes: Tensor) -> Tensor:
    """(..., 4) xyxy -> (...,) areas in square pixels; a box turned inside out has area 0."""
    sides = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0)
    return sides[..., 0] * sides[..., 1]


def clip(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """(..., 4) xyxy cut to a canvas of `size` (H, W)."""
    height, width = size
    return torch.stack(
        [
            boxes[..., 0].clamp(0, width),
            boxes[..., 1].clamp(0, height),
            boxes[..., 2].clamp(0, width),
            boxes[..., 3].clamp(0, height),
        ],
        dim=-1,
    )


def iou(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of every pair: (N, 4) and (M, 4) xyxy -> (N, M) in [0, 1]; 0 where
    both are empty.
    """
    left_top = torch.maximum(first[:, None, :2], second[None, :, :2])
    right_bottom = torch.minimum(first[:, None, 2:], second[None, :, 2:])
    common = area(torch.cat([left_top, right_bottom], dim=-1))
    union = area(first)[:, None] + area(second)[None, :] - common
    return torch.where(union > 0, common / union, torch.zeros_like(common))


def giou(first: Tensor, second: Tensor) -> Tensor:
    """Generalised IoU of every pair: (N, 4) and (M, 4) xyxy -> (N, M) in [-1, 1]; `aligned_iou`."""
    return aligned_iou(first[:, None], second[None], "giou")


def diou(first: Tensor, second: Tensor) -> Tensor:
    """Distance IoU of every pair: (N, 4) and (M, 4) xyxy -> (N, M) in [-1, 1]; `aligned_iou`."""
    return aligned_iou(first[:, None], second[None], "diou")


def ciou(first: Tensor, second: Tensor) -> Tensor:
    """Complete IoU of every pair: (N, 4) and (M, 4) xyxy -> (N, M) in [-1.5, 1]; `aligned_iou`."""
    return aligned_iou(first[:, None], second[None], "ciou")


def aligned_iou(
    first: Tensor, second: Tensor, kind: Agreement = "iou", eps: float = 1e-7
) -> Tensor:
    """How well boxes at the same place agree: (..., 4) and (..., 4) xyxy, which may broadcast, ->
    (...) values that are 1 for equal boxes. 1 - value is the loss of that name.

    * "iou": intersection over union, 0 without overlap, where it has no gradient.
    * "giou": less the share of the smallest box around both that neither covers (Rezatofighi et al.
      2019, https://arxiv.org/abs/1902.09630).
    * "diou": IoU less the squared distance of the centres over the squared diagonal of the smallest
      box around both (Zheng et al. 2020, https://arxiv.org/abs/1911.08287).
    * "ciou": DIoU less alpha * v, where v in [0, 1] tells how the aspect ratios differ. alpha =
      v / (1 - IoU + v) is a weight and gets no gradient (same paper).

    Half precision is computed and returned in float32. Boxes without area have finite values and
    gradients: no denominator is below `eps`.
    """
    if kind not in get_args(Agreement):
        raise SigakError(f"kind must be one of iou, giou, diou or ciou, received {kind!r}")
    first, second = (b.float() if b.dtype.itemsize < 4 else b for b in (first, second))
    inner = torch.cat(
        [
            torch.maximum(first[..., :2], second[..., :2]),
            torch.minimum(first[..., 2:], second[..., 2:]),
        ],
        dim=-1,
    )
    common = area(inner)
    union = area(first) + area(second) - common
    value = common / union.clamp(min=eps)
    if kind == "iou":
        return value
    hull = torch.maximum(first[..., 2:], second[..., 2:]) - torch.minimum(
        first[..., :2], second[..., :2]
    )
    if kind == "giou":
        around = hull.prod(dim=-1)
        return value - (around - union) / around.clamp(min=eps)
    apart = (first[..., :2] + first[..., 2:] - second[..., :2] - second[..., 2:]) / 2
    value_of_distance = value - (apart**2).sum(-1) / (hull**2).sum(-1).clamp(min=eps)
    if kind == "diou":
        return value_of_distance
    v = (_slope(first, eps) - _slope(second, eps)) ** 2 * (4 / math.pi**2)
    with torch.no_grad():
        alpha = v / (1 - value + v).clamp(min=eps)
    return value_of_distance - alpha * v


def _slope(boxes: Tensor, eps: float) -> Tensor:
    """(..., 4) xyxy -> (...) the angle whose tangent is width over height."""
    sides = (boxes[..., 2:] - boxes[..., :2]).clamp(min=eps)
    return torch.atan(sides[..., 0] / sides[..., 1])


def transform_boxes(boxes: Tensor, matrix: Tensor) -> Tensor:
    """(N, 4) xyxy through a (3, 3) matrix -> (N, 4): the upright hull of the four moved corners,
    not clipped.
    """
    corners = boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2)
    moved = transform_xy(corners, matrix)
    return torch.cat([moved.amin(dim=1), moved.amax(dim=1)], dim=-1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """(..., 4) corners -> centre x, centre y, width, height."""
    return torch.cat(
        [(boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]], dim=-1
    )


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """(..., 4) centre x, centre y, width, height -> corners."""
    half = boxes[..., 2:] / 2
    return torch.cat([boxes[..., :2] - half, boxes[..., :2] + half], dim=-1)


def xyxy_to_xywh(boxes: Tensor) -> Tensor:
    """(..., 4) corners -> left, top, width, height (the form of COCO files)."""
    return torch.cat([boxes[..., :2], boxes[..., 2:] - boxes[..., :2]], dim=-1)


def xywh_to_xyxy(boxes: Tensor) -> Tensor:
    """(..., 4) left, top, width, height -> corners."""
    return torch.cat([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], dim=-1)


def normalized(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """(..., 4) in pixels -> the same form as shares of the width and height of `size` (H, W)."""
    return boxes / boxes.new_tensor([size[1], size[0], size[1], size[0]])


def denormalized(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """(..., 4) as shares of the width and height of `size` (H, W) -> the same form in pixels."""
    return boxes * boxes.new_tensor([size[1], size[0], size[1], size[0]])
