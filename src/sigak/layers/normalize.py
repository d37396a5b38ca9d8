"""Normalisation as the first line of a network's forward."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["Normalize"]


class Normalize(nn.Module):
    """(x - mean) / std per channel: images (B, C, H, W) in [0, 1] -> (B, C, H, W); with `axes` 3
    volumes (B, C, D, H, W).

    Inside the network, so that training and prediction cannot disagree. mean 0 and std 1 pass the
    images through untouched. The constants are rebuilt from the arguments and never saved as
    weights.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float], axes: int = 2) -> None:
        super().__init__()
        self.active = any(m != 0.0 for m in mean) or any(s != 1.0 for s in std)
        shape = (1, -1) + (1,) * axes
        self.register_buffer("mean", torch.tensor(mean).view(shape), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(shape), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std if self.active else images
