"""Networks that learn against each other: gradients that pass through one of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

__all__ = ["held"]


@contextmanager
def held(network: nn.Module) -> Iterator[None]:
    """What runs through `network` meanwhile passes gradients on and leaves none in it."""
    moving = [p for p in network.parameters() if p.requires_grad]
    for parameter in moving:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in moving:
            parameter.requires_grad_(True)
