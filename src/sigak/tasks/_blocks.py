"""Class maps of volumes by overlapping windows, with the memory of one row of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sigak.tasks._windows import highest

__all__ = ["OVERLAP", "starts", "sweep", "weights", "window_for"]

OVERLAP = 0.5  # least share of a window's side that it has in common with the next
_SPREAD = 0.125  # standard deviation of the weights, as a share of the side

Shape = tuple[int, int, int]


def sweep(network: Any, volume: Tensor, largest: Shape) -> np.ndarray:
    """(C, D, H, W) float32 -> (D, H, W) uint8 best classes.

    network: an engine; `largest`: the sides of its windows, less where the volume is smaller. The
    probabilities of windows that overlap are weighed by how near their middles are, as a Gaussian.
    Kept are the sums for as many slices as a window is deep, whatever the number of windows.
    """
    sides: Shape = tuple(volume.shape[1:])  # type: ignore[assignment]
    window = window_for(sides, largest, int(network.network.stride))
    beside = [max(0, wanted - side) for wanted, side in zip(window, sides)]
    if any(beside):  # what a volume lacks of a window repeats its last slices, rows and columns
        volume = F.pad(volume[None], (0, beside[2], 0, beside[1], 0, beside[0]), mode="replicate")[
            0
        ]
    weight = weights(window)
    rows, columns, depths = (starts(volume.shape[a + 1], window[a]) for a in (1, 2, 0))
    found = np.empty(tuple(volume.shape[1:]), np.uint8)
    band = torch.zeros(0)
    for place, front in enumerate(depths):
        for top in rows:
            for left in columns:
                at = (slice(top, top + window[1]), slice(left, left + window[2]))
                part = volume[:, front : front + window[0], at[0], at[1]]
                chances = network(part[None].contiguous()).float().cpu()[0].softmax(0)
                if not len(band):
                    band = torch.zeros(len(chances), window[0], *volume.shape[2:])
                band[:, :, at[0], at[1]] += chances * weight
        done = (depths[place + 1] if place + 1 < len(depths) else volume.shape[1]) - front
        found[front : front + done] = highest(band[:, :done].unbind()).numpy()
        band = torch.cat([band[:, done:], torch.zeros_like(band[:, :done])], 1)
    return found[: sides[0], : sides[1], : sides[2]]


def window_for(sides: Shape, largest: Shape, stride: int) -> Shape:
    """The window for a volume: `largest`, but no side longer than the volume needs as a multiple
    of `stride`.
    """
    depth, height, width = (
        min(most, -(-side // stride) * stride) for side, most in zip(sides, largest)
    )
    return depth, height, width


def starts(length: int, side: int) -> list[int]:
    """Where windows begin: as few as overlap by half or more, evenly spread."""
    if length <= side:
        return [0]
    count = 1 + -(-(length - side) // max(1, int(side * (1 - OVERLAP))))
    return [round(at) for at in np.linspace(0, length - side, count).tolist()]


def weights(window: Shape) -> Tensor:
    """(D, H, W) float32: a Gaussian around the middle, 1 there at the most and above 0 all over."""
    lines = []
    for side in window:
        away = (torch.arange(side) + 0.5 - side / 2) / (_SPREAD * side)
        lines.append(torch.exp(-0.5 * away.square()))
    return lines[0][:, None, None] * lines[1][:, None] * lines[2]
