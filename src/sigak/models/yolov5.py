"""YOLOv5, release 6 and later (Jocher 2020, https://doi.org/10.5281/zenodo.3908559): a detector of
one stage with anchors, in five sizes.

Cross-stage partial blocks, Wang et al. 2019, https://arxiv.org/abs/1911.11929; a path aggregation
neck, Liu et al. 2018, https://arxiv.org/abs/1803.01534; CIoU, Zheng et al. 2020,
https://arxiv.org/abs/2005.03572.

What differs here: a matched place weighs the same on every level and in pictures of any size, as in
YOLOX. The original takes the mean of each level, which gives the few places of the coarsest one
most weight where objects are small.

Input (B, 3, H, W) in [0, 1] with H and W multiples of 32. Raw output: three maps
(B, 3 (5 + classes), H/s, W/s), s = 8, 16, 32: for each of 3 anchors x, y, width, height, whether
there is an object, and one logit per class.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sigak.layers.conv import SPPF, ConvNorm
from sigak.layers.normalize import Normalize
from sigak.models._anchors import cluster, sides_of
from sigak.models._coco_names import COCO80
from sigak.models._detector import Detector, candidates
from sigak.models._entry import Entry, Input, Weights
from sigak.ops.boxes import aligned_iou, cxcywh_to_xyxy, xyxy_to_cxcywh
from sigak.structures import Instances, SigakError

__all__ = [
    "C3",
    "MODELS",
    "Bottleneck",
    "Goals",
    "Head",
    "Matches",
    "Neck",
    "YOLOv5",
    "match",
]

STRIDES = (8, 16, 32)
# Width and height in pixels, three for each stride; a network carries its own.
ANCHORS = (
    ((10, 13), (16, 30), (33, 23)),
    ((30, 61), (62, 45), (59, 119)),
    ((116, 90), (156, 198), (373, 326)),
)
ENOUGH = 0.98  # share of the objects an anchor must fit for the anchors to stay
FARTHEST = 4.0  # an anchor fits an object whose sides are less than this factor off
GAINS = {"box": 5.0, "obj": 1.0, "cls": 1.0}  # of the parts of the loss


# ------------------------------------------------------------------ the network


class Bottleneck(nn.Module):
    """1x1 and 3x3 convolution, with `shortcut` plus the input; the shape stays."""

    def __init__(self, channels: int, shortcut: bool) -> None:
        super().__init__()
        self.reduce = ConvNorm(channels, channels)
        self.expand = ConvNorm(channels, channels, 3)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        out = self.expand(self.reduce(x))
        return x + out if self.shortcut else out  # type: ignore[no-any-return]


class C3(nn.Module):
    """Cross-stage block of three 1x1 convolutions: half goes through the bottlenecks, half past
    them. (B, c_in, H, W) -> (B, c_out, H, W).
    """

    def __init__(self, c_in: int, c_out: int, repeats: int, shortcut: bool = False) -> None:
        super().__init__()
        half = c_out // 2
        self.reduce = ConvNorm(c_in, half)
        self.bypass = ConvNorm(c_in, half)
        self.merge = ConvNorm(2 * half, c_out)
        self.blocks = nn.Sequential(*(Bottleneck(half, shortcut) for _ in range(repeats)))

    def forward(self, x: Tensor) -> Tensor:
        return self.merge(torch.cat([self.blocks(self.reduce(x)), self.bypass(x)], 1))  # type: ignore[no-any-return]


class Neck(nn.Module):
    """Path aggregation: coarse maps flow up to the fine ones, and what comes of it down again."""

    def __init__(self, channels: Sequence[int], repeats: int) -> None:
        super().__init__()
        fine, middle, coarse = channels
        self.up = nn.Upsample(scale_factor=2)
        self.reduce_coarse = ConvNorm(coarse, middle)
        self.up_middle = C3(2 * middle, middle, repeats)
        self.reduce_middle = ConvNorm(middle, fine)
        self.up_fine = C3(2 * fine, fine, repeats)
        self.halve_fine = ConvNorm(fine, fine, 3, 2)
        self.down_middle = C3(2 * fine, middle, repeats)
        self.halve_middle = ConvNorm(middle, middle, 3, 2)
        self.down_coarse = C3(2 * middle, coarse, repeats)

    def forward(self, fine: Tensor, middle: Tensor, coarse: Tensor) -> list[Tensor]:
        coarse = self.reduce_coarse(coarse)
        middle = self.reduce_middle(self.up_middle(torch.cat([self.up(coarse), middle], 1)))
        fine = self.up_fine(torch.cat([self.up(middle), fine], 1))
        middle = self.down_middle(torch.cat([self.halve_fine(fine), middle], 1))
        coarse = self.down_coarse(torch.cat([self.halve_middle(middle), coarse], 1))
        return [fine, middle, coarse]


class Head(nn.Module):
    """One 1x1 convolution per level. anchors (3, 3, 2): level, anchor, width and height in
    pixels; trained networks bring their own.
    """

    anchors: Tensor

    def __init__(self, channels: Sequence[int], classes: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList(nn.Conv2d(c, 3 * (5 + classes), 1) for c in channels)
        self.register_buffer("anchors", torch.tensor(ANCHORS, dtype=torch.float32))
        for level, stride in zip(self.levels, STRIDES):
            with torch.no_grad():
                bias = level.bias.view(3, -1)  # type: ignore[union-attr,operator]
                # As if eight objects lay on a picture of 640 x 640, of classes all as likely.
                bias[:, 4] += math.log(8 / (640 / stride) ** 2)
                bias[:, 5:] += math.log(0.6 / (classes - 0.99999))

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return tuple(level(x) for level, x in zip(self.levels, maps))


class YOLOv5(Detector):
    """depth: share of the bottlenecks; width: share of the channels."""

    head = ("detect",)
    nms_iou: ClassVar[float] = 0.45
    stride: ClassVar[int] = 32

    def __init__(
        self,
        *,
        classes: int,
        channels: int,
        size: tuple[int, int],
        mean: Sequence[float],
        std: Sequence[float],
        depth: float = 0.33,
        width: float = 0.25,
    ) -> None:
        super().__init__()
        if any(side % self.stride for side in size):
            height, width = (math.ceil(side / self.stride) * self.stride for side in size)
            raise SigakError(
                f"YOLOv5 takes sides that are multiples of {self.stride}, received {size[0]} "
                f"x {size[1]}; the next are {height} x {width}"
            )
        self.normalize = Normalize(mean, std)
        widths = [math.ceil(c * width / 8) * 8 for c in (64, 128, 256, 512, 1024)]
        self.stem = ConvNorm(channels, widths[0], 6, 2)
        self.stages = nn.ModuleList()
        for c_in, c_out, count in zip(widths, widths[1:], (3, 6, 9, 3)):
            block = C3(c_out, c_out, _repeats(count, depth), shortcut=True)
            self.stages.append(nn.Sequential(ConvNorm(c_in, c_out, 3, 2), block))
        self.stages[-1].append(SPPF(widths[-1]))  # type: ignore[operator]
        self.neck = Neck(widths[2:], _repeats(3, depth))
        self.detect = Head(widths[2:], classes)

    def raw(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, C, H, W) in [0, 1] -> three maps (B, 3 (5 + classes), H/s, W/s)."""
        x = self.stem(self.normalize(images))
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return self.detect(self.neck(*maps[1:]))  # type: ignore[no-any-return]

    def loss(
        self, raw: Any, truth: Sequence[Instances], size: tuple[int, int]
    ) -> dict[str, Tensor]:
        """Parts "box" (CIoU), "obj" and "cls" (binary cross-entropy): sums over the matched places
        of all levels and, of "obj", over all places, divided by the number of matched ones, times
        `GAINS`.
        """
        goals = _listed(truth, raw[0])
        box, obj, cls = raw[0].new_zeros(3)
        count = 0
        for level, stride, anchors in zip(raw, STRIDES, self._anchors(raw)):
            said = _apart(level)  # (B, 3, h, w, 5 + K)
            found = match(goals, anchors, stride, (level.shape[2], level.shape[3]))
            wanted = level.new_zeros(said.shape[:4])
            picture, anchor, y, x = found.place
            if len(x):
                chosen = said[picture, anchor, y, x]  # (N, 5 + K)
                boxes = _boxes(chosen[:, :4], torch.stack([x, y], -1), anchors[anchor] / stride)
                overlap = aligned_iou(boxes, cxcywh_to_xyxy(found.boxes), "ciou")
                box = box + (1 - overlap).sum()
                # Where several objects share a place, the best overlap counts.
                told = overlap.detach().clamp(min=0)
                flat = ((picture * 3 + anchor) * level.shape[2] + y) * level.shape[3] + x
                wanted.view(-1).scatter_reduce_(0, flat, told, "amax")
                kinds = F.one_hot(found.labels, said.shape[-1] - 5).to(chosen)
                cls = cls + _cross_entropy(chosen[:, 5:], kinds)
            obj = obj + _cross_entropy(said[..., 4], wanted)
            count += len(x)
        # One class needs no telling apart; its logits stay in the graph.
        several = raw[0].shape[1] // 3 > 6
        gains = GAINS | {"cls": GAINS["cls"] * several}
        scale = max(count, len(truth))
        parts = {
            name: gains[name] * value / scale
            for name, value in (("box", box), ("obj", obj), ("cls", cls))
        }
        return {"loss": torch.stack(list(parts.values())).sum(), **parts}

    def decode(self, raw: Any, size: tuple[int, int], conf: float) -> list[Instances]:
        """Boxes (xyxy on the canvas) of every place whose objectness x class exceeds `conf`."""
        parts: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(len(raw[0]))]
        for level, stride, anchors in zip(raw, STRIDES, self._anchors(raw)):
            said = _apart(level.float())
            sure = said[..., 4].sigmoid() > conf  # (B, 3, h, w), few
            for i, part in enumerate(parts):
                anchor, y, x = sure[i].nonzero(as_tuple=True)
                chosen = said[i, anchor, y, x]
                corner = torch.stack([x, y], -1)
                boxes = _boxes(chosen[:, :4], corner, anchors[anchor] / stride) * stride
                part.append((boxes, chosen[:, 5:].sigmoid() * chosen[:, 4:5].sigmoid()))
        found = []
        for part in parts:
            boxes, scores = (torch.cat(values) for values in zip(*part))
            found += candidates(boxes[None], scores[None], conf)
        return found

    def fit_anchors(self, boxes: Sequence[Tensor]) -> tuple[dict[str, Any], str]:
        """Take anchors that fit the `boxes` (N, 4) xyxy of training pictures on the canvas, where
        fewer than 98 % of them have one that does. Returns no arguments, since the weights hold the
        anchors, and what was done.
        """
        sides, anchors = sides_of(boxes), self.detect.anchors.cpu().numpy().reshape(-1, 2)
        reached = _reached(sides, anchors)
        if reached >= ENOUGH or len(sides) < len(anchors):
            return {}, f"anchors stay: {reached:.1%} of the objects have one that fits"
        fitting = cluster(sides, len(anchors))
        self.detect.anchors.copy_(torch.from_numpy(fitting).view_as(self.detect.anchors))
        told = f"from {reached:.1%} of the objects to {_reached(sides, fitting):.1%}"
        return {}, f"anchors fitted to the training pictures: {told} have one that fits"

    def _anchors(self, raw: Any) -> Tensor:
        return self.detect.anchors.to(raw[0].device)  # type: ignore[no-any-return]


def _reached(sides: np.ndarray, anchors: np.ndarray) -> float:
    """The share of objects (N, 2) that some anchor (A, 2) may learn; 1 where there is none."""
    ratio = sides[:, None] / anchors
    fits = np.maximum(ratio, 1 / ratio).max(2).min(1) < FARTHEST
    return float(fits.mean()) if len(sides) else 1.0


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="sum")


def _repeats(count: int, depth: float) -> int:
    return max(round(count * depth), 1)


# ------------------------------------------------------------------ places and boxes


def _apart(level: Tensor) -> Tensor:
    """A map (B, 3 (5 + K), h, w) -> (B, 3, h, w, 5 + K)."""
    return level.view(len(level), 3, -1, *level.shape[2:]).permute(0, 1, 3, 4, 2)


def _boxes(said: Tensor, corner: Tensor, anchors: Tensor) -> Tensor:
    """Raw x, y, width, height (N, 4) in cells whose corner is (N, 2), at anchors (N, 2) in cells ->
    xyxy (N, 4) in cells.
    """
    share = said.sigmoid()
    centre = 2 * share[:, :2] - 0.5 + corner
    return cxcywh_to_xyxy(torch.cat([centre, (2 * share[:, 2:]) ** 2 * anchors], -1))


# ------------------------------------------------------------------ matching


@dataclass(frozen=True)
class Goals:
    """The objects of a batch in one list: picture (N,), labels (N,), boxes (N, 4) cxcywh in
    pixels.
    """

    picture: Tensor
    labels: Tensor
    boxes: Tensor


@dataclass(frozen=True)
class Matches:
    """The places that should find an object: picture, anchor, y, x (each (N,)); that object's label
    (N,) and box (N, 4) cxcywh in cells.
    """

    place: tuple[Tensor, Tensor, Tensor, Tensor]
    labels: Tensor
    boxes: Tensor


def _listed(truth: Sequence[Instances], like: Tensor) -> Goals:
    """Truth without crowds as one list."""
    kept = [t if t.crowd is None else t[~t.crowd] for t in truth]
    counts = torch.tensor([len(t) for t in kept])
    return Goals(
        torch.arange(len(kept)).repeat_interleave(counts).to(like.device),
        torch.cat([t.labels for t in kept]).to(like.device),
        xyxy_to_cxcywh(torch.cat([t.boxes for t in kept]).to(like)),
    )


# A place, and the places left, above, right and below of it.
_STEPS = ((0, 0), (-1, 0), (0, -1), (1, 0), (0, 1))


@torch.no_grad()
def match(goals: Goals, anchors: Tensor, stride: int, shape: tuple[int, int]) -> Matches:
    """The places of a level of `shape` (h, w) cells that should find the goals, with anchors (3, 2)
    in pixels.

    An object goes to every anchor whose sides are less than `FARTHEST` times its own and more than
    the inverse; there to the cell of its centre and to the two neighbours nearest to the centre,
    where the map has them.
    """
    ratio = goals.boxes[:, None, 2:] / anchors  # (N, 3, 2)
    fits = torch.maximum(ratio, 1 / ratio).amax(-1) < FARTHEST
    goal, anchor = fits.nonzero(as_tuple=True)
    boxes = goals.boxes[goal] / stride
    centre = boxes[:, :2]
    last = centre.new_tensor([shape[1], shape[0]])
    before = (centre % 1 < 0.5) & (centre > 1)  # (n, 2): left, above
    after = ((last - centre) % 1 < 0.5) & (last - centre > 1)  # right, below
    always = torch.ones_like(before[:, :1])
    row, step = torch.cat([always, before, after], 1).nonzero(as_tuple=True)
    cell = (centre[row] + 0.5 * centre.new_tensor(_STEPS)[step]).long()
    x, y = cell[:, 0].clamp(0, shape[1] - 1), cell[:, 1].clamp(0, shape[0] - 1)
    place = (goals.picture[goal[row]], anchor[row], y, x)
    return Matches(place, goals.labels[goal[row]], boxes[row])


# ------------------------------------------------------------------ the table

_OFFICIAL = {
    "0": "stem",
    **{f"{1 + 2 * i}": f"stages.{i}.0" for i in range(4)},
    **{f"{2 + 2 * i}": f"stages.{i}.1" for i in range(4)},
    "9": "stages.3.2",
    "10": "neck.reduce_coarse",
    "13": "neck.up_middle",
    "14": "neck.reduce_middle",
    "17": "neck.up_fine",
    "18": "neck.halve_fine",
    "20": "neck.down_middle",
    "21": "neck.halve_middle",
    "23": "neck.down_coarse",
    "24": "detect",
}
# Pattern and what takes its place, in this order, on names whose module is named already.
_RENAMES = (
    (r"^detect\.m\.", "detect.levels."),
    (r"\.m\.(\d+)\.cv1\.", r".blocks.\1.reduce."),
    (r"\.m\.(\d+)\.cv2\.", r".blocks.\1.expand."),
    (r"^stages\.3\.2\.cv2\.", "stages.3.2.merge."),
    (r"\.cv1\.", ".reduce."),
    (r"\.cv2\.", ".bypass."),
    (r"\.cv3\.", ".merge."),
    (r"\.bn\.", ".norm."),
)


def _from_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names of the official files, such as model.2.m.0.cv1.conv.weight, -> ours; their anchors
    are in cells, ours in pixels.
    """
    renamed = {}
    for name, value in state.items():
        found = re.fullmatch(r"model\.(\d+)\.(.+)", name)
        if found is None or found[1] not in _OFFICIAL or name.endswith("anchor_grid"):
            continue
        ours = f"{_OFFICIAL[found[1]]}.{found[2]}"
        for pattern, replacement in _RENAMES:
            ours = re.sub(pattern, replacement, ours)
        if ours == "detect.anchors":
            value = value.float() * torch.tensor(STRIDES).view(3, 1, 1)
        renamed[ours] = value
    return renamed


_RECIPE = {
    "epochs": 100,
    "batch": 16,
    "optimizer": "adamw",
    "lr": 1e-3,
    "weight_decay": 5e-4,
    "schedule": "linear",
    "warmup": 3.0,
    "ema": 0.999,
    "clip": 10.0,
    "augment": "mosaic=1,zoom=.5,shift=.1,flip=h,hue=.015,saturation=.7,brightness=.4,close=10",
}


def _entry(
    letter: str, depth: float, width: float, parameters: tuple[int, int], ap: float
) -> Entry:
    release = "https://github.com/ultralytics/yolov5/releases/download/v7.0"
    return Entry(
        build=YOLOv5,
        task="detect",
        input=Input((640, 640), fit="rect", resample="bilinear"),
        parameters=parameters,
        classes=80,
        args={"depth": depth, "width": width},
        tiny={"depth": 0.33, "width": 0.125, "size": (64, 64)},
        weights=(
            Weights(
                tag="coco",
                url=f"{release}/yolov5{letter}.pt",
                sha256="",  # the publisher gives none beside its files
                licence="AGPL-3.0",
                trained_on="COCO 2017",
                classes=80,
                score={"AP": ap},
                convert=_from_official,
            ),
        ),
        paper="https://doi.org/10.5281/zenodo.3908559",
        recipe=_RECIPE,
        names=COCO80,
    )


MODELS = {
    "yolov5n": _entry("n", 0.33, 0.25, (1_881_661, 1_872_157), 28.0),
    "yolov5s": _entry("s", 0.33, 0.50, (7_254_397, 7_235_389), 37.4),
    "yolov5m": _entry("m", 0.67, 0.75, (21_227_325, 21_190_557), 45.4),
    "yolov5l": _entry("l", 1.0, 1.0, (46_623_741, 46_563_709), 49.0),
    "yolov5x": _entry("x", 1.33, 1.25, (86_838_205, 86_749_405), 50.7),
}
