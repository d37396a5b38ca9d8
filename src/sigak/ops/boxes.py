"""Boxes: (N, 4) float tensors of corners x1, y1, x2, y2 in continuous pixels, and conversions to
other forms.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sigak.ops.points import transform_xy

__all__ = [
    "area",
    "clip",
    "cxcywh_to_xyxy",
    "denormalized",
    "iou",
    "normalized",
    "transform_boxes",
    "xywh_to_xyxy",
    "xyxy_to_cxcywh",
    "xyxy_to_xywh",
]


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
