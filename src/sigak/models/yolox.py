"""YOLOX: "YOLOX: Exceeding YOLO Series in 2021", Ge, Liu, Wang, Li and Sun 2021.
https://arxiv.org/abs/2107.08430

One box per place of three maps and no anchors; classes and boxes come from branches of their own;
SimOTA decides while training which places learn which object.

What differs here: several classes may be reported for one place, where the authors' code keeps the
best alone.

Input (B, 3, H, W) RGB in [0, 1]; inside the network it becomes BGR in 0..255, which the published
weights expect. Raw output: for the strides 8, 16 and 32 a map (B, 5 + classes, H/s, W/s) of box
(centre x, y, log width, height, in cells), objectness and class logits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sigak.layers.conv import ConvNorm
from sigak.layers.normalize import Normalize
from sigak.models._coco_names import COCO80
from sigak.models._detector import Detector, candidates
from sigak.models._entry import Entry, Input, Weights
from sigak.models._yolox_names import from_official, from_onnx
from sigak.ops.boxes import cxcywh_to_xyxy, iou, xyxy_to_cxcywh
from sigak.structures import Instances

__all__ = [
    "CSP", "MODELS", "SPP", "YOLOX", "Assignment", "Backbone", "Bottleneck", "Focus", "Neck",
    "Tower", "assign",
]  # fmt: skip

_STRIDES = (8, 16, 32)
_BOX_WEIGHT = 5.0
_RADIUS = 1.5  # cells around an object's centre that may learn it
_MOST = 10  # places that learn one object, at most
_LARGEST = 10.0  # log of a box's side in cells; beyond it the exponential would overflow
_PRIOR = 0.01  # what objectness and classes say before they have learnt


# ------------------------------------------------------------------ network


class Focus(nn.Module):
    """(B, C, H, W) -> (B, c_out, H/2, W/2): each square of 2x2 pixels becomes 4 C channels."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.block = ConvNorm(4 * c_in, c_out, 3)

    def forward(self, x: Tensor) -> Tensor:
        top, bottom = x[..., ::2, :], x[..., 1::2, :]
        parts = [top[..., ::2], bottom[..., ::2], top[..., 1::2], bottom[..., 1::2]]
        return self.block(torch.cat(parts, dim=1))  # type: ignore[no-any-return]


def _conv3(c_in: int, c_out: int, stride: int = 1, depthwise: bool = False) -> nn.Module:
    """A 3x3 convolution; depthwise: one per channel, and a 1x1 that mixes the channels."""
    if not depthwise:
        return ConvNorm(c_in, c_out, 3, stride)
    return nn.Sequential(ConvNorm(c_in, c_in, 3, stride, groups=c_in), ConvNorm(c_in, c_out))


class Bottleneck(nn.Module):
    """1x1 and 3x3 convolution of one width, plus the input where `shortcut`."""

    def __init__(self, channels: int, shortcut: bool, depthwise: bool) -> None:
        super().__init__()
        self.reduce = ConvNorm(channels, channels)
        self.expand = _conv3(channels, channels, depthwise=depthwise)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = self.expand(self.reduce(x))
        return x + y if self.shortcut else y  # type: ignore[no-any-return]


class CSP(nn.Module):
    """Half of the channels through `count` bottlenecks, half past them, merged by a 1x1.

    "CSPNet", Wang et al. 2019, https://arxiv.org/abs/1911.11929.
    """

    def __init__(
        self, c_in: int, c_out: int, count: int, *, shortcut: bool, depthwise: bool
    ) -> None:
        super().__init__()
        half = c_out // 2
        self.main = ConvNorm(c_in, half)
        self.skip = ConvNorm(c_in, half)
        self.blocks = nn.Sequential(*(Bottleneck(half, shortcut, depthwise) for _ in range(count)))
        self.merge = ConvNorm(2 * half, c_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.merge(torch.cat([self.blocks(self.main(x)), self.skip(x)], 1))  # type: ignore[no-any-return]


class SPP(nn.Module):
    """Max-pools of 5, 9 and 13 beside each other (He et al. 2014, https://arxiv.org/abs/1406.4729)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.main = ConvNorm(channels, channels // 2)
        self.pools = nn.ModuleList(nn.MaxPool2d(k, 1, k // 2) for k in (5, 9, 13))
        self.merge = ConvNorm(4 * (channels // 2), channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.main(x)
        return self.merge(torch.cat([x, *(pool(x) for pool in self.pools)], 1))  # type: ignore[no-any-return]


class Backbone(nn.Module):
    """CSPDarknet: (B, C, H, W) -> maps of 4, 8 and 16 `base` channels at strides 8, 16 and 32."""

    def __init__(self, channels: int, base: int, depth: int, depthwise: bool) -> None:
        super().__init__()
        self.stem = Focus(channels, base)
        self.stages = nn.ModuleList()
        for place, count in enumerate((depth, 3 * depth, 3 * depth, depth)):
            before, after = base * 2**place, base * 2 ** (place + 1)
            stage = nn.Sequential(_conv3(before, after, 2, depthwise))
            last = place == 3
            if last:
                stage.append(SPP(after))
            stage.append(CSP(after, after, count, shortcut=not last, depthwise=depthwise))
            self.stages.append(stage)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.stages[0](self.stem(x))
        third = self.stages[1](x)
        fourth = self.stages[2](third)
        return third, fourth, self.stages[3](fourth)


class Neck(nn.Module):
    """Path aggregation: what the coarse maps know goes up to the fine ones and down again.

    "Path aggregation network", Liu et al. 2018, https://arxiv.org/abs/1803.01534. Maps of 4, 8 and
    16 `base` channels in, as many out.
    """

    def __init__(self, base: int, depth: int, depthwise: bool) -> None:
        super().__init__()
        c3, c4, c5 = 4 * base, 8 * base, 16 * base

        def csp(c_in: int, c_out: int) -> CSP:
            return CSP(c_in, c_out, depth, shortcut=False, depthwise=depthwise)

        self.lateral5 = ConvNorm(c5, c4)
        self.up4 = csp(2 * c4, c4)
        self.lateral4 = ConvNorm(c4, c3)
        self.up3 = csp(2 * c3, c3)
        self.down3 = _conv3(c3, c3, 2, depthwise)
        self.out4 = csp(2 * c3, c4)
        self.down4 = _conv3(c4, c4, 2, depthwise)
        self.out5 = csp(2 * c4, c5)

    def forward(self, third: Tensor, fourth: Tensor, fifth: Tensor) -> list[Tensor]:
        side5 = self.lateral5(fifth)
        side4 = self.lateral4(self.up4(torch.cat([_doubled(side5), fourth], 1)))
        out3 = self.up3(torch.cat([_doubled(side4), third], 1))
        out4 = self.out4(torch.cat([self.down3(out3), side4], 1))
        out5 = self.out5(torch.cat([self.down4(out4), side5], 1))
        return [out3, out4, out5]


def _doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


class Tower(nn.Module):
    """The two branches of one level: (B, c_in, H, W) -> features for classes, and for boxes."""

    def __init__(self, c_in: int, width: int, depthwise: bool) -> None:
        super().__init__()
        self.stem = ConvNorm(c_in, width)
        self.classes, self.boxes = (
            nn.Sequential(*(_conv3(width, width, depthwise=depthwise) for _ in range(2)))
            for _ in range(2)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(x)
        return self.classes(x), self.boxes(x)


class YOLOX(Detector):
    """depth, width: shares of the largest published form's blocks and channels; depthwise: 3x3
    convolutions are split in two, as in YOLOX-nano.
    """

    head = ("class_outputs",)
    nms_iou = 0.65
    stride = 32
    closing = False
    """Add the L1 distance of centres and log sides to the loss: training sets it for its last
    epochs, in which mosaics are closed."""

    def __init__(
        self,
        *,
        classes: int,
        channels: int,
        size: tuple[int, int],
        mean: Sequence[float],
        std: Sequence[float],
        depth: float = 1.0,
        width: float = 1.0,
        depthwise: bool = False,
    ) -> None:
        super().__init__()
        base, blocks, hidden = int(64 * width), max(round(3 * depth), 1), int(256 * width)
        self.normalize = Normalize(mean, std)
        self.backbone = Backbone(channels, base, blocks, depthwise)
        self.neck = Neck(base, blocks, depthwise)
        self.towers = nn.ModuleList(Tower(c * base, hidden, depthwise) for c in (4, 8, 16))
        # Objectness is told from the features of the boxes.
        self.class_outputs = nn.ModuleList(nn.Conv2d(hidden, classes, 1) for _ in _STRIDES)
        self.box_outputs = nn.ModuleList(nn.Conv2d(hidden, 4, 1) for _ in _STRIDES)
        self.object_outputs = nn.ModuleList(nn.Conv2d(hidden, 1, 1) for _ in _STRIDES)
        for output in (*self.class_outputs, *self.object_outputs):
            nn.init.constant_(output.bias, -math.log((1 - _PRIOR) / _PRIOR))

    def raw(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images (B, C, H, W) in [0, 1] -> three maps (B, 5 + classes, H/s, W/s)."""
        x = self.normalize(images).flip(1)  # RGB -> BGR
        maps = []
        for level, features in enumerate(self.neck(*self.backbone(x))):
            classes, boxes = self.towers[level](features)
            outputs = [
                self.box_outputs[level](boxes),
                self.object_outputs[level](boxes),
                self.class_outputs[level](classes),
            ]
            maps.append(torch.cat(outputs, 1))
        return tuple(maps)

    def loss(
        self, raw: Any, truth: Sequence[Instances], size: tuple[int, int]
    ) -> dict[str, Tensor]:
        """Means over the places that learn an object: 5 (1 - IoU^2), the cross-entropies of
        objectness (of all places) and of the classes, whose target is the IoU, and, when
        `closing`, the L1 distance.
        """
        values, places = _flatten(raw)
        boxes = _boxes(values, places)  # (B, M, 4)
        found = [
            assign(b.detach(), v.detach(), places, objects)
            for b, v, objects in zip(boxes, values, truth)
        ]
        picture = torch.cat([torch.full_like(a.places, i) for i, a in enumerate(found)])
        place = torch.cat([a.places for a in found])
        targets = torch.cat([t.boxes[a.objects] for t, a in zip(truth, found)]).float()
        labels = torch.cat([t.labels[a.objects] for t, a in zip(truth, found)])
        overlaps = torch.cat([a.overlaps for a in found])

        count = max(len(place), 1)
        learnt = values[picture, place]  # (P, 5 + K)
        objectness = torch.zeros_like(values[..., 4])
        objectness[picture, place] = 1.0
        classes = F.one_hot(labels, values.shape[2] - 5) * overlaps[:, None]
        parts = {
            "box": _BOX_WEIGHT * (1 - _paired_iou(boxes[picture, place], targets) ** 2).sum(),
            "obj": _cross_entropy(values[..., 4], objectness),
            "cls": _cross_entropy(learnt[:, 5:], classes),
        }
        distance = (learnt[:, :4] - _encode(targets, places[place])).abs().sum()
        parts["l1"] = distance * self.closing
        parts = {name: value / count for name, value in parts.items()}
        return {"loss": torch.stack(list(parts.values())).sum(), **parts}

    def decode(self, raw: Any, size: tuple[int, int], conf: float) -> list[Instances]:
        """Candidates whose objectness times class probability is above `conf`, before NMS."""
        values, places = _flatten(raw)
        scores = values[..., 4:5].sigmoid() * values[..., 5:].sigmoid()
        return candidates(_boxes(values, places), scores, conf)


# ------------------------------------------------------------------ boxes


def _flatten(raw: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Maps (B, 5 + K, H, W) -> values (B, M, 5 + K) float32 and places (M, 3): column, row of the
    cell, its stride.
    """
    places = []
    for level, stride in zip(raw, _STRIDES):
        rows, columns = (torch.arange(n, device=level.device) for n in level.shape[2:])
        row, column = torch.meshgrid(rows, columns, indexing="ij")
        places.append(torch.stack([column, row, torch.full_like(row, stride)], -1).view(-1, 3))
    values = torch.cat([level.flatten(2) for level in raw], 2).transpose(1, 2)
    return values.float(), torch.cat(places).float()


def _boxes(values: Tensor, places: Tensor) -> Tensor:
    """(..., M, 4 or more) raw values at places (M, 3) -> (..., M, 4) xyxy in pixels."""
    centre = values[..., :2] + places[:, :2]
    sides = values[..., 2:4].clamp(max=_LARGEST).exp()
    return cxcywh_to_xyxy(torch.cat([centre, sides], -1) * places[:, 2:])


def _encode(boxes: Tensor, places: Tensor) -> Tensor:
    """The reverse of `_boxes`: (P, 4) xyxy at places (P, 3) -> (P, 4) raw values."""
    cells = xyxy_to_cxcywh(boxes) / places[:, 2:]
    return torch.cat([cells[:, :2] - places[:, :2], (cells[:, 2:] + 1e-8).log()], 1)


def _paired_iou(first: Tensor, second: Tensor) -> Tensor:
    """Row by row: (P, 4) and (P, 4) xyxy -> (P,)."""
    common = (
        (torch.minimum(first[:, 2:], second[:, 2:]) - torch.maximum(first[:, :2], second[:, :2]))
        .clamp(min=0)
        .prod(1)
    )
    areas = (first[:, 2:] - first[:, :2]).prod(1) + (second[:, 2:] - second[:, :2]).prod(1)
    return common / (areas - common + 1e-9)


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="sum")


# ------------------------------------------------------------------ assignment


class Assignment(NamedTuple):
    """Which places learn which objects: P pairs of indices, and the IoU of box and object."""

    places: Tensor
    objects: Tensor
    overlaps: Tensor


@torch.no_grad()
def assign(boxes: Tensor, values: Tensor, places: Tensor, truth: Instances) -> Assignment:
    """SimOTA (section 2.4 of the paper): each object takes the k places that cost least.

    boxes (M, 4) predicted, xyxy in pixels; values (M, 5 + K) raw; places (M, 3) column, row,
    stride. Only places whose centre is within 1.5 cells of an object's centre take part. The cost
    is the cross-entropy of the class, with probability sqrt(class objectness), minus 3 log IoU; k
    is the sum of the 10 largest IoUs, at least 1. A place that two objects want goes to the one
    it costs less.
    """
    near = _near(places, truth.boxes)  # (G, M)
    taking_part = near.any(0).nonzero()[:, 0]  # (C,)
    if not len(taking_part):
        none = taking_part  # no objects, or none near any place
        return Assignment(none, none, boxes.new_zeros(0))
    overlaps = iou(truth.boxes.float(), boxes[taking_part])  # (G, C)
    cost = _class_cost(values[taking_part], truth.labels) - 3 * (overlaps + 1e-8).log()
    cost = cost + 1e6 * ~near[:, taking_part]
    counts = overlaps.topk(min(_MOST, len(taking_part))).values.sum(1).int().clamp(min=1)
    rank = cost.argsort(1).argsort(1)
    wanted = rank < counts[:, None]
    cheapest = cost.masked_fill(~wanted, torch.inf).argmin(0)
    wanted &= cheapest == torch.arange(len(cost), device=cost.device)[:, None]
    objects, columns = wanted.nonzero(as_tuple=True)
    return Assignment(taking_part[columns], objects, overlaps[objects, columns])


def _near(places: Tensor, boxes: Tensor) -> Tensor:
    """(G, M) bool: the centre of the cell is within `_RADIUS` cells of the box's centre."""
    centres = (places[:, :2] + 0.5) * places[:, 2:]
    distance = (centres - xyxy_to_cxcywh(boxes)[:, None, :2]).abs().amax(2)
    return distance < _RADIUS * places[:, 2]


def _class_cost(values: Tensor, labels: Tensor) -> Tensor:
    """(C, 5 + K) raw values, (G,) labels -> (G, C) binary cross-entropy summed over the classes."""
    together = F.logsigmoid(values[:, 5:]) + F.logsigmoid(values[:, 4:5])
    yes = together / 2  # log of sqrt(class * objectness)
    no = torch.log1p(-yes.exp().clamp(max=1 - 1e-6))
    return -(no.sum(1) + (yes - no)[:, labels].T)


# ------------------------------------------------------------------ table


def _from_onnx(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """An exported file of any form in `MODELS`."""
    layouts = []
    for row in MODELS.values():
        with torch.device("meta"):
            network = row.build(
                classes=1, channels=3, size=(416, 416), mean=(0,), std=(1,), **row.args
            )
        blocks = {n: m.conv for n, m in network.named_modules() if isinstance(m, ConvNorm)}
        layouts.append({name: conv.weight.shape for name, conv in blocks.items()})
    return from_onnx(state, layouts)


_RELEASE = "https://github.com/Megvii-BaseDetection/YOLOX/releases/download/0.1.1rc0/"
_RECIPE = {
    "optimizer": "sgd",
    "lr": 0.01,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "batch": 16,
    "warmup": 3.0,
    "ema": 0.9998,
    "epochs": 100,
    "augment": "mosaic=1,zoom=.5,shift=.1,flip=h,hue=.015,saturation=.7,brightness=.4,close=10",
}


def _weights(file: str, average_precision: float, sha256: str = "") -> Weights:
    onnx = file.endswith(".onnx")
    return Weights(
        tag="coco-onnx" if onnx else "coco",
        url=_RELEASE + file,
        sha256=sha256,
        licence="Apache-2.0",
        trained_on="COCO train2017",
        classes=80,
        score={"mAP": average_precision},
        convert=_from_onnx if onnx else from_official,
    )


def _row(
    scale: tuple[float, float], side: int, parameters: tuple[int, int], *weights: Weights
) -> Entry:
    depth, width = scale
    return Entry(
        build=YOLOX,
        task="detect",
        input=Input(
            (side, side), mean=(0.0,) * 3, std=(1 / 255,) * 3, fit="corner", resample="bilinear"
        ),
        parameters=parameters,
        classes=80,
        args={"depth": depth, "width": width, "depthwise": width == 0.25},
        weights=weights,
        tiny={"depth": 1 / 3, "width": 1 / 8, "size": (64, 64)},
        paper="https://arxiv.org/abs/2107.08430",
        recipe=_RECIPE,
        names=COCO80,
    )


_NANO = (
    _weights("yolox_nano.pth", 25.8),
    _weights(
        "yolox_nano.onnx", 25.8, "e8af074932d4ed7e232278e3055cefcdea3edf178874a3694ae292649fb464dd"
    ),
)
MODELS = {
    "yolox-nano": _row((0.33, 0.25), 416, (927_551, 912_159), *_NANO),
    "yolox-tiny": _row(
        (0.33, 0.375), 416, (5_073_183, 5_055_855), _weights("yolox_tiny.pth", 32.8)
    ),
    "yolox-s": _row((0.33, 0.5), 640, (8_991_359, 8_968_255), _weights("yolox_s.pth", 40.5)),
    "yolox-m": _row((0.67, 0.75), 640, (25_369_791, 25_326_495), _weights("yolox_m.pth", 46.9)),
    "yolox-l": _row((1.0, 1.0), 640, (54_278_143, 54_208_895), _weights("yolox_l.pth", 49.7)),
    "yolox-x": _row((1.33, 1.25), 640, (99_172_415, 99_071_455), _weights("yolox_x.pth", 51.1)),
}
