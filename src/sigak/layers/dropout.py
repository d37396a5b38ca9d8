"""Dropout with a mask that is cheap to draw on a CPU.

The stock layer draws a random number per element, one after another on one core: in a small network
that is a tenth of the training step. Here one draw of 64 random bits serves four elements.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["Dropout"]


class Dropout(nn.Dropout):
    """Dropout (Srivastava et al., 2014) with a cheap mask on a CPU; elsewhere it is nn.Dropout.

    The probability to keep is rounded to a multiple of 1/65536 and what is kept is divided by the
    rounded probability, so the expectation is that of the input. Any shape, any floating dtype;
    repeatable under `torch.manual_seed`.
    """

    def forward(self, input: Tensor) -> Tensor:
        keep = round((1 - self.p) * 65536)
        stock = self.inplace or input.device.type != "cpu" or torch.compiler.is_compiling()
        if stock or not self.training or not 0 < keep < 65536:
            return super().forward(input)
        return input * _keep_mask(input, keep)


def _keep_mask(like: Tensor, keep: int) -> Tensor:
    """A mask in the shape, memory order and dtype of `like`: 65536/keep at keep/65536, else 0."""
    stride = torch.empty_like(like, device="meta").stride()  # the order of `like`, without gaps
    words = torch.empty((like.numel() + 3) // 4, dtype=torch.int64)
    words.random_(-(2**63), None)  # one draw fills 64 bits, four elements' worth
    bits = words.view(torch.int16).as_strided(like.shape, stride)
    return (bits < keep - 32768).to(like.dtype).mul_(65536 / keep)
