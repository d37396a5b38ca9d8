"""What one picture costs in a network: its depth, multiply-adds and memory, counted without running
it on data.

The network is built on PyTorch's meta device, which knows shapes and holds no numbers, and every
call is watched as one picture passes through.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from sigak import models

__all__ = ["Complexity", "measure"]

# Functions that stand for a layer with weights, and how many such layers lie one behind another in
# each. Recurrence counts once, however many steps it takes.
_LAYERS = {
    "conv1d": 1,
    "conv2d": 1,
    "conv3d": 1,
    "conv_transpose1d": 1,
    "conv_transpose2d": 1,
    "conv_transpose3d": 1,
    "linear": 1,
    "lstm": 1,
    "gru": 1,
    "multi_head_attention_forward": 2,  # into queries, keys and values; out of the heads
}


@dataclass(frozen=True)
class Complexity:
    """depth: layers with weights on the longest path (convolutions, dense and recurrent layers; not
    norms); multiply_adds of one picture; widest: numbers that go into and come out of the largest
    single call, for one picture.
    """

    depth: int
    multiply_adds: int
    widest: int


def measure(name: str) -> Complexity:
    """Count the network `name` at its own input size."""
    with torch.device("meta"):
        network = models.create(name).eval()
        image = torch.zeros(1, *models.input_shape(network, models.arguments(name)))
        flops = FlopCounterMode(display=False)
        with torch.no_grad(), flops, _Paths() as paths:
            network(image)
    return Complexity(paths.deepest, flops.get_total_flops() // 2, paths.widest)


class _Paths(TorchFunctionMode):
    """Follow every tensor: its depth is the largest of what it was made from, plus its layer."""

    def __init__(self) -> None:
        super().__init__()
        self.deepest = self.widest = 0
        self._depths: dict[int, int] = {}
        self._kept: list[Tensor] = []  # what is alive keeps its id; on the meta device it is small

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        sources = list(_tensors([args, kwargs or {}]))
        made = list(_tensors(result))
        depth = max((self._depths.get(id(t), 0) for t in sources), default=0)
        depth += _LAYERS.get(getattr(function, "__name__", ""), 0)
        for tensor in made:
            self._depths[id(tensor)] = depth
        self._kept += made
        self.deepest = max(self.deepest, depth)
        images = [t for t in (*sources, *made) if not isinstance(t, torch.nn.Parameter)]
        self.widest = max(self.widest, sum(t.numel() for t in images))
        return result


def _tensors(value: object) -> Iterator[Tensor]:
    """Every tensor in nested sequences and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)
