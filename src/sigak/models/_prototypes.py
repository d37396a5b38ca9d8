"""Masks out of prototypes: what every object of a picture shares is computed once, and an object
adds only the weights that mix it.

"YOLACT: real-time instance segmentation", Bolya et al. 2019, https://arxiv.org/abs/1904.02689. P
prototypes of the picture's size divided by 4, and P coefficients for each candidate; their weighted
sum, cut to the object's box, is above 0 where the object is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sigak.layers.conv import ConvNorm
from sigak.ops.boxes import area
from sigak.ops.outlines import cut
from sigak.structures import Instances, Masks

__all__ = ["PROTOTYPES", "STEP", "Mixed", "Prototypes", "mask_loss"]

PROTOTYPES = 32
STEP = 4  # pixels of the canvas to one of the prototypes, either way


class Prototypes(nn.Module):
    """The finest map of a neck (B, c_in, H/8, W/8) -> prototypes (B, 32, H/4, W/4)."""

    def __init__(self, c_in: int, hidden: int) -> None:
        super().__init__()
        self.first = ConvNorm(c_in, hidden, 3)
        self.up = nn.ConvTranspose2d(hidden, hidden, 2, 2)
        self.second = ConvNorm(hidden, hidden, 3)
        self.last = ConvNorm(hidden, PROTOTYPES)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(self.up(self.first(x))))  # type: ignore[no-any-return]


@dataclass(frozen=True, eq=False)
class Mixed:
    """`SoftMasks` of N candidates: coefficients (N, P) of prototypes (P, h, w)."""

    coefficients: Tensor
    prototypes: Tensor

    def __len__(self) -> int:
        return len(self.coefficients)

    def __getitem__(self, index: Tensor) -> Mixed:
        return Mixed(self.coefficients[index], self.prototypes)

    def decided(self, boxes: Tensor, matrix: Tensor, size: tuple[int, int]) -> Masks:
        """See `SoftMasks`: the sums are mixed linearly between their pixels."""
        sums = torch.einsum("np,phw->nhw", self.coefficients.float(), self.prototypes.float())
        leads = np.asarray(matrix, np.float64) @ np.diag([STEP, STEP, 1.0])
        matrices = np.broadcast_to(leads, (len(sums), 3, 3))
        return cut(list(sums.detach().cpu().numpy()), matrices, boxes.detach().cpu().numpy(), size)


def mask_loss(
    coefficients: Tensor,
    prototypes: Tensor,
    chosen: Tensor,
    owners: Tensor,
    truth: Sequence[Instances],
) -> Tensor:
    """Binary cross-entropy of the mixed masks within the objects' boxes, over the area of the box;
    the mean over the places that learn an object. Where an object covers a part of a prototype's
    pixel, that part is what is learnt, so that borders lie between pixels as they should.

    coefficients (B, M, P); prototypes (B, P, h, w); chosen (B, M) bool: the places that learn;
    owners (B, M) int64: which object of the picture; truth on the canvas, without crowds, with
    masks.
    """
    total = coefficients.sum() * 0 + prototypes.sum() * 0  # without objects there are gradients too
    height, width = prototypes.shape[2:]
    for weights, planes, places, own, one in zip(
        coefficients, prototypes, chosen, owners, truth, strict=True
    ):
        if one.masks is None or not places.any():
            continue
        goals = _shares(one.masks, (height, width)).to(planes)
        boxes = one.boxes.to(planes) / STEP
        inside = _inside(boxes, (height, width))
        sums = weights[places] @ planes.flatten(1)  # (n, h * w)
        owner = own[places]
        apart = F.binary_cross_entropy_with_logits(
            sums, goals.flatten(1)[owner], reduction="none", weight=inside.flatten(1)[owner]
        )
        total = total + (apart.sum(1) / area(boxes).clamp(min=1)[owner]).sum()
    return total / chosen.sum().clamp(min=1)


def _shares(masks: Masks, size: tuple[int, int]) -> Tensor:
    """(N, h, w) float32: how much of each of the prototypes' pixels a mask covers."""
    shares = np.zeros((len(masks), *size), np.float32)
    for plane, patch, (x, y) in zip(shares, masks.patches, masks.corners.tolist()):
        top, left = y // STEP, x // STEP
        rows, columns = (-(-(at + n) // STEP) for at, n in zip((y, x), patch.shape))
        grid = np.zeros(((rows - top) * STEP, (columns - left) * STEP), np.float32)
        y, x = y - top * STEP, x - left * STEP
        grid[y : y + patch.shape[0], x : x + patch.shape[1]] = patch
        cells = grid.reshape(rows - top, STEP, columns - left, STEP)
        plane[top:rows, left:columns] = cells.mean((1, 3))
    return torch.from_numpy(shares)


def _inside(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, h, w) float: 1 where the centre of a pixel lies in the box (N, 4) xyxy."""
    x = torch.arange(size[1], device=boxes.device) + 0.5
    y = (torch.arange(size[0], device=boxes.device) + 0.5)[:, None]
    x1, y1, x2, y2 = boxes.T[:, :, None, None]
    inside: Tensor = (x > x1) & (x < x2) & (y > y1) & (y < y2)
    return inside.to(boxes)
