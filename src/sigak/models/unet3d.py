"""3-D U-Net: "3D U-Net: learning dense volumetric segmentation from sparse annotation", Çiçek et
al. 2016, https://arxiv.org/abs/1606.06650.

Two 3x3x3 convolutions a level, the second twice as wide, so that channels are doubled before the
2x2x2 max-pooling and not after it; 2x2x2 transposed convolutions up, the levels of the way down
joined to those of the way up; batch norm before every ReLU. What differs here: convolutions pad, so
that the answer is as large as the volume (the paper's shrinks from 132 to 44 voxels).

The paper counts 19,069,955 parameters with three channels and three classes. Here these are the
kernels, one shift of batch norm for each channel of a 3x3x3 convolution (in the place of its bias),
and three biases at the end; the transposed convolutions have none. Batch norm's 2,336 scales come
on top.

Input (B, C, D, H, W) in [0, 1], D, H and W multiples of 8; output (B, classes, D, H, W) logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from sigak.layers.normalize import Normalize
from sigak.models._entry import Entry, Input
from sigak.models._u_shape import down_and_up

__all__ = ["MODELS", "UNet3d"]


class UNet3d(nn.Module):
    """width: channels of the first convolution; levels: how many resolutions there are; depth: the
    number of slices D it is tried out with, beside `size`.
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
        depth: int,
        width: int = 32,
        levels: int = 4,
    ) -> None:
        super().__init__()
        self.stride = 2 ** (levels - 1)
        self.input_shape = (channels, depth, *size)
        self.normalize = Normalize(mean, std, axes=3)
        self.down = nn.ModuleList()
        self.widen = nn.ModuleList()
        self.up = nn.ModuleList()
        last, widths = channels, [width * 2**level for level in range(levels + 1)]
        for inner, outer in pairwise(widths):
            self.down.append(_level(last, inner, outer))
            last = outer
        for width in reversed(widths[1:-1]):
            self.widen.append(nn.ConvTranspose3d(last, last, 2, stride=2, bias=False))
            self.up.append(_level(width + last, width, width))
            last = width
        self.pool = nn.MaxPool3d(2)
        self.classifier = nn.Conv3d(last, classes, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        nn.init.zeros_(self.classifier.bias)  # type: ignore[arg-type]

    def forward(self, volumes: Tensor) -> Tensor:
        maps = down_and_up(self.normalize(volumes), self.down, self.pool, self.widen, self.up)
        return self.classifier(maps)  # type: ignore[no-any-return]


def _level(channels: int, inner: int, outer: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in ((channels, inner), (inner, outer)):
        layers.append(nn.Conv3d(before, after, 3, padding=1, bias=False))
        layers += [nn.BatchNorm3d(after), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def _row(
    side: int, parameters: tuple[int, int], note: str, args: dict[str, int], epochs: int
) -> Entry:
    return Entry(
        build=UNet3d,
        task="segment_volume",
        input=Input((side, side), "gray", (0.5,), (0.25,), depth=side),
        parameters=parameters,
        classes=3,
        args={"depth": side, **args},
        tiny={"width": 4, "levels": 3, "size": (8, 8), "depth": 8},
        paper="https://arxiv.org/abs/1606.06650",
        recipe={
            "lr": 2e-3,
            "batch": 2,
            "epochs": epochs,
            "weight_decay": 1e-4,
            "loss": "ce+dice",
            "augment": "flip=dhw,brightness=0.1,contrast=0.1",
        },
        skip={"export": "the engines and the comparison of exported files are for pictures"},
        note=note,
    )


MODELS = {
    "unet3d": _row(
        64, (19_075_235, 19_070_563),
        "convolutions pad; the paper's 19,069,955 are counted without batch norm's scales, with "
        "three channels and classes",
        {}, 100,
    ),
    "unet3d-small": _row(
        32, (1_194_155, 1_192_987), "a quarter of the paper's channels: learns on one core",
        {"width": 8}, 20,
    ),
}  # fmt: skip
