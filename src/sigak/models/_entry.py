"""Entry, Weights, Input: what one row of a family's MODELS table says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

__all__ = ["Entry", "Input", "Weights", "count_parameters", "init_glorot"]


@dataclass(frozen=True)
class Input:
    """What the network eats by default.

    size (H, W); color "gray", "rgb", "rgba", or "any": the data decides between gray and rgb; mean
    and std per channel in [0, 1] units, applied inside the network; fit and resample: how a picture
    meets the size (see `sigak.io.image.Preparation`); depth: how many slices of `size` a volume has
    that goes through the network at a time, 0 for pictures.
    """

    size: tuple[int, int]
    color: str = "rgb"
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    fit: str = "squash"
    resample: str = "area"
    depth: int = 0

    def sides(self, sign: str = "x") -> str:
        """ "256x256", of volumes "64x64x64"."""
        return sign.join(map(str, [*([self.depth] if self.depth else []), *self.size]))


@dataclass(frozen=True)
class Weights:
    """One set of published weights.

    url and sha256 (whole, or the leading digits the publisher gives); `convert` maps the file's
    state dict to ours; `names` the class names in label order, where they are few and the file
    does not hold them (this needs the sha256, by which the file is known).
    """

    tag: str
    url: str
    sha256: str
    licence: str
    trained_on: str
    classes: int
    score: dict[str, float] = field(default_factory=dict)
    convert: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Entry:
    """One buildable network.

    `build(classes=, channels=, size=, mean=, std=, **args)` returns the network. `parameters` is
    (total, trainable) at the default input with `classes` outputs, total counting batch-norm
    statistics as Keras does. `tiny` holds build arguments of a small form for tests; `recipe`
    changes of the training defaults; `skip` {check: reason} of the zoo checklist; `note` what a
    user should know of this form, such as how its count differs from a namesake elsewhere; `names`
    the classes of its published weights, where the files do not hold them.
    """

    build: Callable[..., nn.Module]
    task: str
    input: Input
    parameters: tuple[int, int]
    classes: int = 1000
    args: dict[str, Any] = field(default_factory=dict)
    weights: tuple[Weights, ...] = ()
    tiny: dict[str, Any] = field(default_factory=dict)
    paper: str = ""
    licence: str = "Apache-2.0"
    recipe: dict[str, Any] = field(default_factory=dict)
    skip: dict[str, str] = field(default_factory=dict)
    note: str = ""
    names: tuple[str, ...] = ()


def count_parameters(network: nn.Module) -> tuple[int, int]:
    """(total, trainable) as Keras counts: total adds the running statistics of batch norm."""
    trainable = sum(p.numel() for p in network.parameters())
    statistics = sum(
        b.numel() for n, b in network.named_buffers() if n.endswith(("running_mean", "running_var"))
    )
    return trainable + statistics, trainable


def init_glorot(module: nn.Module) -> None:
    """Glorot-uniform kernels and zero biases (Glorot and Bengio 2010), Keras's default; for
    `network.apply`.
    """
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
