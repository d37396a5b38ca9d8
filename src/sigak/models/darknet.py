"""DarkNet-19 and DarkNet-53, the backbones of YOLOv2 and YOLOv3 as classifiers.

DarkNet-19: "YOLO9000: better, faster, stronger", Redmon and Farhadi 2016, table 6,
https://arxiv.org/abs/1612.08242. DarkNet-53: "YOLOv3: an incremental improvement", Redmon and
Farhadi 2018, table 1, https://arxiv.org/abs/1804.02767. Every convolution is followed by batch norm
and a leaky ReLU.

What differs here: DarkNet-19 averages over the picture before its last 1x1 convolution instead of
after it. Both are linear, so the logits are the same, and the layer is a plain dense one.

Input (B, C, H, W) in [0, 1], output (B, classes) logits.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import Tensor, nn

from sigak.layers.normalize import Normalize
from sigak.models._entry import Entry, Input, Weights

__all__ = ["MODELS", "DarkNet19", "DarkNet53", "Residual", "conv_block"]

# (first filters of the stage, convolutions): 3x3 with all filters and 1x1 with half in turn.
_STAGES_19 = ((32, 1), (64, 1), (128, 3), (256, 3), (512, 5), (1024, 5))
# (filters, residual blocks) of the stages, each entered by a 3x3 convolution with stride 2.
_STAGES_53 = ((64, 1), (128, 2), (256, 8), (512, 8), (1024, 4))


def conv_block(
    inputs: int, outputs: int, kernel: int, stride: int = 1, slope: float = 0.1
) -> nn.Sequential:
    """Convolution, batch norm, leaky ReLU: (B, inputs, H, W) -> (B, outputs, H/stride,
    W/stride).
    """
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.LeakyReLU(slope),
    )


class DarkNet19(nn.Module):
    """19 convolutions in six stages with a 2x2 max-pool between them; 32 pixels become one.

    width: share of the published filters.
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
        width: float = 1.0,
    ) -> None:
        super().__init__()
        self.normalize = Normalize(mean, std)
        self.stages = nn.Sequential()
        last = channels
        for filters, convolutions in _STAGES_19:
            stage = nn.Sequential() if last == channels else nn.Sequential(nn.MaxPool2d(2))
            for i in range(convolutions):
                outputs = int(filters * width) // (1 + i % 2)
                stage.append(conv_block(last, outputs, 3 - 2 * (i % 2)))
                last = outputs
            self.stages.append(stage)
        self.classifier = nn.Linear(last, classes)
        _init(self)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stages(self.normalize(images))  # (B, 1024, H/32, W/32)
        return self.classifier(x.mean((2, 3)))  # type: ignore[no-any-return]


class Residual(nn.Module):
    """1x1 convolution to half the channels, 3x3 back, plus the input; the shape stays."""

    def __init__(self, channels: int, slope: float) -> None:
        super().__init__()
        self.reduce = conv_block(channels, channels // 2, 1, slope=slope)
        self.expand = conv_block(channels // 2, channels, 3, slope=slope)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.expand(self.reduce(x))  # type: ignore[no-any-return]


class DarkNet53(nn.Module):
    """52 convolutions in a stem and five stages of residual blocks, and a dense layer.

    width: share of the published filters; slope: of the leaky ReLU on its left.
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
        width: float = 1.0,
        slope: float = 0.1,
    ) -> None:
        super().__init__()
        self.normalize = Normalize(mean, std)
        last = int(32 * width)
        self.stem = conv_block(channels, last, 3, slope=slope)
        self.stages = nn.Sequential()
        for filters, blocks in _STAGES_53:
            outputs = int(filters * width)
            stage = nn.Sequential(conv_block(last, outputs, 3, stride=2, slope=slope))
            stage.extend(Residual(outputs, slope) for _ in range(blocks))
            self.stages.append(stage)
            last = outputs
        self.classifier = nn.Linear(last, classes)
        _init(self)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stages(self.stem(self.normalize(images)))  # (B, 1024, H/32, W/32)
        return self.classifier(x.mean((2, 3)))  # type: ignore[no-any-return]


def _init(network: nn.Module) -> None:
    """He-normal kernels (He et al. 2015, https://arxiv.org/abs/1502.01852)."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, a=0.1, mode="fan_out")


def _from_timm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """timm's names of DarkNet-53 -> ours."""
    return {_our_name(name): value for name, value in state.items()}


def _our_name(name: str) -> str:
    name = name.replace(".conv.", ".0.").replace(".bn.", ".1.")
    name = name.replace("stem.conv1.", "stem.").replace("head.fc.", "classifier.")
    name = name.replace("conv_down.", "0.").replace("conv1.", "reduce.").replace("conv2", "expand")
    # A stage's first module halves the resolution, so its blocks are counted from 1.
    return re.sub(r"blocks\.(\d+)", lambda found: str(int(found[1]) + 1), name)


MODELS = {
    "darknet19": Entry(
        build=DarkNet19,
        task="classify",
        input=Input((224, 224)),
        parameters=(20_856_776, 20_842_376),
        tiny={"width": 1 / 16, "size": (64, 64)},
        paper="https://arxiv.org/abs/1612.08242",
    ),
    "darknet53": Entry(
        build=DarkNet53,
        task="classify",
        input=Input((256, 256), "rgb", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "crop"),
        parameters=(41_645_640, 41_609_928),
        args={"slope": 0.01},
        weights=(
            Weights(
                tag="c2ns_in1k",
                url="https://huggingface.co/timm/darknet53.c2ns_in1k/resolve/main/model.safetensors",
                sha256="",  # the hub publishes none beside its files
                licence="apache-2.0",
                trained_on="ImageNet-1k",
                classes=1000,
                convert=_from_timm,
            ),
        ),
        tiny={"width": 1 / 16, "size": (64, 64)},
        paper="https://arxiv.org/abs/1804.02767",
        note="leaky ReLU of slope 0.01, as its published weights expect; the paper has 0.1",
    ),
}
