"""MobileNet (v1): "MobileNets: efficient convolutional neural networks for mobile vision
applications", Howard et al. 2017. https://arxiv.org/abs/1704.04861

Thirteen blocks of a 3x3 depthwise and a 1x1 convolution, each with batch norm and ReLU6. The
paper's two knobs are here: `width` (its alpha) thins every layer, and any resolution will do.

Input (B, C, H, W) in [0, 1], output (B, classes) logits.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from sigak.layers.normalize import Normalize
from sigak.models._entry import Entry, Input, Weights

__all__ = ["MODELS", "MobileNet", "separable"]

# (filters, stride) of the blocks (table 1).
_BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2),
           (1024, 1))  # fmt: skip


def separable(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """Depthwise 3x3 and pointwise 1x1 convolution, batch norm and ReLU6 after each: (B, inputs, H,
    W) -> (B, outputs, ceil(H/stride), ceil(W/stride)).
    """
    return nn.Sequential(
        nn.Conv2d(inputs, inputs, 3, stride, padding=1, groups=inputs, bias=False),
        nn.BatchNorm2d(inputs),
        nn.ReLU6(),
        nn.Conv2d(inputs, outputs, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU6(),
    )


class MobileNet(nn.Module):
    """A convolution of stride 2, thirteen separable blocks, a dense layer; 32 pixels become one.

    width: share of the published filters, such as 0.25, 0.5, 0.75.
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
        last = int(32 * width)
        self.stem = nn.Sequential(
            nn.Conv2d(channels, last, 3, 2, padding=1, bias=False), nn.BatchNorm2d(last), nn.ReLU6()
        )
        self.blocks = nn.Sequential()
        for filters, stride in _BLOCKS:
            self.blocks.append(separable(last, int(filters * width), stride))
            last = int(filters * width)
        self.dropout = nn.Dropout(1e-3)
        self.classifier = nn.Linear(last, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # He et al. 2015, https://arxiv.org/abs/1502.01852
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        x = self.blocks(self.stem(self.normalize(images)))  # (B, 1024, H/32, W/32)
        return self.classifier(self.dropout(x.mean((2, 3))))  # type: ignore[no-any-return]


# Blocks before each of timm's five stages.
_STAGE_START = (0, 1, 3, 5, 11)
_LAYERS = {"conv_dw": "0", "bn1": "1", "conv_pw": "3", "bn2": "4"}


def _from_timm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """timm's names of its mobilenetv1_100 -> ours."""
    return {_our_name(name): value for name, value in state.items()}


def _our_name(name: str) -> str:
    parts = name.split(".")
    if parts[0] == "blocks" and len(parts) == 5 and parts[3] in _LAYERS:
        block = _STAGE_START[int(parts[1])] + int(parts[2])
        return f"blocks.{block}.{_LAYERS[parts[3]]}.{parts[4]}"
    return name.replace("conv_stem.", "stem.0.").replace("bn1.", "stem.1.")


_TIMM = Weights(
    tag="ra4_e3600_r224_in1k",
    url="https://huggingface.co/timm/mobilenetv1_100.ra4_e3600_r224_in1k/resolve/main/model.safetensors",
    sha256="",  # the hub publishes none beside its files
    licence="apache-2.0",
    trained_on="ImageNet-1k",
    classes=1000,
    convert=_from_timm,
)


def _row(width: float, parameters: tuple[int, int], *weights: Weights) -> Entry:
    return Entry(
        build=MobileNet,
        task="classify",
        input=Input((224, 224), "rgb", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "crop"),
        parameters=parameters,
        args={"width": width},
        weights=weights,
        tiny={"width": 1 / 8, "size": (64, 64)},
        paper="https://arxiv.org/abs/1704.04861",
    )


MODELS = {
    "mobilenet": _row(1.0, (4_253_864, 4_231_976), _TIMM),
    "mobilenet-0.75": _row(0.75, (2_601_976, 2_585_560)),
    "mobilenet-0.50": _row(0.5, (1_342_536, 1_331_592)),
    "mobilenet-0.25": _row(0.25, (475_544, 470_072)),
}
