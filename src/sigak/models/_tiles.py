"""Masks that a network draws into its boxes, one small square each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from sigak.ops.outlines import cut
from sigak.structures import Masks

__all__ = ["Tiles"]


@dataclass(frozen=True, eq=False)
class Tiles:
    """`SoftMasks` of N boxes on the canvas: probabilities (N, 28, 28), stretched over each box (N,
    4) xyxy.
    """

    boxes: Tensor
    probabilities: Tensor

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: Tensor) -> Tiles:
        return Tiles(self.boxes[index], self.probabilities[index])

    def decided(self, boxes: Tensor, matrix: Tensor, size: tuple[int, int]) -> Masks:
        """See `SoftMasks`: where the probability, mixed linearly, is above one half."""
        corners = self.boxes.detach().double().cpu().numpy()
        # A ring of zeros around: towards the border of a box its mask ends.
        framed = F.pad(self.probabilities.detach().float(), (1, 1, 1, 1)) - 0.5
        matrices = np.tile(np.eye(3), (len(corners), 1, 1))
        for axis in (0, 1):
            step = (corners[:, axis + 2] - corners[:, axis]) / self.probabilities.shape[-1]
            step = np.maximum(step, 1e-6)  # a box without area has no mask, and a matrix an inverse
            matrices[:, axis, axis], matrices[:, axis, 2] = step, corners[:, axis] - step
        leads = np.asarray(matrix, np.float64) @ matrices
        return cut(list(framed.cpu().numpy()), leads, boxes.detach().cpu().numpy(), size)
