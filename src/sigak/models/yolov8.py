"""YOLOv8 (Jocher et al. 2023): an anchor-free detector of one stage, in five sizes, alone and with
masks.

It has no paper; its parts do. Cross-stage partial blocks, Wang et al. 2019,
https://arxiv.org/abs/1911.11929; a path aggregation neck, Liu et al. 2018,
https://arxiv.org/abs/1803.01534; sides of boxes as distributions, "Generalized focal loss", Li et
al. 2020, https://arxiv.org/abs/2006.04388; truth assigned by how well box and class agree, "TOOD",
Feng et al. 2021, https://arxiv.org/abs/2108.07755; CIoU, Zheng et al. 2020,
https://arxiv.org/abs/2005.03572; masks mixed from prototypes, "YOLACT", see `_prototypes`.

What differs here: the expectation over the bins of a side is arithmetic and no convolution; its 16
fixed numbers are kept as a parameter that never moves, as published counts have them.

Input (B, 3, H, W) in [0, 1] with H and W multiples of 32. Raw output: three maps
(B, 64 + classes, H/s, W/s), s = 8, 16, 32: 4 sides x 16 bins, then one logit per class. With masks
32 coefficients follow, and behind the three maps the prototypes (B, 32, H/4, W/4).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sigak.layers.conv import SPPF, ConvNorm
from sigak.layers.normalize import Normalize
from sigak.models._assignment import Targets, assign
from sigak.models._coco_names import COCO80
from sigak.models._detector import Detector, candidates
from sigak.models._entry import Entry, Input, Weights
from sigak.models._prototypes import PROTOTYPES, Mixed, Prototypes, mask_loss
from sigak.ops.boxes import aligned_iou
from sigak.structures import Instances, SigakError

__all__ = ["MODELS", "Bottleneck", "C2f", "Head", "Neck", "YOLOv8", "YOLOv8Masks"]

STRIDES = (8, 16, 32)
BINS = 16  # of the distribution of a side's length, in cells
GAINS = {"box": 7.5, "cls": 0.5, "dfl": 1.5, "mask": 7.5}


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

    head: tuple[str, ...] = ("detect",)
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
        return tuple(self.detect(self.maps(images)))

    def maps(self, images: Tensor) -> list[Tensor]:
        """What the neck makes of images: three maps of strides 8, 16 and 32."""
        x = self.stem(self.normalize(images))
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return self.neck(*maps[1:])  # type: ignore[no-any-return]

    def loss(
        self, raw: Any, truth: Sequence[Instances], size: tuple[int, int]
    ) -> dict[str, Tensor]:
        """Parts "box" (CIoU), "cls" (binary cross-entropy), "dfl" (distribution focal), each over
        the sum of the target scores, weighted by `GAINS`.
        """
        parts, _ = self._compare(raw, truth)
        return {"loss": torch.stack(list(parts.values())).sum(), **parts}

    def _compare(self, maps: Any, truth: Sequence[Instances]) -> tuple[dict[str, Tensor], Targets]:
        """The parts of the loss, and what every place learns."""
        logits, sides, places = _flatten(maps)
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
        return parts, targets

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


class YOLOv8Masks(YOLOv8):
    """`YOLOv8` whose places also give 32 coefficients that mix a mask from prototypes."""

    head = ("detect", "coefficients", "prototypes")

    def __init__(self, *, width: float = 0.25, **how: Any) -> None:
        super().__init__(width=width, **how)
        channels = [branch[0].conv.in_channels for branch in self.detect.box]  # type: ignore[index,union-attr]
        hidden = max(channels[0] // 4, PROTOTYPES)
        self.coefficients = nn.ModuleList(_branch(c, hidden, PROTOTYPES) for c in channels)
        self.prototypes = Prototypes(channels[0], math.ceil(256 * width / 8) * 8)

    def raw(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, C, H, W) in [0, 1] -> three maps (B, 96 + classes, H/s, W/s), and prototypes (B, 32,
        H/4, W/4).
        """
        maps = self.maps(images)
        levels = zip(self.detect(maps), self.coefficients, maps)
        found = [torch.cat([level, branch(x)], 1) for level, branch, x in levels]
        return (*found, self.prototypes(maps[0]))

    def loss(
        self, raw: Any, truth: Sequence[Instances], size: tuple[int, int]
    ) -> dict[str, Tensor]:
        """As without masks, and "mask": binary cross-entropy within the boxes."""
        *levels, prototypes = raw
        truth = [t if t.crowd is None else t[~t.crowd] for t in truth]
        parts, targets = self._compare([level[:, :-PROTOTYPES] for level in levels], truth)
        weights = _rows([level[:, -PROTOTYPES:] for level in levels])
        parts["mask"] = GAINS["mask"] * mask_loss(
            weights, prototypes, targets.assigned, targets.owners, truth
        )
        return {"loss": torch.stack(list(parts.values())).sum(), **parts}

    def decode(self, raw: Any, size: tuple[int, int], conf: float) -> list[Instances]:
        """As without masks, each with its `soft` mask."""
        *levels, prototypes = [part.float() for part in raw]
        logits, sides, places = _flatten([level[:, :-PROTOTYPES] for level in levels])
        weights = _rows([level[:, -PROTOTYPES:] for level in levels])
        found = []
        for kinds, bins, mix, planes in zip(logits, sides, weights, prototypes):
            scores = kinds.sigmoid()
            place, label = (scores > conf).nonzero(as_tuple=True)
            boxes = _boxes(bins[place], places[place])
            soft = Mixed(mix[place], planes)
            found.append(Instances(boxes, label, scores[place, label], soft=soft))
        return found


def _repeats(count: int, depth: float) -> int:
    return max(round(count * depth), 1)


# ------------------------------------------------------------------ places and boxes


def _flatten(raw: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Maps -> class logits (B, M, K), bins of the sides (B, M, 4, 16), places (M, 3): centre x and
    y and the stride, in pixels.
    """
    places = []
    for level, stride in zip(raw, STRIDES):
        height, width = level.shape[2:]
        y = (torch.arange(height, device=level.device) + 0.5) * stride
        x = (torch.arange(width, device=level.device) + 0.5) * stride
        grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
        steps = torch.full_like(grid_x, stride)
        places.append(torch.stack([grid_x, grid_y, steps], -1).view(-1, 3))
    flat = _rows(raw)
    sides, logits = flat[..., : 4 * BINS], flat[..., 4 * BINS :]
    return logits, sides.view(*sides.shape[:-1], 4, BINS), torch.cat(places)


def _rows(maps: Sequence[Tensor]) -> Tensor:
    """Maps (B, C, H, W) -> (B, M, C), all places behind each other."""
    return torch.cat([level.flatten(2).transpose(1, 2) for level in maps], 1)


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
    (r"^detect\.cv4\.", "coefficients."),
    (r"^detect\.proto\.cv1\.", "prototypes.first."),
    (r"^detect\.proto\.upsample\.", "prototypes.up."),
    (r"^detect\.proto\.cv2\.", "prototypes.second."),
    (r"^detect\.proto\.cv3\.", "prototypes.last."),
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
    letter: str,
    scale: tuple[float, float, int],
    parameters: tuple[int, int],
    score: dict[str, float],
) -> Entry:
    """A row of this family; letter: as published, such as "n" or "n-seg"."""
    depth, width, most = scale
    masks = letter.endswith("-seg")
    release = "https://github.com/ultralytics/assets/releases/download/v8.3.0"
    return Entry(
        build=YOLOv8Masks if masks else YOLOv8,
        task="instances" if masks else "detect",
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
                score=score,
                convert=_from_official,
            ),
        ),
        paper="https://arxiv.org/abs/1904.02689" if masks else "https://arxiv.org/abs/2108.07755",
        recipe=_RECIPE,
        names=COCO80,
    )


_SCALES = {
    "n": (0.33, 0.25, 1024),
    "s": (0.33, 0.50, 1024),
    "m": (0.67, 0.75, 768),
    "l": (1.0, 1.0, 512),
    "x": (1.0, 1.25, 512),
}
# letter: (parameters of Entry, AP), with masks (parameters, AP of boxes, AP of masks)
_PLAIN = {
    "n": ((3_167_792, 3_157_200), 37.3),
    "s": ((11_186_592, 11_166_560), 44.9),
    "m": ((25_935_760, 25_902_640), 50.2),
    "l": ((43_737_984, 43_691_520), 52.9),
    "x": ((68_287_728, 68_229_648), 53.9),
}
_SEG = {
    "n": ((3_421_264, 3_409_968), 36.7, 30.5),
    "s": ((11_842_048, 11_821_056), 44.6, 36.8),
    "m": ((27_320_496, 27_285_968), 49.9, 40.8),
    "l": ((46_046_048, 45_997_728), 52.3, 42.6),
    "x": ((71_888_272, 71_827_888), 53.4, 43.4),
}
MODELS = {
    **{
        f"yolov8{size}": _entry(size, _SCALES[size], counts, {"AP": ap})
        for size, (counts, ap) in _PLAIN.items()
    },
    **{
        f"yolov8{size}-seg": _entry(f"{size}-seg", _SCALES[size], counts, {"AP": ap, "mask AP": m})
        for size, (counts, ap, m) in _SEG.items()
    },
}
