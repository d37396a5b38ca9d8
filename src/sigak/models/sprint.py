"""Sprint: a small network made to learn CIFAR-10 to 94 % in a few passes over its pictures.

After "94% on CIFAR-10 in 3.29 seconds on a single GPU", Jordan 2024,
https://arxiv.org/abs/2404.00498. The first layer is not learnt but measured: 2x2 filters that
whiten the patches of the training pictures. Then come three blocks of two 3x3 convolutions that
begin as the identity, each with a max-pool, batch norm without scales and GELU. In evaluation the
logits are the mean over views of the picture: its mirror image, and both shifted.

What differs here: the whitening subtracts the mean patch and has no trained bias, and batch norm
remembers statistics longer, for batches that are cut into parts.

Input (B, C, H, W) in [0, 1], output (B, classes) logits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sigak.layers.normalize import Normalize
from sigak.models._entry import Entry, Input
from sigak.structures import SigakError

__all__ = ["MODELS", "Sprint", "Whiten"]

_SHRINK = 1 / 9  # of the logits: the features are maxima over a map, large from the start


class Sprint(nn.Module):
    """Whitening, `len(widths)` blocks, the maximum over the last maps, one logit per class.

    views: what evaluation averages: 1 the picture, 2 also its mirror image, 6 also both shifted by
    one pixel along either diagonal (half the weight on the unshifted ones).
    """

    head = ("classifier",)
    scale_free = ("blocks",)  # a norm follows every kernel there

    def __init__(
        self,
        *,
        classes: int,
        channels: int,
        size: tuple[int, int],
        mean: Sequence[float],
        std: Sequence[float],
        widths: Sequence[int] = (64, 256, 256),
        views: int = 1,
    ) -> None:
        super().__init__()
        least = 2 ** len(widths) + 1
        if min(size) < least:
            raise SigakError(
                f"a network of {len(widths)} blocks needs pictures of at least {least}x{least}, "
                f"received {size[0]}x{size[1]}; give a larger --size, such as 32"
            )
        if views not in (1, 2, 6):
            raise SigakError(f"views must be 1, 2 or 6, received {views}")
        self.views = views
        self.normalize = Normalize(mean, std)
        self.whiten = Whiten(channels)
        self.blocks = nn.Sequential()
        last = self.whiten.filters
        for width in widths:
            self.blocks.append(_block(last, width))
            last = width
        self.classifier = nn.Linear(last, classes, bias=False)

    def adapt(self, images: Tensor) -> None:
        """Measure the whitening on training pictures (B, C, H, W) in [0, 1]; done once, before
        training.
        """
        self.whiten.measure(self.normalize(images))

    def forward(self, images: Tensor) -> Tensor:
        if self.training or self.views == 1:
            return self._logits(images)
        if self.views == 2:
            return self._both_ways(images)
        padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
        height, width = images.shape[2:]
        shifted = (padded[:, :, :height, :width], padded[:, :, 2:, 2:])
        around = (self._both_ways(shifted[0]) + self._both_ways(shifted[1])) / 2
        return (self._both_ways(images) + around) / 2

    def _both_ways(self, images: Tensor) -> Tensor:
        return (self._logits(images) + self._logits(images.flip(3))) / 2

    def _logits(self, images: Tensor) -> Tensor:
        maps = self.blocks(F.gelu(self.whiten(self.normalize(images))))
        return self.classifier(maps.amax((2, 3))) * _SHRINK  # type: ignore[no-any-return]


class Whiten(nn.Module):
    """2x2 filters whose outputs over natural pictures are uncorrelated with unit variance, and
    their negatives, so that no sign is lost in the activation behind them.

    images (B, C, H, W) -> (B, 8 C, H - 1, W - 1). Fixed while training; random orthogonal until
    `measure` is called.
    """

    kernel: Tensor
    bias: Tensor

    def __init__(self, channels: int, floor: float = 5e-4) -> None:
        """floor: added to the variances, so that directions of mere noise stay small."""
        super().__init__()
        inputs = 4 * channels
        self.filters = 2 * inputs
        self.floor = floor
        half = nn.init.orthogonal_(torch.empty(inputs, inputs)).view(inputs, channels, 2, 2)
        self.register_buffer("kernel", torch.cat([half, -half]))
        self.register_buffer("bias", torch.zeros(self.filters))

    @torch.no_grad()
    def measure(self, images: Tensor) -> None:
        """Take the principal directions of all 2x2 patches of `images` as filters, each divided by
        its standard deviation; the bias subtracts the mean patch.
        """
        sums, products, count = torch.zeros(()), torch.zeros(()), 0
        for part in torch.split(images.cpu(), 64):  # all patches at once may not fit in memory
            patches = F.unfold(part, 2).transpose(1, 2).flatten(0, 1).double()  # (B' H' W', 4 C)
            sums, products = sums + patches.sum(0), products + patches.T @ patches
            count += len(patches)
        mean = sums / count
        variances, directions = torch.linalg.eigh(products / count - mean.outer(mean))
        half = directions.T / (variances + self.floor).sqrt()[:, None]
        offset = -half @ mean
        self.kernel.copy_(torch.cat([half, -half]).view_as(self.kernel))
        self.bias.copy_(torch.cat([offset, -offset]))

    def forward(self, images: Tensor) -> Tensor:
        # In float32: the filters are differences of large weights, which bfloat16 would blur.
        with torch.autocast(images.device.type, enabled=False):
            return F.conv2d(images, self.kernel, self.bias)


def _block(channels: int, width: int) -> nn.Sequential:
    """(B, C, H, W) -> (B, width, H/2, W/2). Pooling first, so that the rest works on a quarter."""
    return nn.Sequential(
        _identity_conv(channels, width),
        nn.MaxPool2d(2),
        _norm(width),
        nn.GELU(),
        _identity_conv(width, width),
        _norm(width),
        nn.GELU(),
    )


def _identity_conv(channels: int, width: int) -> nn.Conv2d:
    """A 3x3 convolution whose first filters hand their inputs on unchanged."""
    layer = nn.Conv2d(channels, width, 3, padding=1, bias=False)
    with torch.no_grad():
        nn.init.dirac_(layer.weight[: min(channels, width)])
    return layer


def _norm(width: int) -> nn.BatchNorm2d:
    """Batch norm with biases but without scales."""
    layer = nn.BatchNorm2d(width, momentum=0.05)
    layer.weight = None  # type: ignore[assignment]
    return layer


_RECIPE = {
    "epochs": 12,
    "batch": 500,
    "accumulate": 4,
    "optimizer": "muon",
    "lr": 0.12,
    "momentum": 0.6,
    "schedule": "linear",
    "label_smoothing": 0.2,
    "val": 0.0,
}


def _row(views: int, augment: str, note: str = "") -> Entry:
    return Entry(
        build=Sprint,
        task="classify",
        input=Input((32, 32), "rgb", (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
        parameters=(1_973_632, 1_971_328),
        classes=10,
        args={"views": views},
        tiny={"widths": (8, 8, 8)},
        paper="https://arxiv.org/abs/2404.00498",
        recipe=_RECIPE | {"augment": augment},
        note=note,
    )


MODELS = {
    "sprint": _row(6, "flip=alternate,crop=2"),
    "sprint-plain": _row(1, "crop=2", "for pictures whose mirror image means something else"),
}
