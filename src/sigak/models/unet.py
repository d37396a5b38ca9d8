"""U-Net: "U-Net: convolutional networks for biomedical image segmentation", Ronneberger et al.
2015, https://arxiv.org/abs/1505.04597.

Two 3x3 convolutions a level, 2x2 max-pooling down and 2x2 transposed convolutions up, the levels of
the way down joined to those of the way up. What differs here: convolutions pad, so that the answer
is as large as the picture (the paper's shrinks from 572 to 388 pixels), and batch norm follows each
of them; `norm=False` leaves it out as the paper does.

Input (B, C, H, W) in [0, 1], H and W multiples of 16; output (B, classes, H, W) logits.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from sigak.layers.normalize import Normalize
from sigak.models._entry import Entry, Input
from sigak.models._segmenter import Segmenter
from sigak.models._u_shape import down_and_up

__all__ = ["MODELS", "UNet"]


class UNet(Segmenter):
    """widths: channels of the levels, from the top to the bottom."""

    head = ("classifier",)

    def __init__(
        self,
        *,
        classes: int,
        channels: int,
        size: tuple[int, int],
        mean: Sequence[float],
        std: Sequence[float],
        widths: Sequence[int] = (64, 128, 256, 512, 1024),
        norm: bool = True,
    ) -> None:
        super().__init__()
        self.stride = 2 ** (len(widths) - 1)  # type: ignore[misc]
        self.normalize = Normalize(mean, std)
        self.down = nn.ModuleList()
        self.widen = nn.ModuleList()
        self.up = nn.ModuleList()
        last = channels
        for width in widths:
            self.down.append(_level(last, width, norm))
            last = width
        for width in reversed(widths[:-1]):
            self.widen.append(nn.ConvTranspose2d(last, width, 2, stride=2))
            self.up.append(_level(2 * width, width, norm))
            last = width
        self.pool = nn.MaxPool2d(2)
        self.classifier = nn.Conv2d(last, classes, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        maps = down_and_up(self.normalize(images), self.down, self.pool, self.widen, self.up)
        return self.classifier(maps)  # type: ignore[no-any-return]


def _level(channels: int, width: int, norm: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before in (channels, width):
        layers.append(nn.Conv2d(before, width, 3, padding=1, bias=not norm))
        layers += [nn.BatchNorm2d(width)] if norm else []
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


MODELS = {
    "unet": Entry(
        build=UNet,
        task="segment",
        input=Input((256, 256), "any", (0.5,), (0.25,), fit="letterbox"),
        parameters=(31_049_557, 31_037_781),
        classes=21,
        tiny={"widths": (4, 8, 16), "size": (32, 32)},
        paper="https://arxiv.org/abs/1505.04597",
        recipe={
            "lr": 1e-3,
            "batch": 8,
            "epochs": 50,
            "weight_decay": 1e-4,
            "augment": "flip=h,zoom=0.25,rotate=10,shift=0.1,brightness=0.2,contrast=0.2",
        },
        note="convolutions pad, and batch norm follows them; the paper's shrink the picture",
    ),
}
