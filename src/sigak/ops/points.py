"""Points: (N, K, 3) float tensors of x, y, visibility (0 unlabelled, 1 hidden, 2 visible) in
continuous pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sigak.structures import SigakError

__all__ = ["swap_points", "transform_points", "transform_xy"]


def transform_xy(xy: Tensor, matrix: Tensor) -> Tensor:
    """(..., 2) positions through a (3, 3) matrix, perspective included; computed in float64, given
    back in xy's type.
    """
    precise = matrix.to(device=xy.device, dtype=torch.float64)
    moved = xy.double() @ precise[:, :2].T + precise[:, 2]
    return (moved[..., :2] / moved[..., 2:]).to(xy.dtype)


def transform_points(points: Tensor, matrix: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, K, 3) points through a (3, 3) matrix; those that leave the canvas `size` (H, W) get
    visibility 0.
    """
    xy = transform_xy(points[..., :2], matrix)
    height, width = size
    inside = (xy[..., 0] >= 0) & (xy[..., 0] < width) & (xy[..., 1] >= 0) & (xy[..., 1] < height)
    return torch.cat([xy, (points[..., 2] * inside)[..., None]], dim=-1)


def swap_points(points: Tensor, swap: Sequence[int]) -> Tensor:
    """(N, K, 3) points renamed after a mirror: place k takes the point of place swap[k] (left eye
    <-> right eye).

    Raises SigakError unless `swap` names each of the K places once.
    """
    count = points.shape[1]
    if sorted(swap) != list(range(count)):
        raise SigakError(
            f"swap must name each of the {count} points once, received {list(swap)}; "
            "write the place of the opposite point, or its own place where it has none"
        )
    return points[:, list(swap)]
