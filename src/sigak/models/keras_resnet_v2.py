"""ResNetV2 as Keras has it: "Identity mappings in deep residual networks", He et al. 2016.
https://arxiv.org/abs/1603.05027

Batch norm and ReLU stand before the convolutions, so that nothing but sums lies on the way from one
block's input to the next. What Keras does its own way: a stage halves the resolution in its last
block, where the shortcut takes every second pixel, and the last stage not at all; the stem's
convolution has a bias and no batch norm; the border of its max-pool is zeros, which win over
negative values. What differs here: PyTorch's momentum of batch norm.

Input (B, C, H, W) in [0, 1], output (B, classes) logits.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from sigak.io.keras_weights import convert
from sigak.layers.normalize import Normalize
from sigak.models._entry import Entry, Input
from sigak.models.keras_nets import HALF, STORE, weights_of

__all__ = ["MODELS", "Bottleneck", "ResNetV2"]


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1.001e-5)


class Bottleneck(nn.Module):
    """1x1, 3x3 with `stride`, 1x1 convolution, each behind batch norm and ReLU, plus a shortcut.

    project: the shortcut is a 1x1 convolution; else it is the input, every `stride`-th pixel of it.
    (B, inputs, H, W) -> (B, 4 * width, ceil(H/stride), ceil(W/stride)).
    """

    def __init__(self, inputs: int, width: int, stride: int = 1, project: bool = False) -> None:
        super().__init__()
        self.stride = stride
        self.norm1 = _norm(inputs)
        self.project = nn.Conv2d(inputs, 4 * width, 1, stride) if project else None
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.norm2 = _norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.norm3 = _norm(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.norm1(x))
        shortcut = self.project(active) if self.project else x[:, :, :: self.stride, :: self.stride]
        active = F.relu(self.norm2(self.conv1(active)))
        active = F.relu(self.norm3(self.conv2(active)))
        return shortcut + self.conv3(active)  # type: ignore[no-any-return]


class ResNetV2(nn.Module):
    """Stem, four stages of `depths` bottlenecks, `width` doubling from stage to stage, a dense
    layer.
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
        depths: Sequence[int],
        width: int = 64,
    ) -> None:
        super().__init__()
        self.normalize = Normalize(mean, std)
        self.stem = nn.Conv2d(channels, width, 7, 2, padding=3)
        self.stages = nn.Sequential()
        last = width
        for stage, depth in enumerate(depths):
            blocks = nn.Sequential(Bottleneck(last, width * 2**stage, project=True))
            last = 4 * width * 2**stage
            stride = 1 if stage == len(depths) - 1 else 2
            for place in range(1, depth):
                halve = stride if place == depth - 1 else 1
                blocks.append(Bottleneck(last, width * 2**stage, halve))
            self.stages.append(blocks)
        self.norm = _norm(last)
        self.classifier = nn.Linear(last, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # He et al. 2015, https://arxiv.org/abs/1502.01852
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(self.normalize(images))
        x = F.max_pool2d(F.pad(x, (1, 1, 1, 1)), 3, 2)  # zeros, not the pool's own -inf
        x = F.relu(self.norm(self.stages(x)))
        return self.classifier(x.mean((2, 3)))  # type: ignore[no-any-return]


# Keras's parts of a block, in front of which stands conv2_block1_ and so on.
_PARTS = {
    "preact_bn": "norm1",
    "0_conv": "project",
    "1_conv": "conv1",
    "1_bn": "norm2",
    "2_conv": "conv2",
    "2_bn": "norm3",
    "3_conv": "conv3",
}


def _name_of(layer: str) -> str:
    if found := re.fullmatch(r"conv(\d)_block(\d+)_(\w+)", layer):
        return f"stages.{int(found[1]) - 2}.{int(found[2]) - 1}.{_PARTS[found[3]]}"
    return {"conv1_conv": "stem", "post_bn": "norm", "predictions": "classifier"}[layer]


def _row(layers: int, depths: tuple[int, ...], parameters: tuple[int, int]) -> Entry:
    url = f"{STORE}/resnet/resnet{layers}v2_weights_tf_dim_ordering_tf_kernels.h5"
    conversion = partial(convert, name_of=_name_of, prefix="")
    return Entry(
        build=ResNetV2,
        task="classify",
        input=Input((224, 224), "rgb", *HALF),
        parameters=parameters,
        args={"depths": depths},
        weights=(weights_of(url, "BSD-3-Clause", conversion),),
        tiny={"depths": (2, 2, 2, 2), "width": 4, "size": (32, 32)},
        paper="https://arxiv.org/abs/1603.05027",
        note="the strides, biases and borders of Keras, for its weights; its count exactly",
    )


MODELS = {
    "resnet50v2-keras": _row(50, (3, 4, 6, 3), (25_613_800, 25_568_360)),
    "resnet101v2-keras": _row(101, (3, 4, 23, 3), (44_675_560, 44_577_896)),
    "resnet152v2-keras": _row(152, (3, 8, 36, 3), (60_380_648, 60_236_904)),
}
