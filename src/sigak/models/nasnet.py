"""NASNetMobile, NASNet-A (4 @ 1056): "Learning transferable architectures for scalable image
recognition", Zoph et al. 2017. https://arxiv.org/abs/1707.07012

Two cells found by search (figure 4, NASNet-A): the normal cell keeps the resolution, the reduction
cell halves it. Each eats the outputs of the last two cells. For ImageNet (figure 2) a convolution
with stride 2 and two reduction cells come first, then three rows of N normal cells with a reduction
cell between them, whose filters double from row to row. 4 @ 1056: N is 4 and the last cell gives
1056 channels, six times its 176 filters.

What differs here: no ScheduledDropPath, as in Keras. Where a picture has an odd number of pixels
too many or too few, zeros are added on the right and below first, as TensorFlow does, so that
weights trained there fit. Batch norm has TensorFlow's eps of 1e-3 but PyTorch's momentum, since a
momentum of .0003 needs far longer runs than fine-tuning has.

Input (B, C, H, W) in [0, 1], output (B, classes) logits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sigak.layers.normalize import Normalize
from sigak.models._entry import Entry, Input

__all__ = ["MODELS", "NASNet", "NormalCell", "ReductionCell", "Separable", "Squeeze"]


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 1, bias=False)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


def _pad_to_halve(x: Tensor, kernel: int) -> Tensor:
    """Zeros around (B, C, H, W) so that an odd `kernel` with stride 2 gives (ceil(H/2),
    ceil(W/2)); an even side gets one fewer on its left or upper end.
    """
    half = kernel // 2
    top, left = (half - 1 + side % 2 for side in x.shape[2:])
    return F.pad(x, (left, half, top, half))


def _average(x: Tensor) -> Tensor:
    """3x3 average of the pixels there are, stride 1; the shape stays."""
    return F.avg_pool2d(x, 3, 1, padding=1, count_include_pad=False)


class Separable(nn.Module):
    """Twice: ReLU, depthwise convolution, 1x1 convolution, batch norm; the first with `stride`.

    (B, inputs, H, W) -> (B, outputs, ceil(H/stride), ceil(W/stride)).
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride
        half = kernel // 2
        padding = half if stride == 1 else 0  # what halves is padded by `_pad_to_halve`
        self.depthwise1 = nn.Conv2d(
            inputs, inputs, kernel, stride, padding, groups=inputs, bias=False
        )
        self.pointwise1 = _conv(inputs, outputs)
        self.norm1 = _norm(outputs)
        self.depthwise2 = nn.Conv2d(
            outputs, outputs, kernel, padding=half, groups=outputs, bias=False
        )
        self.pointwise2 = _conv(outputs, outputs)
        self.norm2 = _norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        if self.stride == 2:
            x = _pad_to_halve(x, self.kernel)
        x = F.relu(self.norm1(self.pointwise1(self.depthwise1(x))))
        return self.norm2(self.pointwise2(self.depthwise2(x)))  # type: ignore[no-any-return]


class Squeeze(nn.Module):
    """ReLU, 1x1 convolution, batch norm: what every cell does to its inputs first.

    halve: also halve the resolution (factorised reduction): half the channels come from the even
    pixels, half from the odd ones. (B, inputs, H, W) -> (B, outputs, H, W), or (B, outputs,
    ceil(H/2), ceil(W/2)).
    """

    def __init__(self, inputs: int, outputs: int, halve: bool = False) -> None:
        super().__init__()
        self.halve = halve
        self.conv1 = _conv(inputs, outputs // 2 if halve else outputs)
        if halve:
            self.conv2 = _conv(inputs, outputs - outputs // 2)
        self.norm = _norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        if not self.halve:
            return self.norm(self.conv1(x))  # type: ignore[no-any-return]
        odd = F.pad(x, (0, 1, 0, 1))[:, :, 1:, 1:]  # beyond the last pixel lies a zero
        parts = [self.conv1(x[:, :, ::2, ::2]), self.conv2(odd[:, :, ::2, ::2])]
        return self.norm(torch.cat(parts, 1))  # type: ignore[no-any-return]


class NormalCell(nn.Module):
    """(before, now) -> (B, 6 * filters, H, W): the cell's first input and its five sums.

    halve: `before` has twice the resolution of `now`, since a reduction cell lies between them.
    """

    def __init__(self, before: int, now: int, filters: int, halve: bool) -> None:
        super().__init__()
        self.squeeze_before = Squeeze(before, filters, halve)
        self.squeeze_now = Squeeze(now, filters)
        self.left1 = Separable(filters, filters, 5)
        self.right1 = Separable(filters, filters, 3)
        self.left2 = Separable(filters, filters, 5)
        self.right2 = Separable(filters, filters, 3)
        self.left5 = Separable(filters, filters, 3)

    def forward(self, before: Tensor, now: Tensor) -> Tensor:
        p, h = self.squeeze_before(before), self.squeeze_now(now)
        sums = [
            self.left1(h) + self.right1(p),
            self.left2(p) + self.right2(p),
            _average(h) + p,
            2 * _average(p),  # the search chose the same average twice
            self.left5(h) + h,
        ]
        return torch.cat([p, *sums], 1)


class ReductionCell(nn.Module):
    """(before, now) -> (B, 4 * filters, ceil(H/2), ceil(W/2)).

    squeeze: "halve" as in NormalCell, "same", or "none" for the first cell, which takes `before` as
    it is.
    """

    def __init__(self, before: int, now: int, filters: int, squeeze: str) -> None:
        super().__init__()
        self.squeeze_before: nn.Module = (
            nn.Identity() if squeeze == "none" else Squeeze(before, filters, squeeze == "halve")
        )
        self.squeeze_now = Squeeze(now, filters)
        p = before if squeeze == "none" else filters
        self.left1 = Separable(filters, filters, 5, stride=2)
        self.right1 = Separable(p, filters, 7, stride=2)
        self.right2 = Separable(p, filters, 7, stride=2)
        self.right3 = Separable(p, filters, 5, stride=2)
        self.left4 = Separable(filters, filters, 3)

    def forward(self, before: Tensor, now: Tensor) -> Tensor:
        p, h = self.squeeze_before(before), self.squeeze_now(now)
        padded = _pad_to_halve(h, 3)
        highest = F.max_pool2d(padded, 3, 2)
        first = self.left1(h) + self.right1(p)
        second = highest + self.right2(p)
        third = F.avg_pool2d(padded, 3, 2) + self.right3(p)
        fourth = second + _average(first)
        fifth = self.left4(first) + highest
        return torch.cat([second, third, fourth, fifth], 1)


class NASNet(nn.Module):
    """Stem, two reduction cells, three rows of `repeats` normal cells, a dense layer.

    filters: of the first row's cells, the later rows have twice and four times as many.
    skip_reduction: the cell behind a row's reduction cell takes as `before` what that one did, as
    in NASNetLarge, not the last row's output.
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
        repeats: int = 4,
        filters: int = 44,
        stem: int = 32,
        skip_reduction: bool = False,
    ) -> None:
        super().__init__()
        self.normalize = Normalize(mean, std)
        self.stem = nn.Sequential(nn.Conv2d(channels, stem, 3, 2, bias=False), _norm(stem))
        cells: list[nn.Module] = [
            ReductionCell(stem, stem, filters // 4, "none"),
            ReductionCell(stem, filters, filters // 2, "halve"),
        ]
        before, now = filters, 2 * filters  # channels of the last two cells' outputs
        self.skipped: set[int] = set()  # cells behind which `before` stays
        for row in range(3):
            width = filters * 2**row
            if row:
                if skip_reduction:
                    self.skipped.add(len(cells))
                cells.append(ReductionCell(before, now, width, "same"))
                before, now = before if skip_reduction else now, 4 * width
            for i in range(repeats):
                cells.append(NormalCell(before, now, width, halve=i == 0))
                before, now = now, 6 * width
        self.cells = nn.ModuleList(cells)
        self.classifier = nn.Linear(now, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # He et al. 2015, https://arxiv.org/abs/1502.01852
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        before = now = self.stem(self.normalize(images))
        for place, cell in enumerate(self.cells):
            before, now = before if place in self.skipped else now, cell(before, now)
        return self.classifier(F.relu(now).mean((2, 3)))  # type: ignore[no-any-return]


MODELS = {
    "nasnetmobile": Entry(
        build=NASNet,
        task="classify",
        input=Input((224, 224), "rgb", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        parameters=(5_326_716, 5_289_978),
        tiny={"repeats": 1, "filters": 8, "stem": 4, "size": (48, 48)},
        paper="https://arxiv.org/abs/1707.07012",
    ),
}
