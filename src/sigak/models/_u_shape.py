"""The way of a U-Net: down, and up again with what was seen on the way down."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

__all__ = ["down_and_up"]


def down_and_up(
    maps: Tensor,
    down: Iterable[nn.Module],
    pool: Callable[[Tensor], Tensor],
    widen: Iterable[nn.Module],
    up: Iterable[nn.Module],
) -> Tensor:
    """Pictures (B, C, H, W) or volumes (B, C, D, H, W) through the levels `down`, halved by `pool`
    between them, and back: doubled by `widen`, joined to the maps of their size, through `up`.
    """
    kept: list[Tensor] = []
    for level in down:
        maps = level(pool(maps) if kept else maps)
        kept.append(maps)
    for larger, level, across in zip(widen, up, reversed(kept[:-1]), strict=True):
        maps = level(torch.cat([across, larger(maps)], 1))
    return maps
