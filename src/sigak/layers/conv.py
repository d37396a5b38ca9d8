"""Convolution, batch norm, activation: the brick of most detectors, pooling at several widths made
of it, and folding it into one layer.

A trained batch norm is a fixed scale and shift per channel, which the convolution before it can
carry in its own kernel and bias: fewer layers, the same output.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

__all__ = ["SPPF", "ConvNorm", "fuse"]


class ConvNorm(nn.Module):
    """(B, c_in, H, W) -> (B, c_out, H/stride, W/stride).

    The padding, (kernel - 1) // 2, keeps the size at stride 1 with odd kernels and halves an even
    size at stride 2. activation: what makes the activation, such as nn.SiLU; nn.Identity for none.
    eps and momentum are batch norm's.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        activation: Callable[[], nn.Module] = nn.SiLU,
        eps: float = 1e-3,
        momentum: float = 0.03,
    ) -> None:
        super().__init__()
        padding = (kernel - 1) // 2
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, padding, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(c_out, eps=eps, momentum=momentum)
        self.act = activation()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x)))  # type: ignore[no-any-return]


class SPPF(nn.Module):
    """Spatial pyramid pooling: windows of 5, 9 and 13 as three pools of 5 in a row."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = ConvNorm(channels, channels // 2)
        self.pool = nn.MaxPool2d(5, 1, padding=2)
        self.merge = ConvNorm(4 * (channels // 2), channels)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.reduce(x)]
        for _ in range(3):
            parts.append(self.pool(parts[-1]))
        return self.merge(torch.cat(parts, 1))  # type: ignore[no-any-return]


def fuse(network: nn.Module) -> nn.Module:
    """A copy of `network` for inference with its batch norms folded into the convolutions.

    Folded are those of ConvNorm, and those that follow a convolution directly in an nn.Sequential;
    all others stay. The copy is in evaluation mode and answers as `network.eval()` does, to
    rounding; `network` itself is untouched.
    """
    copied = deepcopy(network).eval()
    for module in list(copied.modules()):
        if isinstance(module, ConvNorm):
            _fold(module, "conv", "norm")
        elif isinstance(module, nn.Sequential):
            for first, second in pairwise(list(module._modules)):
                _fold(module, first, second)
    return copied


def _fold(parent: nn.Module, first: str, second: str) -> None:
    """Fold the batch norm `second` of `parent` into its convolution `first`, if that they are."""
    conv, norm = getattr(parent, first), getattr(parent, second)
    if (
        isinstance(conv, nn.Conv2d)
        and isinstance(norm, nn.BatchNorm2d)
        and norm.track_running_stats
    ):
        setattr(parent, first, fuse_conv_bn_eval(conv, norm))
        setattr(parent, second, nn.Identity())
