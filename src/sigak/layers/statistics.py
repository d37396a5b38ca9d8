"""Batch norms that were folded into their convolutions, made fit for training again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sigak.layers.conv import ConvNorm

__all__ = ["restore_statistics"]


@torch.no_grad()
def restore_statistics(network: nn.Module, images: Tensor) -> None:
    """Give batch norms that were folded away the statistics of `images` (B, C, H, W) in [0, 1].

    What the network answers stays the same to rounding. It makes weights from an ONNX file fit for
    training, where batch norm takes its statistics from the batch: mean and variance are measured
    on the pictures, scale and shift take their opposite. Some 16 pictures of the kind to be learnt
    are enough.
    """

    def measure(block: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        norm: Any = block.norm
        x = block.conv(inputs[0])
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        shift = norm.bias - scale * norm.running_mean
        norm.running_mean.copy_(x.mean((0, 2, 3)))
        norm.running_var.copy_(x.var((0, 2, 3)))
        norm.weight.copy_(scale * (norm.running_var + norm.eps).sqrt())
        norm.bias.copy_(shift + scale * norm.running_mean)

    blocks = [m for m in network.modules() if isinstance(m, ConvNorm)]
    hooks = [block.register_forward_hook(measure) for block in blocks]
    training = network.training
    try:
        network.eval()(images)
    finally:
        network.train(training)
        for hook in hooks:
            hook.remove()
