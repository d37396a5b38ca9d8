"""[yolo] and [region] of a .cfg: how raw maps become boxes, and what they learn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from sigak.io.darknet import Section
from sigak.ops.boxes import cxcywh_to_xyxy, iou, xyxy_to_cxcywh
from sigak.structures import Instances, SigakError

__all__ = ["Head", "learn"]

# `iou_normalizer` weighs a gradient that Darknet takes by the box as shares of the picture and does
# not lead back through sigmoid and anchor. The true one is far less: unscaled, YOLOv4 hardly learns
# its boxes. With this factor they count as in YOLOX.
_CIOU = 70.0
_LARGEST = 8.0  # log of a box's side in anchors; beyond it the exponential would overflow


@dataclass(frozen=True)
class Head:
    """What one [yolo] or [region] says.

    softmax: one class per box, as in YOLOv2, else each for itself. anchors (width, height), all of
    the list, in pixels of the canvas, or in cells where `in_cells`; mask: those of this map. scale:
    how far a centre may leave its cell (`scale_x_y`). ignore: overlap with an object from which a
    box is no background; nearby: overlap of shapes from which an anchor that is not the best learns
    an object too. box: "mse" or "ciou". weights of the loss's parts.
    """

    softmax: bool
    anchors: tuple[tuple[float, float], ...]
    mask: tuple[int, ...]
    in_cells: bool
    scale: float
    ignore: float
    nearby: float
    box: str
    weights: dict[str, float]

    @staticmethod
    def anchors_of(section: Section) -> tuple[tuple[tuple[float, float], ...], tuple[int, ...]]:
        """All anchors of a head's section, and the indices of those that its map has."""
        numbers = section.reals("anchors")
        if len(numbers) % 2 or min(numbers) <= 0:
            raise SigakError(
                f"[{section.kind}]{section.where}: expected anchors as pairs of width and height "
                f"above 0, received {section.options['anchors']!r}"
            )
        pairs = tuple(zip(numbers[::2], numbers[1::2]))
        mask = section.wholes("mask", range(len(pairs)))
        if not all(0 <= number < len(pairs) for number in mask):
            raise SigakError(
                f"[{section.kind}]{section.where}: expected a mask of anchors from 0 to "
                f"{len(pairs) - 1}, received {mask}"
            )
        return pairs, mask

    @classmethod
    def of(cls, section: Section, channels: int) -> Head:
        """The head of a section that takes a map of so many channels."""
        anchors, mask = cls.anchors_of(section)
        wanted = len(mask) * (5 + section.whole("classes", 20))
        for key, plain in (("new_coords", "0"), ("coords", "4"), ("tree", "")):
            if section.options.get(key, plain) != plain:
                raise SigakError(f"[{section.kind}]{section.where}: {key} is not built here")
        if channels != wanted:
            raise SigakError(
                f"[{section.kind}]{section.where}: expected {wanted} filters before it, received "
                f"{channels}"
            )
        region = section.kind == "region"
        if region:
            names = {"box": "coord_scale", "obj": "object_scale", "noobj": "noobject_scale"}
            names["cls"] = "class_scale"
        else:
            names = {"box": "iou_normalizer", "obj": "obj_normalizer", "noobj": "obj_normalizer"}
            names["cls"] = "cls_normalizer"
        mse = section.word("iou_loss", "mse") == "mse"
        if mse and not region:
            names.pop("box")
        weights = {"box": 1.0} | {name: section.real(key, 1.0) for name, key in names.items()}
        if not mse:
            weights["box"] *= _CIOU
        return cls(
            softmax=region and bool(section.whole("softmax", 0)),
            anchors=anchors,
            mask=mask,
            in_cells=region,
            scale=section.real("scale_x_y", 1.0),
            ignore=section.real("thresh" if region else "ignore_thresh", 0.5),
            nearby=section.real("iou_thresh", 1.0),
            box="mse" if mse else "ciou",
            weights=weights,
        )

    def split(self, level: Tensor) -> Tensor:
        """A map (B, A (5 + K), H, W) -> (B, A, H, W, 5 + K) float32."""
        batch, channels, height, width = level.shape
        count = len(self.mask)
        parts = level.float().reshape(batch, count, channels // count, height, width)
        return parts.permute(0, 1, 3, 4, 2)

    def stride(self, values: Tensor, size: tuple[int, int]) -> Tensor:
        """(2,) pixels of the canvas that a cell is wide and high."""
        height, width = values.shape[2:4]
        return values.new_tensor([size[1] / width, size[0] / height])

    def shapes(self, values: Tensor, size: tuple[int, int]) -> Tensor:
        """(all anchors, 2) widths and heights in pixels of the canvas."""
        anchors = values.new_tensor(self.anchors)
        return anchors * self.stride(values, size) if self.in_cells else anchors

    def boxes(self, values: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, A, H, W, 5 + K) -> (B, A, H, W, 4) xyxy in pixels of the canvas of `size` (H, W)."""
        height, width = values.shape[2:4]
        rows = torch.arange(height, device=values.device)[:, None].expand(height, width)
        columns = torch.arange(width, device=values.device).expand(height, width)
        within = values[..., :2].sigmoid() * self.scale - (self.scale - 1) / 2
        centres = (within + torch.stack([columns, rows], -1)) * self.stride(values, size)
        anchors = self.shapes(values, size)[list(self.mask)][:, None, None]  # (A, 1, 1, 2)
        sides = values[..., 2:4].clamp(max=_LARGEST).exp() * anchors
        return cxcywh_to_xyxy(torch.cat([centres, sides], -1))

    def scores(self, values: Tensor) -> Tensor:
        """(..., 5 + K) -> (..., K): objectness times class probability."""
        classes = values[..., 5:].softmax(-1) if self.softmax else values[..., 5:].sigmoid()
        return values[..., 4:5].sigmoid() * classes


# ------------------------------------------------------------------ learning


class _Truth(NamedTuple):
    """The objects of a batch: T boxes (T, 4) xyxy, labels (T,), their pictures (T,)."""

    boxes: Tensor
    labels: Tensor
    picture: Tensor


class _Matched(NamedTuple):
    """P boxes that learn: where they are in a map, which anchor and which object it is."""

    picture: Tensor
    slot: Tensor
    row: Tensor
    column: Tensor
    anchor: Tensor
    truth: Tensor


def learn(
    heads: Sequence[Head], raw: Sequence[Tensor], truth: Sequence[Instances], size: tuple[int, int]
) -> dict[str, Tensor]:
    """The loss of all heads together, and its parts: sums divided by how many boxes learn."""
    objects = _Truth(
        torch.cat([t.boxes for t in truth]).float(),
        torch.cat([t.labels for t in truth]),
        torch.cat([torch.full_like(t.labels, i) for i, t in enumerate(truth)]),
    )
    used = sorted({anchor for head in heads for anchor in head.mask})
    sums: dict[str, Tensor] = {}
    count = 0
    for head, level in zip(heads, raw, strict=True):
        values = head.split(level)
        matched = _match(head, values, objects, used, size)
        count += len(matched.truth)
        for name, value in _parts(head, values, objects, matched, size).items():
            sums[name] = sums.get(name, 0) + value
    parts = {name: value / max(count, 1) for name, value in sums.items()}
    return {"loss": torch.stack(list(parts.values())).sum(), **parts}


@torch.no_grad()
def _match(
    head: Head, values: Tensor, truth: _Truth, used: list[int], size: tuple[int, int]
) -> _Matched:
    """Each object is learnt by the cell its centre lies in, and there by the anchor whose shape
    overlaps its own best, of all `used` ones, and by those above the head's `nearby`.
    """
    boxes = xyxy_to_cxcywh(truth.boxes)
    shapes = head.shapes(values, size)
    overlap = _shape_iou(boxes[:, 2:], shapes)  # (T, all anchors)
    spare = torch.ones(len(shapes), dtype=torch.bool, device=shapes.device)
    spare[used] = False
    best = overlap.masked_fill(spare, -1.0).argmax(1)
    mask = torch.tensor(head.mask, device=best.device)
    learns = (mask == best[:, None]) | (overlap[:, mask] > head.nearby)  # (T, A)
    which, slot = learns.nonzero(as_tuple=True)
    cells = (boxes[which, :2] / head.stride(values, size)).long()
    height, width = values.shape[2:4]
    return _Matched(
        picture=truth.picture[which],
        slot=slot,
        row=cells[:, 1].clamp(0, height - 1),
        column=cells[:, 0].clamp(0, width - 1),
        anchor=mask[slot],
        truth=which,
    )


def _shape_iou(sides: Tensor, anchors: Tensor) -> Tensor:
    """IoU of boxes with one centre: (T, 2) and (A, 2) widths and heights -> (T, A)."""
    common = torch.minimum(sides[:, None], anchors).prod(2)
    return common / (sides.prod(1)[:, None] + anchors.prod(1) - common + 1e-9)


def _parts(
    head: Head, values: Tensor, truth: _Truth, matched: _Matched, size: tuple[int, int]
) -> dict[str, Tensor]:
    """The weighted sums of one head's loss: "box", "obj", "cls"."""
    boxes = head.boxes(values, size)
    place = (matched.picture, matched.slot, matched.row, matched.column)
    learnt, predicted = values[place], boxes[place]  # (P, 5 + K), (P, 4)
    wanted, labels = truth.boxes[matched.truth], truth.labels[matched.truth]

    positive = torch.zeros_like(values[..., 4], dtype=torch.bool)
    positive[place] = True
    negative = ~positive & ~_overlapping(boxes.detach(), truth, head.ignore)
    if head.softmax:
        overlap = _paired(predicted.detach(), wanted)[0]
        yes = ((learnt[:, 4].sigmoid() - overlap) ** 2).sum()
        no = (values[..., 4].sigmoid()[negative] ** 2).sum()
        classes = F.cross_entropy(learnt[:, 5:], labels, reduction="sum")
    else:
        yes = F.softplus(-values[..., 4][positive]).sum()
        no = F.softplus(values[..., 4][negative]).sum()
        hot = F.one_hot(labels, learnt.shape[1] - 5).float()
        classes = F.binary_cross_entropy_with_logits(learnt[:, 5:], hot, reduction="sum")
    if head.box == "ciou":
        box = (1 - _ciou(predicted, wanted)).sum()
    else:
        box = _squared(head, values, learnt, wanted, matched, size)
    return {
        "box": head.weights["box"] * box,
        "obj": head.weights["obj"] * yes + head.weights["noobj"] * no,
        "cls": head.weights["cls"] * classes,
    }


@torch.no_grad()
def _overlapping(boxes: Tensor, truth: _Truth, threshold: float) -> Tensor:
    """(B, A, H, W, 4) -> (B, A, H, W) bool: overlaps an object of its picture that much."""
    found = torch.zeros(boxes.shape[:4], dtype=torch.bool, device=boxes.device)
    for picture in sorted(set(truth.picture.tolist())):
        own = truth.boxes[truth.picture == picture]
        best = iou(own, boxes[picture].reshape(-1, 4)).amax(0)
        found[picture] = (best > threshold).view(found.shape[1:])
    return found


def _squared(
    head: Head,
    values: Tensor,
    learnt: Tensor,
    wanted: Tensor,
    matched: _Matched,
    size: tuple[int, int],
) -> Tensor:
    """Errors of centres within their cells and of log sides, small objects weighing up to twice.

    YOLOv2 squares both; YOLOv3 takes the cross-entropy of the centres, as its authors' code does.
    """
    cells = torch.stack([matched.column, matched.row], 1)
    target = xyxy_to_cxcywh(wanted)
    within = target[:, :2] / head.stride(values, size) - cells
    within = ((within + (head.scale - 1) / 2) / head.scale).clamp(0, 1)
    anchors = head.shapes(values, size)[matched.anchor]
    sides = (target[:, 2:] / anchors).clamp(min=1e-6).log()
    weight = 2 - target[:, 2:].prod(1, keepdim=True) / (size[0] * size[1])
    if head.softmax:
        centres = (learnt[:, :2].sigmoid() - within) ** 2
    else:
        centres = F.binary_cross_entropy_with_logits(learnt[:, :2], within, reduction="none")
    return (weight * (centres + (learnt[:, 2:4] - sides) ** 2 / 2)).sum()


def _paired(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Row by row, (P, 4) and (P, 4) xyxy: IoU (P,) and the sides (P, 2) of the box around both."""
    start = torch.maximum(first[:, :2], second[:, :2])
    common = (torch.minimum(first[:, 2:], second[:, 2:]) - start).clamp(min=0).prod(1)
    areas = (first[:, 2:] - first[:, :2]).prod(1) + (second[:, 2:] - second[:, :2]).prod(1)
    around = torch.maximum(first[:, 2:], second[:, 2:]) - torch.minimum(first[:, :2], second[:, :2])
    return common / (areas - common + 1e-9), around


def _ciou(first: Tensor, second: Tensor) -> Tensor:
    """Complete IoU, row by row (Zheng et al. 2020, https://arxiv.org/abs/1911.08287): less where
    the centres are apart and the sides have another ratio.
    """
    overlap, around = _paired(first, second)
    a, b = xyxy_to_cxcywh(first), xyxy_to_cxcywh(second)
    apart = ((a[:, :2] - b[:, :2]) ** 2).sum(1) / ((around**2).sum(1) + 1e-9)
    angle = torch.atan2(a[:, 2], a[:, 3] + 1e-9) - torch.atan2(b[:, 2], b[:, 3] + 1e-9)
    ratio = (2 / math.pi * angle) ** 2
    with torch.no_grad():
        alpha = ratio / (1 - overlap + ratio + 1e-9)
    return overlap - apart - alpha * ratio
