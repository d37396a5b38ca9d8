"""How a promptable network learns and is measured: Kirillov et al. 2023, appendix A.

Of every picture some objects are asked for, each by a point on it and by a box drawn about as well
as a hand would, then once more with a point where the first answer was wrong. Of three answers to a
point the best one learns, since a point may mean several things.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from sigak.structures import Batch, Instances, SigakError

__all__ = ["Answers", "Overlap", "lesson", "middle", "planes_of"]

_OBJECTS = 8  # of a picture that are asked for in a step
_FOCAL, _GAMMA, _BALANCE = 20.0, 2.0, 0.25  # weight beside dice; of Lin et al. 2017
_SHAKE, _MOST_SHAKE = 0.1, 20.0  # spread of a drawn box's corners: share of its sides, pixels

Losses = dict[str, Tensor]


def planes_of(instances: Instances) -> Tensor:
    """The masks (N, H, W) bool of objects that are no crowds; SigakError where there are none."""
    masks: Any = instances.masks
    if masks is None:
        raise SigakError(
            "prompts are learnt from objects with masks, and these have boxes alone; give a COCO "
            "instances .json with segmentations"
        )
    planes: Tensor = masks if isinstance(masks, Tensor) else masks.planes()
    return planes if instances.crowd is None else planes[~instances.crowd]


def lesson(batch: Batch) -> Callable[[Any, Tensor], Losses]:
    """What `Sam.forward` calls with itself and the embeddings (B, d, h, w): the batch's losses."""
    if batch.instances is None:
        raise SigakError("prompts are learnt from objects with masks, and these pictures have none")
    truths = [planes_of(one) for one in batch.instances]

    def teach(network: Any, embedding: Tensor) -> Losses:
        parts = [_teach(network, one[None], truth) for one, truth in zip(embedding, truths)]
        known = [part for part in parts if part is not None]
        if not known:  # nothing on any of them: nothing to learn, but every part has a gradient
            zero = sum(p.sum() for p in network.parameters()) * 0.0
            return {name: zero for name in ("loss", "focal", "dice", "iou")}  # type: ignore[misc]
        return {name: torch.stack([part[name] for part in known]).mean() for name in known[0]}

    return teach


def _teach(network: Any, embedding: Tensor, truth: Tensor) -> Losses | None:
    """The losses of one picture, embedding (1, d, h, w), truth (N, H, W) bool on the canvas."""
    device = embedding.device
    coarse = 4 * embedding.shape[2]
    small = F.adaptive_avg_pool2d(truth[:, None].float(), coarse)[:, 0] >= 0.5
    seen = small.flatten(1).any(1).nonzero()[:, 0]
    chosen = seen[torch.randperm(len(seen))[:_OBJECTS]]
    if not len(chosen):
        return None
    truth, target = truth[chosen], small[chosen].to(device)
    points = torch.stack([_place_in(plane) for plane in truth])[:, None].to(device)
    boxes = torch.stack([_shaken(plane) for plane in truth]).to(device)
    masks, quality = network.answer(embedding, network.asked(points=points))
    first = Answers(masks[:, 1:].float(), quality[:, 1:].float(), target)
    masks, quality = network.answer(embedding, network.asked(boxes=boxes))
    drawn = Answers(masks[:, :1].float(), quality[:, :1].float(), target)
    best = first.quality.argmax(1)
    earlier = first.masks[torch.arange(len(best)), best].detach()
    added, labels = _corrections(earlier, target, network.size[0] / coarse)
    asked = network.asked(
        points=torch.cat([points, added], dim=1), labels=labels, masks=earlier[:, None]
    )
    masks, quality = network.answer(embedding, asked)
    second = Answers(masks[:, :1].float(), quality[:, :1].float(), target)
    parts = [answers.losses() for answers in (first, drawn, second)]
    return {name: torch.stack([part[name] for part in parts]).mean() for name in parts[0]}


@dataclass(frozen=True)
class Answers:
    """masks (Q, K, h, w) logits and quality (Q, K) of K answers each; target (Q, h, w) bool."""

    masks: Tensor
    quality: Tensor
    target: Tensor

    def losses(self) -> Losses:
        """Of each object that of its best answer; every answer learns how good it is."""
        truth = self.target[:, None].float().expand_as(self.masks)
        apart = F.binary_cross_entropy_with_logits(self.masks, truth, reduction="none")
        sure = 1 - (-apart).exp()
        balance = torch.where(truth > 0, _BALANCE, 1 - _BALANCE)
        focal = (balance * sure**_GAMMA * apart).mean((2, 3))
        chances = self.masks.sigmoid()
        both = (chances * truth).sum((2, 3))
        dice = 1 - (2 * both + 1) / (chances.sum((2, 3)) + truth.sum((2, 3)) + 1)
        whole = _FOCAL * focal + dice
        best = whole.argmin(1, keepdim=True)
        with torch.no_grad():
            found, true = self.masks > 0, truth > 0
            iou = (found & true).sum((2, 3)) / (found | true).sum((2, 3)).clamp_min(1)
        judged = F.mse_loss(self.quality, iou)
        of_best = {"focal": focal, "dice": dice, "iou": iou}
        told = {name: value.gather(1, best).mean() for name, value in of_best.items()}
        return {"loss": whole.gather(1, best).mean() + judged, **told}


# ------------------------------------------------------------------ prompts


def _place_in(plane: Tensor) -> Tensor:
    """(2,) x, y of the middle of any pixel of a mask (H, W)."""
    places = plane.nonzero()
    y, x = places[int(torch.randint(len(places), ()))].tolist()
    return torch.tensor([x + 0.5, y + 0.5])


def _shaken(plane: Tensor) -> Tensor:
    """(4,) xyxy: a mask's box, its corners moved as by an unsteady hand."""
    rows, columns = plane.any(1).nonzero()[:, 0], plane.any(0).nonzero()[:, 0]
    box = torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).float()
    sides = (box[2:] - box[:2]).repeat(2)
    moved = (torch.randn(4) * _SHAKE * sides).clamp(-_MOST_SHAKE, _MOST_SHAKE)
    limit = box.new_tensor([plane.shape[1], plane.shape[0]]).repeat(2)
    return torch.minimum((box + moved).clamp_min(0), limit)


def _corrections(masks: Tensor, target: Tensor, stride: float) -> tuple[Tensor, Tensor]:
    """points (Q, 1, 2) on the canvas where coarse answers (Q, h, w) are wrong, or else anywhere on
    the object, and labels (Q, 2) with a first point's 1 before them.
    """
    points, labels = [], []
    for found, true in zip(masks > 0, target, strict=True):
        wrong = (found != true).nonzero()
        places = wrong if len(wrong) else true.nonzero()
        y, x = places[int(torch.randint(len(places), ()))].tolist()
        points.append([[(x + 0.5) * stride, (y + 0.5) * stride]])
        labels.append([1, int(true[y, x])])
    device = masks.device
    return torch.tensor(points, device=device), torch.tensor(labels, device=device)


def middle(plane: np.ndarray) -> tuple[float, float]:
    """x, y of the pixel of a mask (H, W) bool that is farthest from its edge."""
    depth = ndimage.distance_transform_edt(np.pad(plane, 1))[1:-1, 1:-1]
    y, x = np.unravel_index(int(depth.argmax()), plane.shape)
    return float(x) + 0.5, float(y) + 0.5


# ------------------------------------------------------------------ measure


class Overlap:
    """Mean IoU of the answers to the boxes and to the middles of the true objects."""

    def __init__(self) -> None:
        self.boxes: list[float] = []
        self.points: list[float] = []

    def update(self, results: Sequence[Any], batch: Batch) -> None:
        """Take in the results of one batch: of every object the answer to its box, then that to
        its middle.
        """
        if batch.truth is None:
            raise SigakError("masks are measured on pictures with objects, and these have none")
        for result, truth in zip(results, batch.truth, strict=True):
            planes = planes_of(truth).numpy()
            planes = planes[planes.any((1, 2))]
            for kind, start in ((self.boxes, 0), (self.points, 1)):
                for one, plane in zip(result.segments[start::2], planes, strict=True):
                    found = one.region.mask(result.size)
                    kind.append(float((found & plane).sum() / (found | plane).sum()))

    def merge(self, other: Overlap) -> None:
        """Take in what another process found."""
        self.boxes += other.boxes
        self.points += other.points

    def compute(self, detail: bool = True) -> dict[str, Any]:
        """{objects, box_iou, point_iou}."""
        means = [float(np.mean(part)) if part else 0.0 for part in (self.boxes, self.points)]
        return {"objects": len(self.boxes), "box_iou": means[0], "point_iou": means[1]}
