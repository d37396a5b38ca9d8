"""What networks that give every pixel its class have in common."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

__all__ = ["Segmenter"]


class Segmenter(nn.Module):
    """A network of logits (B, classes, H, W) for images (B, C, H, W) in [0, 1], whose sides are
    multiples of `stride`.
    """

    head: tuple[str, ...] = ()  # submodules that start fresh where only a backbone is loaded
    stride: ClassVar[int] = 32
    adapts: ClassVar[bool] = False  # learns from pictures of a second domain too
