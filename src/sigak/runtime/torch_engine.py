"""PyTorch as an engine: the network as it is, or a copy made for speed."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sigak.layers.conv import fuse

__all__ = ["Engine", "FusedEngine", "TorchEngine"]


class Engine(Protocol):
    """Anything that turns images into a network's raw output.

    `network` is the module that knows how to read that output; it need not be what computes it.
    """

    device: torch.device
    network: nn.Module

    def __call__(self, images: Tensor) -> Any: ...


class TorchEngine:
    """A PyTorch network in evaluation mode, without gradients, in float32 and channels_last
    memory, that of volumes in channels_last_3d.
    """

    def __init__(self, network: nn.Module, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        deep = any(isinstance(module, nn.Conv3d) for module in network.modules())
        layout = torch.channels_last_3d if deep else torch.channels_last
        self.network = network.to(self.device).to(memory_format=layout)

    def __call__(self, images: Tensor) -> Any:
        training = self.network.training
        self.network.eval()
        try:
            with torch.inference_mode():
                return self.network(images)
        finally:
            self.network.train(training)


class FusedEngine:
    """A copy of a PyTorch network with batch norm folded into the convolutions, in float32 or
    bfloat16 and channels_last memory. Raw output is float32 again.
    """

    def __init__(
        self,
        network: nn.Module,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.device = torch.device(device)
        self.network = network
        self.dtype = dtype
        fused = fuse(network).to(self.device, dtype)
        self._fused = fused.to(memory_format=torch.channels_last)

    def __call__(self, images: Tensor) -> Any:
        with torch.inference_mode():
            return _float(self._fused(images.to(self.dtype)))


def _float(raw: Any) -> Any:
    return raw.float() if isinstance(raw, Tensor) else [_float(part) for part in raw]
