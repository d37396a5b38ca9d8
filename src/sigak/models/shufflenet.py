"""ShuffleNet (v1): "ShuffleNet: an extremely efficient convolutional neural network for mobile
devices", Zhang et al. 2017. https://arxiv.org/abs/1707.01083

Residual units whose 1x1 convolutions work in groups; a channel shuffle between them lets the groups
talk. More groups allow more channels at the same cost (table 1: 1, 2, 3, 4 or 8 groups).

Input (B, C, H, W) in [0, 1], output (B, classes) logits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sigak.layers.normalize import Normalize
from sigak.models._entry import Entry, Input
from sigak.structures import SigakError

__all__ = ["MODELS", "ShuffleNet", "ShuffleUnit", "shuffle_channels"]

# groups: channels of the second stage; each later stage has twice as many.
_CHANNELS = {1: 144, 2: 200, 3: 240, 4: 272, 8: 384}


def shuffle_channels(x: Tensor, groups: int) -> Tensor:
    """Deal the channels out as cards: (B, C, H, W) -> the same, every group seeing all groups."""
    batch, channels, height, width = x.shape
    x = x.view(batch, groups, channels // groups, height, width)
    return x.transpose(1, 2).reshape(batch, channels, height, width)


class ShuffleUnit(nn.Module):
    """1x1 in groups, shuffle, 3x3 depthwise, 1x1 in groups, around a shortcut.

    With stride 1 the shortcut is added; with stride 2 it is average-pooled and concatenated, so the
    branch makes the missing channels only. (B, inputs, H, W) -> (B, outputs, ceil(H/stride),
    ceil(W/stride)).
    """

    def __init__(
        self, inputs: int, outputs: int, *, groups: int, stride: int, group_first: bool = True
    ) -> None:
        super().__init__()
        self.groups, self.stride = groups, stride
        middle = outputs // 4  # the bottleneck
        made = outputs if stride == 1 else outputs - inputs
        first_groups = groups if group_first else 1
        self.reduce = _conv(inputs, middle, 1, groups=first_groups)
        self.depthwise = _conv(middle, middle, 3, stride=stride, groups=middle)
        self.expand = _conv(middle, made, 1, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        y = shuffle_channels(F.relu(self.reduce(x)), self.groups)
        y = self.expand(self.depthwise(y))
        if self.stride == 1:
            return F.relu(x + y)
        shortcut = F.avg_pool2d(x, 3, self.stride, padding=1)
        return F.relu(torch.cat([shortcut, y], 1))


def _conv(inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int) -> nn.Sequential:
    """Convolution and batch norm."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    )


class ShuffleNet(nn.Module):
    """A stem of stride 4, three stages of shuffle units, a dense layer.

    groups: 1, 2, 3, 4 or 8; width: share of the published channels (the paper has 0.25, 0.5 and 1);
    units: how many a stage has.
    """

    head = ("classifier",)

    def __init__(
        self,
        *,
        classes: int,
        channels: int,
        size: tuple[int, int],
        mean: Sequence[float],
        std: Sequence[float],
        groups: int = 3,
        width: float = 1.0,
        units: Sequence[int] = (4, 8, 4),
    ) -> None:
        super().__init__()
        first = _first_channels(groups, width)
        self.normalize = Normalize(mean, std)
        self.stem = nn.Sequential(
            _conv(channels, 24, 3, stride=2, groups=1),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, padding=1),
        )
        self.stages = nn.Sequential()
        last = 24
        for i, count in enumerate(units):
            outputs = first * 2**i
            # The stem's channels are too few to be grouped (section 3.3 of the paper).
            entrance = ShuffleUnit(last, outputs, groups=groups, stride=2, group_first=i > 0)
            rest = [
                ShuffleUnit(outputs, outputs, groups=groups, stride=1) for _ in range(count - 1)
            ]
            self.stages.append(nn.Sequential(entrance, *rest))
            last = outputs
        self.classifier = nn.Linear(last, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # He et al. 2015, https://arxiv.org/abs/1502.01852
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(self.normalize(images))  # (B, 24, H/4, W/4)
        x = self.stages(x)  # (B, 960, H/32, W/32) with 3 groups
        return self.classifier(x.mean((2, 3)))  # type: ignore[no-any-return]


def _first_channels(groups: int, width: float) -> int:
    """Channels of the first stage's units; SigakError where the groups do not divide them."""
    if groups not in _CHANNELS:
        raise SigakError(f"shufflenet comes with 1, 2, 3, 4 or 8 groups, received {groups}")
    channels = int(_CHANNELS[groups] * width)
    if channels <= 24 or channels % (4 * groups):  # the stem gives 24, a bottleneck is a quarter
        raise SigakError(
            f"shufflenet's width {width} gives {channels} channels, expected more than 24 and a "
            f"multiple of {4 * groups} for {groups} groups; give another, such as 0.5 with 3 groups"
        )
    return channels


def _row(groups: int, total: int, trainable: int) -> Entry:
    return Entry(
        build=ShuffleNet,
        task="classify",
        input=Input((224, 224), "rgb", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "crop"),
        parameters=(total, trainable),
        args={"groups": groups},
        tiny={"units": (2, 2, 2), "size": (64, 64)},
        paper="https://arxiv.org/abs/1707.01083",
    )


MODELS = {
    "shufflenet": _row(3, 1_890_208, 1_865_728),
    "shufflenet-g1": _row(1, 1_546_624, 1_531_936),
    "shufflenet-g2": _row(2, 1_754_248, 1_733_848),
    "shufflenet-g4": _row(4, 1_996_088, 1_968_344),
    "shufflenet-g8": _row(8, 2_473_936, 2_434_768),
}
