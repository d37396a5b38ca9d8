"""EfficientDet: "EfficientDet: scalable and efficient object detection", Tan, Pang and Le 2019.
https://arxiv.org/abs/1911.09070

An EfficientNet of timm gives maps at strides 8 to 32; two coarser ones are made of the last. BiFPN
cells mix the five down and up again, each sum with learnt weights; two heads, shared by all levels
but for their batch norms, read 9 anchors at every place.

The form is the one with symmetric padding and without biases before batch norms (3,877,763
parameters in D0), whose weights https://github.com/rwightman/efficientdet-pytorch (Apache-2.0)
publishes; Google's own networks have both.

Input (B, 3, H, W) RGB in [0, 1], sides multiples of 128. Raw output: codes (B, M, 4), dy, dx,
dheight, dwidth of boxes against M anchors, and logits (B, M, classes).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sigak.layers.conv import ConvNorm
from sigak.layers.normalize import Normalize
from sigak.models._anchors import fitted, reached
from sigak.models._coco_names import COCO91
from sigak.models._detector import Detector, candidates
from sigak.models._entry import Entry, Input, Weights
from sigak.ops.boxes import cxcywh_to_xyxy, iou, xyxy_to_cxcywh
from sigak.structures import Instances, SigakError

__all__ = [
    "MODELS", "Cell", "EfficientDet", "Head", "Node", "Separable", "anchors", "assign", "decode",
    "encode", "focal_loss",
]  # fmt: skip

_STRIDES = (8, 16, 32, 64, 128)
_SCALES = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))
_ASPECTS = ((1.0, 1.0), (1.4, 0.7), (0.7, 1.4))  # width and height
_ANCHORS = len(_SCALES) * len(_ASPECTS)
_ANCHOR_SCALE = 4.0  # side of the smallest square anchor, in cells
_GAIN = 0.05  # of the mean overlap, for which the size of anchors is changed
_EPS, _MOMENTUM = 1e-3, 0.01  # of batch norm outside the backbone
_OVERLAP = 0.5  # IoU from which an anchor learns an object
_ALPHA, _GAMMA = 0.25, 1.5  # of the focal loss
_DELTA = 0.1  # error of a code from which the Huber loss is linear
_BOX_WEIGHT = 50.0
_LARGEST = math.log(1000 / 16)  # log of a side in anchors; beyond it the exponential would overflow
_PRIOR = 0.01  # what every class says before it has learnt


# ------------------------------------------------------------------ network


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=_EPS, momentum=_MOMENTUM)


def _lateral(c_in: int, width: int) -> nn.Module:
    """(B, c_in, H, W) -> (B, width, H, W); nothing is done where the channels agree."""
    if c_in == width:
        return nn.Identity()
    return ConvNorm(c_in, width, activation=nn.Identity, eps=_EPS, momentum=_MOMENTUM)


def _doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def _halved(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, 2, padding=1)


class Separable(nn.Module):
    """A 3x3 convolution per channel, then a 1x1: (B, c_in, H, W) -> (B, c_out, H, W)."""

    def __init__(self, c_in: int, c_out: int, bias: bool = False) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(c_in, c_in, 3, padding=1, groups=c_in, bias=False)
        self.pointwise = nn.Conv2d(c_in, c_out, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.depthwise(x))  # type: ignore[no-any-return]


class Node(nn.Module):
    """Maps of one shape -> one map: their weighted mean through a separable convolution.

    Section 3.3 of the paper, "fast normalized fusion": weights below 0 count as 0, and are divided
    by their sum.
    """

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.ones(count))
        self.conv = Separable(width, width)
        self.norm = _norm(width)

    def forward(self, *maps: Tensor) -> Tensor:
        weights = self.weights.relu()
        weights = weights / (weights.sum() + 1e-4)
        mean = torch.stack([m * w for m, w in zip(maps, weights, strict=True)]).sum(0)
        return self.norm(self.conv(F.silu(mean)))  # type: ignore[no-any-return]


class Cell(nn.Module):
    """One BiFPN layer: five maps of `channels` -> five of `width` channels, of the same sizes.

    `first` fits the maps' channels for the way down from coarse to fine, `second` for the way up.
    """

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.first = nn.ModuleList(_lateral(c, width) for c in channels[:4])
        self.second = nn.ModuleList(_lateral(c, width) for c in channels[1:])
        self.down = nn.ModuleList(Node(width, 2) for _ in range(4))  # coarse to fine
        self.up = nn.ModuleList(Node(width, 2 if i == 3 else 3) for i in range(4))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        middle = [maps[4]]  # the finest first
        for level, node in zip((3, 2, 1, 0), self.down, strict=True):
            middle.insert(0, node(self.first[level](maps[level]), _doubled(middle[0])))
        found = [middle[0]]
        for level, node in zip((1, 2, 3), self.up):
            own = self.second[level - 1](maps[level])
            found.append(node(own, middle[level], _halved(found[-1])))
        found.append(self.up[3](self.second[3](maps[4]), _halved(found[-1])))
        return found


class Head(nn.Module):
    """Five maps (B, width, H, W) -> (B, M, outputs): `repeats` separable convolutions with batch
    norms of each level's own, then `outputs` values for each anchor of each place.
    """

    def __init__(self, width: int, repeats: int, outputs: int) -> None:
        super().__init__()
        self.outputs = outputs
        self.convs = nn.ModuleList(Separable(width, width) for _ in range(repeats))
        self.norms = nn.ModuleList(
            nn.ModuleList(_norm(width) for _ in _STRIDES) for _ in range(repeats)
        )
        self.output = Separable(width, _ANCHORS * outputs, bias=True)

    def forward(self, maps: list[Tensor]) -> Tensor:
        found = []
        for level, x in enumerate(maps):
            for conv, norms in zip(self.convs, self.norms):
                x = F.silu(norms[level](conv(x)))  # type: ignore[index]
            # (B, A outputs, H, W) -> (B, H W A, outputs)
            found.append(self.output(x).permute(0, 2, 3, 1).reshape(x.shape[0], -1, self.outputs))
        return torch.cat(found, 1)


class EfficientDet(Detector):
    """backbone: a network of timm, with drop_path its chance of leaving a block out in training;
    width: channels of the pyramid; cells: BiFPN layers; repeats: convolutions of the heads;
    anchor_scale: side of the smallest square anchor, in cells.
    """

    head = ("class_net.output",)
    nms_iou = 0.5
    stride = 128

    def __init__(
        self,
        *,
        classes: int,
        channels: int,
        size: tuple[int, int],
        mean: Sequence[float],
        std: Sequence[float],
        backbone: str = "efficientnet_b0",
        drop_path: float = 0.1,
        width: int = 64,
        cells: int = 3,
        repeats: int = 3,
        anchor_scale: float = _ANCHOR_SCALE,
    ) -> None:
        import timm

        super().__init__()
        if size[0] % self.stride or size[1] % self.stride:
            raise SigakError(
                f"EfficientDet takes pictures whose sides are multiples of {self.stride}, received "
                f"{size[0]}x{size[1]}"
            )
        self.size, self.anchor_scale = (size[0], size[1]), anchor_scale
        self.normalize = Normalize(mean, std)
        self.backbone: Any = timm.create_model(
            backbone,
            features_only=True,
            out_indices=(2, 3, 4),
            in_chans=channels,
            drop_path_rate=drop_path,
        )
        found = self.backbone.feature_info.channels()
        self.coarse = _lateral(found[-1], width)
        levels = [[*found, width, width], *([width] * 5 for _ in range(cells - 1))]
        self.cells = nn.Sequential(*(Cell(level, width) for level in levels))
        self.class_net = Head(width, repeats, classes)
        self.box_net = Head(width, repeats, 4)
        nn.init.constant_(self.class_net.output.pointwise.bias, -math.log((1 - _PRIOR) / _PRIOR))  # type: ignore[arg-type]
        nn.init.zeros_(self.box_net.output.pointwise.bias)  # type: ignore[arg-type]

    def raw(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) in [0, 1] -> codes (B, M, 4), logits (B, M, classes)."""
        maps = self.backbone(self.normalize(images))
        sixth = _halved(self.coarse(maps[-1]))
        maps = self.cells([*maps, sixth, _halved(sixth)])
        return self.box_net(maps), self.class_net(maps)

    def fit_anchors(self, boxes: Sequence[Tensor]) -> tuple[dict[str, Any], str]:
        """Take the size of anchors that fits the `boxes` (N, 4) xyxy of training pictures on the
        canvas best. Returns the argument that builds the network so, and what was done.
        """
        before = reached(boxes, anchors(self.size, anchor_scale=self.anchor_scale))
        scales = [round(_ANCHOR_SCALE * 2 ** (k / 4), 3) for k in range(-12, 5)]
        found = [reached(boxes, anchors(self.size, anchor_scale=scale)) for scale in scales]
        if max(found) < before + _GAIN:
            return {}, f"anchors stay: an object and its nearest one overlap by {before:.0%}"
        self.anchor_scale = scales[found.index(max(found))]
        return {"anchor_scale": self.anchor_scale}, fitted(before, max(found))

    def loss(
        self, raw: Any, truth: Sequence[Instances], size: tuple[int, int]
    ) -> dict[str, Tensor]:
        """Sums over the batch, divided by the number of anchors that learn an object plus one: the
        focal loss of all classes of all anchors, and 50 times the Huber loss of a code.
        """
        codes, logits = raw
        places = anchors(size, codes.device, self.anchor_scale)
        targets = torch.zeros_like(logits)
        wanted, learnt = [], []
        for picture, objects in enumerate(truth):
            boxes, labels = objects.boxes.to(codes), objects.labels.to(codes.device)
            place, index = assign(places, boxes)
            targets[picture, place, labels[index]] = 1.0
            wanted.append(encode(boxes[index], places[place]))
            learnt.append(codes[picture, place])
        count = 1 + sum(len(w) for w in wanted)
        errors = F.huber_loss(torch.cat(learnt), torch.cat(wanted), reduction="sum", delta=_DELTA)
        box = _BOX_WEIGHT * errors / (4 * count)
        cls = focal_loss(logits, targets).sum() / count
        return {"loss": box + cls, "box": box, "cls": cls}

    def decode(self, raw: Any, size: tuple[int, int], conf: float) -> list[Instances]:
        """Candidates whose class probability is above `conf`, before NMS."""
        codes, logits = raw
        places = anchors(size, codes.device, self.anchor_scale)
        return candidates(decode(codes, places), logits.sigmoid(), conf)


# ------------------------------------------------------------------ anchors


def anchors(
    size: tuple[int, int],
    device: torch.device | str = "cpu",
    anchor_scale: float = _ANCHOR_SCALE,
) -> Tensor:
    """(M, 4) xyxy: those of a canvas of `size` (H, W), in the order of levels, rows, columns,
    scales, aspects; anchor_scale: side of the smallest square one, in cells.
    """
    shapes = [
        (anchor_scale * scale * width, anchor_scale * scale * height)
        for scale, (width, height) in product(_SCALES, _ASPECTS)
    ]
    sides = torch.tensor(shapes, device=device)  # (9, 2) in cells
    found = []
    for stride in _STRIDES:
        rows = torch.arange(size[0] // stride, device=device) + 0.5
        columns = torch.arange(size[1] // stride, device=device) + 0.5
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        centres = torch.stack([x, y], -1).view(-1, 1, 2).expand(-1, _ANCHORS, -1)
        cells = torch.cat([centres, sides.expand(len(centres), -1, -1)], -1)
        found.append(cxcywh_to_xyxy(cells * stride).view(-1, 4))
    return torch.cat(found)


@torch.no_grad()
def assign(places: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Which anchors learn which objects: indices (P,) of anchors, (P,) of objects.

    places (M, 4) and boxes (G, 4) xyxy. An anchor learns the object it overlaps most, from an IoU
    of 0.5; every object is learnt by the anchor that overlaps it most, whatever the IoU.
    """
    if not len(boxes):
        none = torch.zeros(0, dtype=torch.int64, device=places.device)
        return none, none
    overlaps = iou(boxes, places)  # (G, M)
    best, objects = overlaps.max(0)
    objects[best < _OVERLAP] = -1
    objects[overlaps.argmax(1)] = torch.arange(len(boxes), device=places.device)
    learning = (objects >= 0).nonzero()[:, 0]
    return learning, objects[learning]


def encode(boxes: Tensor, places: Tensor) -> Tensor:
    """(..., 4) xyxy against anchors (..., 4) xyxy -> (..., 4) codes dy, dx, dheight, dwidth."""
    x, y, w, h = xyxy_to_cxcywh(boxes).unbind(-1)
    ax, ay, aw, ah = xyxy_to_cxcywh(places).unbind(-1)
    # A box without area has codes too.
    tall, wide = ((side / own + 1e-8).log() for side, own in ((h, ah), (w, aw)))
    return torch.stack([(y - ay) / ah, (x - ax) / aw, tall, wide], -1)


def decode(codes: Tensor, places: Tensor) -> Tensor:
    """The reverse of `encode`."""
    dy, dx, dh, dw = codes.unbind(-1)
    ax, ay, aw, ah = xyxy_to_cxcywh(places).unbind(-1)
    wide, tall = (d.clamp(max=_LARGEST).exp() for d in (dw, dh))
    return cxcywh_to_xyxy(torch.stack([ax + dx * aw, ay + dy * ah, aw * wide, ah * tall], -1))


def focal_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy of every logit, less of it where the answer is nearly right: "Focal loss
    for dense object detection", Lin et al. 2017, https://arxiv.org/abs/1708.02002.

    logits and targets (0 or 1) of one shape -> losses of that shape.
    """
    yes = targets > 0
    wrong = torch.where(yes, -logits, logits)  # logit of the wrong answer
    share = torch.where(yes, _ALPHA, 1 - _ALPHA)
    return share * wrong.sigmoid() ** _GAMMA * F.softplus(wrong)


# ------------------------------------------------------------------ table

# The publisher's names -> ours, in this order.
_RENAMES = tuple(
    (re.compile(pattern), ours)
    for pattern, ours in (
        (r"\.bn\.", ".norm."),
        (r"\.conv_dw\.", ".depthwise."),
        (r"\.conv_pw\.", ".pointwise."),
        (r"^fpn\.resample\.3\.conv\.", "coarse."),
        (r"^fpn\.cell\.", "cells."),
        (r"\.fnode\.[0-3]\.combine\.resample\.(\d)\.conv\.", r".first.\1."),
        (
            r"\.fnode\.[4-7]\.combine\.resample\.(\d)\.conv\.",
            lambda m: f".second.{int(m[1]) - 1}.",
        ),
        (r"\.fnode\.([0-3])\.", r".down.\1."),
        (r"\.fnode\.([4-7])\.", lambda m: f".up.{int(m[1]) - 4}."),
        (r"\.combine\.edge_weights$", ".weights"),
        (r"\.after_combine\.conv\.norm\.", ".norm."),
        (r"\.after_combine\.conv\.", ".conv."),
        (r"^(class_net|box_net)\.conv_rep\.", r"\1.convs."),
        (r"^(class_net|box_net)\.bn_rep\.(\d)\.(\d)\.norm\.", r"\1.norms.\2.\3."),
        (r"^(class_net|box_net)\.predict\.", r"\1.output."),
    )
)


def _convert(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The publisher's names -> ours; those of the backbone are timm's already."""
    renamed = {}
    for name, value in state.items():
        if not name.startswith("backbone."):
            for pattern, ours in _RENAMES:
                name = pattern.sub(ours, name)
        renamed[name] = value
    return renamed


def _weights(file: str, average_precision: float) -> Weights:
    return Weights(
        tag="coco",
        url=f"https://github.com/rwightman/efficientdet-pytorch/releases/download/v0.1/{file}.pth",
        sha256=file.rpartition("-")[2],
        licence="Apache-2.0",
        trained_on="COCO train2017",
        classes=90,
        score={"mAP": average_precision},
        convert=_convert,
        names=COCO91[:90],
    )


def _row(side: int, args: dict[str, Any], parameters: tuple[int, int], *weights: Weights) -> Entry:
    return Entry(
        build=EfficientDet,
        task="detect",
        input=Input(
            (side, side), "rgb", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "corner", "bilinear"
        ),
        parameters=parameters,
        classes=90,
        args=args,
        weights=weights,
        tiny={
            "backbone": "lcnet_035", "drop_path": 0.0, "width": 16, "cells": 2, "repeats": 1,
            "size": (128, 128),
        },
        paper="https://arxiv.org/abs/1911.09070",
        recipe={
            "optimizer": "sgd", "lr": 0.02, "weight_decay": 4e-5, "batch": 16, "warmup": 1.0,
            "clip": 10.0, "ema": 0.9998, "epochs": 100,
            "augment": "flip=h,zoom=.5,shift=.1,hue=.015,saturation=.5,brightness=.3",
        },
    )  # fmt: skip


MODELS = {
    "efficientdet-d0": _row(
        512,
        {"backbone": "efficientnet_b0", "drop_path": 0.1, "width": 64, "cells": 3},
        (3_924_899, 3_877_763),
        _weights("efficientdet_d0-f3276ba8", 33.6),
    ),
    "efficientdet-d1": _row(
        640,
        {"backbone": "efficientnet_b1", "drop_path": 0.2, "width": 88, "cells": 4},
        (6_693_482, 6_622_026),
        _weights("efficientdet_d1-bb7e98fe", 39.4),
    ),
    "efficientdet-d2": _row(
        768,
        {"backbone": "efficientnet_b2", "drop_path": 0.2, "width": 112, "cells": 5},
        (8_172_991, 8_091_215),
    ),
}
