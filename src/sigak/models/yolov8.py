"""YOLOv8 (Jocher et al. 2023): an anchor-free detector of one stage, in five sizes.

It has no paper; its parts do. Cross-stage partial blocks, Wang et al. 2019,
https://arxiv.org/abs/1911.11929; a path aggregation neck, Liu et al. 2018,
https://arxiv.org/abs/1803.01534; sides of boxes as distributions, "Generalized focal loss", Li et
al. 2020, https://arxiv.org/abs/2006.04388; truth assigned by how well box and class agree, "TOOD",
Feng et al. 2021, https://arxiv.org/abs/2108.07755; CIoU, Zheng et al. 2020,
https://arxiv.org/abs/2005.03572.

What differs here: the expectation over the bins of a side is arithmetic and no convolution; its 16
fixed numbers are kept as a parameter that never moves, as published counts have them.

Input (B, 3, H, W) in [0, 1] with H and W multiples of 32. Raw output: three maps
(B, 64 + classes, H/s, W/s), s = 8, 16, 32: 4 sides x 16 bins, then one logit per class.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sigak.layers.conv import SPPF, ConvNorm
from sigak.layers.normalize import Normalize
from sigak.models._coco_names import COCO80
from sigak.models._detector import Detector, candidates
from sigak.models._entry import Entry, Input, Weights
from sigak.ops.boxes import aligned_iou
from sigak.structures import Instances, SigakError

__all__ = ["MODELS", "Bottleneck", "C2f", "Head", "Neck", "Targets", "YOLOv8", "assign"]

STRIDES = (8, 16, 32)
BINS = 16  # of the distribution of a side's length, in cells
GAINS = {"box": 7.5, "cls": 0.5, "dfl": 1.5}


# ------------------------------------------------------------------ the network


class Bottleneck(nn.Module):
    """Two 3x3 convolutions, with `shortcut` plus the input; the shape stays."""

    def __init__(self, channels: int, shortcut: bool) -> None:
        super().__init__()
        self.first = ConvNorm(channels, channels, 3)
        self.second = ConvNorm(channels, channels, 3)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        out = self.second(self.first(x))
        return x + out if self.shortcut else out  # type: ignore[no-any-return]


class C2f(nn.Module):
    """Cross-stage block whose every bottleneck's output is merged: (B, c_in, H, W) -> (B, c_out, H,
    W).
    """

    def __init__(self, c_in: int, c_out: int, repeats: int, shortcut: bool = False) -> None:
        super().__init__()
        half = c_out // 2
        self.split = ConvNorm(c_in, 2 * half)
        self.merge = ConvNorm((2 + repeats) * half, c_out)
        self.blocks = nn.ModuleList(Bottleneck(half, shortcut) for _ in range(repeats))

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.split(x).chunk(2, 1))
        for block in self.blocks:
            parts.append(block(parts[-1]))
        return self.merge(torch.cat(parts, 1))  # type: ignore[no-any-return]


class Neck(nn.Module):
    """Path aggregation: coarse maps flow up to the fine ones, and what comes of it down again."""

    def __init__(self, channels: Sequence[int], repeats: int) -> None:
        super().__init__()
        fine, middle, coarse = channels
        self.up = nn.Upsample(scale_factor=2)
        self.up_middle = C2f(coarse + middle, middle, repeats)
        self.up_fine = C2f(middle + fine, fine, repeats)
        self.halve_fine = ConvNorm(fine, fine, 3, 2)
        self.down_middle = C2f(fine + middle, middle, repeats)
        self.halve_middle = ConvNorm(middle, middle, 3, 2)
        self.down_coarse = C2f(middle + coarse, coarse, repeats)

    def forward(self, fine: Tensor, middle: Tensor, coarse: Tensor) -> list[Tensor]:
        lifted = self.up_middle(torch.cat([self.up(coarse), middle], 1))
        fine = self.up_fine(torch.cat([self.up(lifted), fine], 1))
        middle = self.down_middle(torch.cat([self.halve_fine(fine), lifted], 1))
        coarse = self.down_coarse(torch.cat([self.halve_middle(middle), coarse], 1))
        return [fine, middle, coarse]


class Head(nn.Module):
    """Per level one branch for the sides of boxes and one for classes."""

    def __init__(self, channels: Sequence[int], classes: int) -> None:
        super().__init__()
        sides = max(16, channels[0] // 4, 4 * BINS)
        kinds = max(channels[0], min(classes, 100))
        self.box = nn.ModuleList(_branch(c, sides, 4 * BINS) for c in channels)
        self.cls = nn.ModuleList(_branch(c, kinds, classes) for c in channels)
        for box, cls, stride in zip(self.box, self.cls, STRIDES):
            nn.init.ones_(box[-1].bias)  # type: ignore[index]
            # As if five objects lay on a picture of 640 x 640.
            prior = math.log(5 / classes / (640 / stride) ** 2)
            nn.init.constant_(cls[-1].bias, prior)  # type: ignore[index]

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        levels = zip(self.box, self.cls, maps)
        return [torch.cat([box(x), cls(x)], 1) for box, cls, x in levels]


def _branch(c_in: int, hidden: int, c_out: int) -> nn.Sequential:
    return nn.Sequential(
        ConvNorm(c_in, hidden, 3), ConvNorm(hidden, hidden, 3), nn.Conv2d(hidden, c_out, 1)
    )


class YOLOv8(Detector):
    """depth: share of the bottlenecks; width: share of the channels, which are cut to `most`
    before.
    """

    head = ("detect",)
    fixed = ("bins",)
    nms_iou: ClassVar[float] = 0.7
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
        most: int = 1024,
    ) -> None:
        super().__init__()
        if any(side % self.stride for side in size):
            height, width = (math.ceil(side / self.stride) * self.stride for side in size)
            raise SigakError(
                f"YOLOv8 takes sides that are multiples of {self.stride}, received {size[0]} "
                f"x {size[1]}; the next are {height} x {width}"
            )
        self.normalize = Normalize(mean, std)
        widths = [math.ceil(min(c, most) * width / 8) * 8 for c in (64, 128, 256, 512, 1024)]
        self.stem = ConvNorm(channels, widths[0], 3, 2)
        self.stages = nn.ModuleList()
        for c_in, c_out, count in zip(widths, widths[1:], (3, 6, 6, 3)):
            block = C2f(c_out, c_out, _repeats(count, depth), shortcut=True)
            self.stages.append(nn.Sequential(ConvNorm(c_in, c_out, 3, 2), block))
        self.stages[-1].append(SPPF(widths[-1]))  # type: ignore[operator]
        self.neck = Neck(widths[2:], _repeats(3, depth))
        self.detect = Head(widths[2:], classes)
        self.bins = nn.Parameter(torch.arange(float(BINS)), requires_grad=False)

    def raw(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, C, H, W) in [0, 1] -> three maps (B, 64 + classes, H/s, W/s)."""
        x = self.stem(self.normalize(images))
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return tuple(self.detect(self.neck(*maps[1:])))

    def loss(
        self, raw: Any, truth: Sequence[Instances], size: tuple[int, int]
    ) -> dict[str, Tensor]:
        """Parts "box" (CIoU), "cls" (binary cross-entropy), "dfl" (distribution focal), each over
        the sum of the target scores, weighted by `GAINS`.
        """
        logits, sides, places = _flatten(raw)
        boxes = _boxes(sides, places)
        targets = assign(logits.detach().sigmoid(), boxes.detach(), places, *_padded(truth, logits))
        scale = targets.scores.sum().clamp(min=1)
        cls = F.binary_cross_entropy_with_logits(logits, targets.scores, reduction="sum") / scale

        chosen = targets.assigned  # (B, M)
        weight = targets.scores.sum(-1)[chosen]
        goal = targets.boxes[chosen]
        overlap = aligned_iou(boxes[chosen], goal, "ciou")
        box = ((1 - overlap) * weight).sum() / scale
        apart = _focal(sides[chosen], _cells(goal, places.expand(len(chosen), -1, -1)[chosen]))
        dfl = (apart * weight).sum() / scale

        parts = {"box": box * GAINS["box"], "cls": cls * GAINS["cls"], "dfl": dfl * GAINS["dfl"]}
        return {"loss": sum(parts.values(), logits.new_zeros(())), **parts}

    def decode(self, raw: Any, size: tuple[int, int], conf: float) -> list[Instances]:
        """Boxes (xyxy on the canvas) of every place and class that scores above `conf`."""
        logits, sides, places = _flatten([level.float() for level in raw])
        found = []
        for kinds, bins in zip(logits, sides):
            scores = kinds.sigmoid()
            kept = (scores.amax(-1) > conf).nonzero()[:, 0]  # few, so that few boxes are computed
            boxes = _boxes(bins[kept], places[kept])
            found += candidates(boxes[None], scores[None, kept], conf)
        return found


def _repeats(count: int, depth: float) -> int:
    return max(round(count * depth), 1)


# ------------------------------------------------------------------ places and boxes


def _flatten(raw: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Maps -> class logits (B, M, K), bins of the sides (B, M, 4, 16), places (M, 3): centre x and
    y and the stride, in pixels.
    """
    rows, places = [], []
    for level, stride in zip(raw, STRIDES):
        height, width = level.shape[2:]
        rows.append(level.flatten(2).transpose(1, 2))
        y = (torch.arange(height, device=level.device) + 0.5) * stride
        x = (torch.arange(width, device=level.device) + 0.5) * stride
        grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
        steps = torch.full_like(grid_x, stride)
        places.append(torch.stack([grid_x, grid_y, steps], -1).view(-1, 3))
    flat = torch.cat(rows, 1)
    sides, logits = flat[..., : 4 * BINS], flat[..., 4 * BINS :]
    return logits, sides.view(*sides.shape[:-1], 4, BINS), torch.cat(places)


def _boxes(sides: Tensor, places: Tensor) -> Tensor:
    """Bins (..., M, 4, 16) at places (M, 3) -> (..., M, 4) xyxy: the expected distance of each side
    from the centre, in cells of the place's stride.
    """
    bins = torch.arange(BINS, device=sides.device, dtype=sides.dtype)
    lengths = (sides.softmax(-1) * bins).sum(-1) * places[:, 2:]
    return torch.cat([places[:, :2] - lengths[..., :2], places[:, :2] + lengths[..., 2:]], -1)


def _cells(boxes: Tensor, places: Tensor) -> Tensor:
    """xyxy (N, 4) seen from places (N, 3) -> distances left, top, right, bottom in cells."""
    centre = places[:, :2]
    return torch.cat([centre - boxes[:, :2], boxes[:, 2:] - centre], -1) / places[:, 2:]


def _focal(sides: Tensor, lengths: Tensor) -> Tensor:
    """Distribution focal loss (N,): bins (N, 4, 16) against lengths (N, 4) in cells, which lie
    between two bins and are told to both, to the nearer one more. The mean of the four sides.
    """
    lengths = lengths.clamp(0, BINS - 1 - 0.01)
    lower = lengths.long()
    share = lengths - lower
    bins = sides.log_softmax(-1)
    below = bins.gather(-1, lower[..., None])[..., 0]
    above = bins.gather(-1, lower[..., None] + 1)[..., 0]
    return -(below * (1 - share) + above * share).mean(-1)


# ------------------------------------------------------------------ assignment


def _padded(truth: Sequence[Instances], like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Truth without crowds -> boxes (B, G, 4), labels (B, G) and which of them are real (B, G)."""
    kept = [t if t.crowd is None else t[~t.crowd] for t in truth]
    most = max((len(t) for t in kept), default=0)
    boxes = like.new_zeros(len(kept), most, 4)
    labels = torch.zeros(len(kept), most, dtype=torch.long, device=like.device)
    real = torch.zeros(len(kept), most, dtype=torch.bool, device=like.device)
    for i, t in enumerate(kept):
        boxes[i, : len(t)], labels[i, : len(t)], real[i, : len(t)] = t.boxes, t.labels, True
    return boxes, labels, real


@dataclass(frozen=True)
class Targets:
    """What every place should say: whether an object is assigned to it (B, M), that object's box
    (B, M, 4) xyxy, and the score of each class (B, M, K).
    """

    assigned: Tensor
    boxes: Tensor
    scores: Tensor


@torch.no_grad()
def assign(
    scores: Tensor, boxes: Tensor, places: Tensor, goals: Tensor, labels: Tensor, real: Tensor
) -> Targets:
    """Task-aligned assignment (Feng et al. 2021): scores (B, M, K) and boxes (B, M, 4) predicted at
    places (M, 3); goals (B, G, 4), labels (B, G) and real (B, G) are the truth.

    An object takes the 10 places within it whose score^0.5 x CIoU^6 is highest; a place that
    several objects take goes to the one it overlaps most. The target score of an object's best
    place is the highest overlap any of its places has; the others' is lower in proportion.
    """
    x, y = places[:, 0], places[:, 1]
    left, top, right, bottom = goals[..., None].unbind(2)  # each (B, G, 1)
    inside = (x > left) & (x < right) & (y > top) & (y < bottom) & real[..., None]  # (B, G, M)
    if not inside.any():
        nothing = torch.zeros_like(scores)
        return Targets(nothing[..., 0].bool(), torch.zeros_like(boxes), nothing)
    picture, goal, place = inside.nonzero(as_tuple=True)
    overlap = aligned_iou(boxes[picture, place], goals[picture, goal], "ciou").clamp(min=0)
    said = scores[picture, place, labels[picture, goal]]
    overlaps, merits = scores.new_zeros(2, *inside.shape)
    overlaps[picture, goal, place] = overlap
    merits[picture, goal, place] = said**0.5 * overlap**6

    best = merits.topk(min(10, len(places)), dim=-1).indices
    taken = torch.zeros_like(inside).scatter_(-1, best, True) & inside
    owner = overlaps.masked_fill(~taken, -1).argmax(1, keepdim=True)  # (B, 1, M)
    taken &= torch.zeros_like(taken).scatter_(1, owner, True)

    highest = (overlaps * taken).amax(-1, keepdim=True)  # (B, G, 1)
    most = (merits * taken).amax(-1, keepdim=True)
    strength = (merits * taken * highest / (most + 1e-9)).sum(1)  # (B, M), of its one owner
    owner = owner[:, 0]
    wanted = F.one_hot(labels.gather(1, owner), scores.shape[2]) * strength[..., None]
    return Targets(taken.any(1), goals.gather(1, owner[..., None].expand(-1, -1, 4)), wanted)


# ------------------------------------------------------------------ the table

_OFFICIAL = {
    "0": "stem",
    **{f"{1 + 2 * i}": f"stages.{i}.0" for i in range(4)},
    **{f"{2 + 2 * i}": f"stages.{i}.1" for i in range(4)},
    "9": "stages.3.2",
    "12": "neck.up_middle",
    "15": "neck.up_fine",
    "16": "neck.halve_fine",
    "18": "neck.down_middle",
    "19": "neck.halve_middle",
    "21": "neck.down_coarse",
    "22": "detect",
}
# Pattern and what takes its place, in this order, on names whose module is named already.
_RENAMES = (
    (r"^detect\.cv2\.", "detect.box."),
    (r"^detect\.cv3\.", "detect.cls."),
    (r"\.m\.(\d+)\.cv1\.", r".blocks.\1.first."),
    (r"\.m\.(\d+)\.cv2\.", r".blocks.\1.second."),
    (r"^stages\.3\.2\.cv1\.", "stages.3.2.reduce."),
    (r"\.cv1\.", ".split."),
    (r"\.cv2\.", ".merge."),
    (r"\.bn\.", ".norm."),
)


def _from_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names of the official files, such as model.2.m.0.cv1.conv.weight, -> ours."""
    renamed = {}
    for name, value in state.items():
        found = re.fullmatch(r"model\.(\d+)\.(.+)", name)
        if ".dfl." in name:
            renamed["bins"] = value.flatten()
            continue
        if found is None or found[1] not in _OFFICIAL:
            continue
        ours = f"{_OFFICIAL[found[1]]}.{found[2]}"
        for pattern, replacement in _RENAMES:
            ours = re.sub(pattern, replacement, ours)
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
    letter: str, scale: tuple[float, float, int], parameters: tuple[int, int], ap: float
) -> Entry:
    depth, width, most = scale
    release = "https://github.com/ultralytics/assets/releases/download/v8.3.0"
    return Entry(
        build=YOLOv8,
        task="detect",
        input=Input((640, 640), fit="rect", resample="bilinear"),
        parameters=parameters,
        classes=80,
        args={"depth": depth, "width": width, "most": most},
        tiny={"depth": 0.33, "width": 0.125, "most": 512, "size": (64, 64)},
        weights=(
            Weights(
                tag="coco",
                url=f"{release}/yolov8{letter}.pt",
                sha256="",  # the publisher gives none beside its files
                licence="AGPL-3.0",
                trained_on="COCO 2017",
                classes=80,
                score={"AP": ap},
                convert=_from_official,
            ),
        ),
        paper="https://arxiv.org/abs/2108.07755",
        recipe=_RECIPE,
        names=COCO80,
    )


MODELS = {
    "yolov8n": _entry("n", (0.33, 0.25, 1024), (3_167_792, 3_157_200), 37.3),
    "yolov8s": _entry("s", (0.33, 0.50, 1024), (11_186_592, 11_166_560), 44.9),
    "yolov8m": _entry("m", (0.67, 0.75, 768), (25_935_760, 25_902_640), 50.2),
    "yolov8l": _entry("l", (1.0, 1.0, 512), (43_737_984, 43_691_520), 52.9),
    "yolov8x": _entry("x", (1.0, 1.25, 512), (68_287_728, 68_229_648), 53.9),
}
