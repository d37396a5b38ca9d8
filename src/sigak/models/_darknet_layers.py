"""The layers of a .cfg as modules; see `sigak.io.darknet` for the file."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sigak.io.darknet import Section
from sigak.structures import SigakError

__all__ = ["Plan", "Pool", "Reorg", "Route", "Shortcut", "build_layer"]

_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "linear": nn.Identity,
    "leaky": lambda: nn.LeakyReLU(0.1),
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "mish": nn.Mish,
    "swish": nn.SiLU,
    "silu": nn.SiLU,
    "logistic": nn.Sigmoid,
    "tanh": nn.Tanh,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "gelu": nn.GELU,
}
# What would change the answer and is not built.
_REFUSED = {
    "convolutional": ("binary", "xnor", "bin_output", "antialiasing", "share_index", "flipped"),
    "maxpool": ("maxpool_depth", "antialiasing"),
    "shortcut": ("weights_type",),
    "reorg": ("reverse", "flatten"),
    "upsample": ("reverse",),
    "dropout": ("dropblock",),
}


class Plan:
    """What is known of the layers so far: the channels and stride of each, whose output is asked
    for later.
    """

    def __init__(self, channels: int) -> None:
        self.channels: list[int] = []
        self.strides: list[int] = []
        self.asked: set[int] = set()
        self._first = channels

    def last(self) -> tuple[int, int]:
        """Channels and stride of what comes into the next layer."""
        return (self.channels[-1], self.strides[-1]) if self.channels else (self._first, 1)

    def add(self, channels: int, stride: int) -> None:
        """The next layer is built."""
        self.channels.append(channels)
        self.strides.append(stride)

    def find(self, section: Section, number: int) -> int:
        """The place of a layer named from the first (0, 1 ...) or from here (-1, -2 ...)."""
        here = len(self.channels)
        place = here + number if number < 0 else number
        if not 0 <= place < here:
            raise SigakError(
                f"[{section.kind}]{section.where}: expected one of the {here} layers before it, "
                f"received {number}"
            )
        self.asked.add(place)
        return place


class Pool(nn.Module):
    """Max-pool padded as Darknet does: by size - 1 in all, the larger half right and below."""

    def __init__(self, size: int, stride: int, padding: int) -> None:
        super().__init__()
        self.size, self.stride = size, stride
        self.before, self.after = padding // 2, padding - padding // 2

    def forward(self, x: Tensor) -> Tensor:
        if self.before == self.after:
            return F.max_pool2d(x, self.size, self.stride, self.before)
        if self.before == 0 and self.stride == self.size:  # the same, without a copy
            return F.max_pool2d(x, self.size, self.stride, ceil_mode=True)
        sides = (self.before, self.after, self.before, self.after)
        return F.max_pool2d(F.pad(x, sides, value=float("-inf")), self.size, self.stride)


class Reorg(nn.Module):
    """(B, C, H, W) -> (B, C s^2, H/s, W/s) in Darknet's own order.

    Darknet reads the memory of its input as C/s^2 maps of s H x s W, takes those apart by the place
    in each square of s x s, and reads the result as C s^2 maps: not the squares of the input.
    """

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        s = self.stride
        squares = x.reshape(batch, channels // (s * s), height, s, width, s)
        apart = squares.permute(0, 3, 5, 1, 2, 4)  # (B, s, s, C/s^2, H, W)
        return apart.reshape(batch, channels * s * s, height // s, width // s)


class Route(nn.Module):
    """Outputs of other layers side by side, each cut to one of `groups` groups of its channels."""

    def __init__(self, sources: Sequence[int], groups: int = 1, group: int = 0) -> None:
        super().__init__()
        self.sources, self.groups, self.group = tuple(sources), groups, group

    def forward(self, inputs: list[Tensor]) -> Tensor:
        if self.groups > 1:
            inputs = [x.chunk(self.groups, 1)[self.group] for x in inputs]
        return inputs[0] if len(inputs) == 1 else torch.cat(inputs, 1)


class Shortcut(nn.Module):
    """The sum of other layers' outputs, then the activation."""

    def __init__(self, sources: Sequence[int], activation: nn.Module) -> None:
        super().__init__()
        self.sources, self.activation = tuple(sources), activation

    def forward(self, inputs: list[Tensor]) -> Tensor:
        return self.activation(sum(inputs[1:], inputs[0]))  # type: ignore[no-any-return]


def build_layer(section: Section, plan: Plan) -> nn.Module:
    """The layer of one section; `plan` learns of it. SigakError for what is not known."""
    build = _BUILDERS.get(section.kind)
    if build is None:
        raise SigakError(
            f"[{section.kind}]{section.where}: there is no such layer here; known are "
            f"{', '.join(_BUILDERS)}, yolo, region"
        )
    for key in _REFUSED.get(section.kind, ()):
        if section.options.get(key, "0") not in ("0", "none"):
            raise SigakError(f"[{section.kind}]{section.where}: {key} is not built here")
    return build(section, plan)


def _activation(section: Section, default: str) -> nn.Module:
    name = section.word("activation", default)
    if name not in _ACTIVATIONS:
        raise SigakError(
            f"[{section.kind}]{section.where}: expected an activation of "
            f"{', '.join(_ACTIVATIONS)}, received {name!r}"
        )
    return _ACTIVATIONS[name]()


def _convolutional(section: Section, plan: Plan) -> nn.Module:
    channels, scale = plan.last()
    filters, size = section.whole("filters", 1), section.whole("size", 1)
    stride, groups = section.whole("stride", 1), section.whole("groups", 1)
    dilation = section.whole("dilation", 1)
    padding = size // 2 if section.whole("pad", 0) else section.whole("padding", 0)
    if min(filters, size, stride, groups, dilation) < 1 or channels % groups or filters % groups:
        raise SigakError(
            f"[convolutional]{section.where}: expected filters, size and stride of at least 1 and "
            f"groups that divide {channels} and {filters} channels, received {section.options}"
        )
    norm = bool(section.whole("batch_normalize", 0))
    plan.add(filters, scale * stride)
    return nn.Sequential(
        nn.Conv2d(
            channels, filters, size, stride, padding * dilation, dilation, groups, bias=not norm
        ),
        nn.BatchNorm2d(filters, momentum=0.03) if norm else nn.Identity(),
        _activation(section, "logistic"),
    )


def _maxpool(section: Section, plan: Plan) -> nn.Module:
    channels, scale = plan.last()
    stride = section.whole("stride", 1)
    size = section.whole("size", stride)
    plan.add(channels, scale * stride)
    return Pool(size, stride, section.whole("padding", size - 1))


def _route(section: Section, plan: Plan) -> nn.Module:
    sources = [plan.find(section, number) for number in section.wholes("layers")]
    groups, group = section.whole("groups", 1), section.whole("group_id", 0)
    channels = [plan.channels[source] for source in sources]
    strides = {plan.strides[source] for source in sources}
    if not 0 <= group < groups or any(c % groups for c in channels) or len(strides) > 1:
        raise SigakError(
            f"[route]{section.where}: expected layers of one size whose channels divide by groups, "
            f"received {channels} channels at strides {sorted(strides)} and {groups} groups"
        )
    plan.add(sum(channels) // groups, strides.pop())
    return Route(sources, groups, group)


def _shortcut(section: Section, plan: Plan) -> nn.Module:
    numbers = [-1, *section.wholes("from")]
    sources = [plan.find(section, number) for number in numbers]
    shapes = {(plan.channels[source], plan.strides[source]) for source in sources}
    if len(shapes) > 1:
        raise SigakError(
            f"[shortcut]{section.where}: expected layers of one shape, received (channels, stride) "
            f"{sorted(shapes)}"
        )
    plan.add(*shapes.pop())
    return Shortcut(sources, _activation(section, "linear"))


def _upsample(section: Section, plan: Plan) -> nn.Module:
    channels, scale = plan.last()
    stride = section.whole("stride", 2)
    plan.add(channels, scale // stride)
    return nn.Upsample(scale_factor=float(stride), mode="nearest")


def _reorg(section: Section, plan: Plan) -> nn.Module:
    channels, scale = plan.last()
    stride = section.whole("stride", 1)
    if channels % stride**2:
        raise SigakError(
            f"[reorg]{section.where}: expected channels that divide by {stride**2}, received "
            f"{channels}"
        )
    plan.add(channels * stride**2, scale * stride)
    return Reorg(stride)


def _avgpool(section: Section, plan: Plan) -> nn.Module:
    plan.add(*plan.last())
    return nn.AdaptiveAvgPool2d(1)


def _dropout(section: Section, plan: Plan) -> nn.Module:
    plan.add(*plan.last())
    return nn.Dropout(section.real("probability", 0.5))


def _passed(section: Section, plan: Plan) -> nn.Module:
    plan.add(*plan.last())
    return nn.Identity()


_BUILDERS = {
    "convolutional": _convolutional,
    "maxpool": _maxpool,
    "route": _route,
    "shortcut": _shortcut,
    "upsample": _upsample,
    "reorg": _reorg,
    "avgpool": _avgpool,
    "dropout": _dropout,
    "softmax": _passed,
    "cost": _passed,
}
