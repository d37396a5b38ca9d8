"""ResNet for 32x32 pictures: "Deep residual learning for image recognition", section 4.2, He et al.
2015. https://arxiv.org/abs/1512.03385

A 3x3 convolution, three stages of n residual blocks with 16, 32 and 64 filters at full, half and
quarter resolution, global average pooling, one dense layer: 6n + 2 layers with weights. Shortcuts
are the paper's option A everywhere: where the shape changes they take every second pixel and pad
the new channels with zeros, so they have no parameters.

Input (B, C, H, W) in [0, 1], output (B, classes) logits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from sigak.layers.normalize import Normalize
from sigak.models._entry import Entry, Input, Weights

__all__ = ["MODELS", "BasicBlock", "ResNetCifar"]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm around a shortcut of option A.

    (B, inputs, H, W) -> (B, outputs, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.new_channels = outputs - inputs
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))

    def shortcut(self, x: Tensor) -> Tensor:
        """Option A: every `stride`-th pixel, the new channels zero, half of them on each side."""
        before = self.new_channels // 2
        padding = (0, 0, 0, 0, before, self.new_channels - before)
        return F.pad(x[:, :, :: self.stride, :: self.stride], padding)


class ResNetCifar(nn.Module):
    """`blocks` residual blocks in each stage; widths are the stages' filters."""

    head = ("linear",)

    def __init__(
        self,
        *,
        classes: int,
        channels: int,
        size: tuple[int, int],
        mean: Sequence[float],
        std: Sequence[float],
        blocks: int = 3,
        widths: Sequence[int] = (16, 32, 64),
    ) -> None:
        super().__init__()
        self.normalize = Normalize(mean, std)
        self.conv1 = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layer1 = _stage(widths[0], widths[0], blocks, stride=1)
        self.layer2 = _stage(widths[0], widths[1], blocks, stride=2)
        self.layer3 = _stage(widths[1], widths[2], blocks, stride=2)
        self.linear = nn.Linear(widths[2], classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # He et al. 2015, https://arxiv.org/abs/1502.01852
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(self.normalize(images))))  # (B, 16, H, W)
        x = self.layer3(self.layer2(self.layer1(x)))  # (B, 64, H/4, W/4)
        return self.linear(x.mean((2, 3)))  # type: ignore[no-any-return]


def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    rest = [BasicBlock(outputs, outputs, 1) for _ in range(blocks - 1)]
    return nn.Sequential(BasicBlock(inputs, outputs, stride), *rest)


# The paper's 64,000 steps of 128 pictures are 164 epochs of 50,000.
_RECIPE = {
    "optimizer": "sgd",
    "lr": 0.1,
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "batch": 128,
    "epochs": 164,
    "schedule": "step",
    "augment": "flip=h,crop=4",
}
_RESNET20 = Weights(
    tag="idelbayev_cifar10",
    url="https://github.com/akamaster/pytorch_resnet_cifar10/raw/master/pretrained_models/resnet20-12fca82f.th",
    sha256="12fca82f0bebc4135bf1f32f6e3710e61d5108578464b84fd6d7f5c1b04036c8",
    licence="BSD-2-Clause",
    trained_on="CIFAR-10",
    classes=10,
    score={"top1": 91.73},
    convert=dict,  # the file has our names
    names=(
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    ),
)


def _row(blocks: int, total: int, trainable: int, *weights: Weights) -> Entry:
    return Entry(
        build=ResNetCifar,
        task="classify",
        # The published weights expect ImageNet's mean and spread.
        input=Input((32, 32), "rgb", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        parameters=(total, trainable),
        classes=10,
        args={"blocks": blocks},
        weights=weights,
        tiny={"blocks": 2, "widths": (4, 8, 16), "size": (16, 16)},
        paper="https://arxiv.org/abs/1512.03385",
        recipe=_RECIPE,
    )


MODELS = {
    "resnet20-cifar": _row(3, 271_098, 269_722, _RESNET20),
    "resnet32-cifar": _row(5, 466_426, 464_154),
    "resnet44-cifar": _row(7, 661_754, 658_586),
    "resnet56-cifar": _row(9, 857_082, 853_018),
    "resnet110-cifar": _row(18, 1_736_058, 1_727_962),
}
