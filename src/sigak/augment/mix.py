"""Mixing two pictures of a batch: mixup and cutmix with their labels, blend and copy-paste with
their objects.

Partners are found within the batch: its samples are set in a random ring by the draws, and each
takes its neighbour. Who partners whom depends on who is in the batch, not on their order nor on how
many workers made it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sigak.augment.draws import Draws
from sigak.augment.geometry import KEEP_SHARE
from sigak.structures import Instances, Masks, SigakError

__all__ = [
    "Mixing",
    "Pasting",
    "class_weights",
    "cutout",
    "joined",
    "neighbours",
    "paste_objects",
    "plan_blend",
    "plan_mixing",
    "plan_pasting",
]

_BLEND_ALPHA = 32.0  # of the Beta: two pictures blend about half and half


@dataclass(frozen=True)
class Mixing:
    """What is mixed into each picture of a batch.

    partner (B,) int64, its place in the batch; weight (B,) the picture's own share of every pixel
    (mixup); boxes (B, 4) int64 xyxy, the part replaced by the partner's (cutmix), empty where
    nothing is; share (B,) its own share of the label.
    """

    partner: np.ndarray
    weight: np.ndarray
    boxes: np.ndarray
    share: np.ndarray


@dataclass(frozen=True)
class Pasting:
    """Whose objects are pasted into each picture of a batch.

    partner (B,) int64, its place in the batch; chosen (B,) bool, whether anything is pasted; coins
    (B,) uint64, whose bit n says whether the partner's object n (modulo 64) is.
    """

    partner: np.ndarray
    chosen: np.ndarray
    coins: np.ndarray


def neighbours(draws: Draws, slot: str, steps: int = 1) -> np.ndarray:
    """(B,) int64: the place of who stands `steps` further in a random ring of the batch."""
    ring = np.argsort(draws.uniform(slot), kind="stable")
    found = np.empty(len(draws), np.int64)
    found[ring] = np.roll(ring, -steps)
    return found


def plan_mixing(draws: Draws, mixup: float, cutmix: float, size: tuple[int, int]) -> Mixing:
    """Who is mixed with whom, and how much; mixup and cutmix are the alpha of a Beta, 0 is off.

    Mixup: Zhang et al. (ICLR 2018); cutmix: Yun et al. (ICCV 2019). With both chosen, each picture
    takes one of them by a coin.
    """
    count = len(draws)
    partner = neighbours(draws, "mix.ring")
    cuts = np.full(count, mixup == 0) if not (mixup and cutmix) else draws.chance("mix.which")
    boxes = np.zeros((count, 4), np.int64)
    weight = np.ones(count)
    if mixup:
        weight = np.where(cuts, 1.0, draws.beta("mixup", mixup))
    if cutmix:
        side = np.sqrt(1.0 - draws.beta("cutmix", cutmix))
        boxes[cuts] = _squares(draws, "cutmix", side[:, None] * np.array(size), size)[cuts]
    covered = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) / (size[0] * size[1])
    return Mixing(partner, weight, boxes, weight * (1.0 - covered))


def plan_blend(draws: Draws, probability: float) -> Mixing:
    """For a share of the pictures about as much of a partner as of themselves: mixup as Zhang et
    al., "Bag of Freebies for Training Object Detection Neural Networks" (2019), do it, where both
    pictures' objects count in full. https://arxiv.org/abs/1902.04103
    """
    partner = neighbours(draws, "blend.ring")
    chosen = draws.chance("blend", probability) & (partner != np.arange(len(draws)))
    weight = np.where(chosen, draws.beta("blend.weight", _BLEND_ALPHA), 1.0)
    return Mixing(partner, weight, np.zeros((len(draws), 4), np.int64), weight)


def plan_pasting(draws: Draws, probability: float) -> Pasting:
    """Into a share of the pictures about half of a partner's objects, cut out along their outlines.

    Ghiasi et al., "Simple Copy-Paste is a Strong Data Augmentation Method for Instance
    Segmentation" (CVPR 2021), https://arxiv.org/abs/2012.07177.
    """
    partner = neighbours(draws, "copypaste.ring")
    chosen = draws.chance("copypaste", probability) & (partner != np.arange(len(draws)))
    return Pasting(partner, chosen, draws.bits("copypaste.coins"))


def cutout(draws: Draws, side: int, size: tuple[int, int]) -> np.ndarray:
    """(B, 4) int64 xyxy of squares to blank, centred anywhere on the canvas.

    DeVries and Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout",
    arXiv:1708.04552.
    """
    return _squares(draws, "cutout", np.full((len(draws), 2), float(side)), size)


def _squares(draws: Draws, slot: str, sides: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(B, 4) int64 boxes of sides (B, 2) height, width about random centres, cut to the canvas."""
    boxes = np.empty((len(draws), 4), np.int64)
    for axis, limit in ((0, size[1]), (1, size[0])):
        extent = sides[:, 1 - axis]
        start = np.round(draws.uniform(f"{slot}.{'xy'[axis]}", 0, limit) - extent / 2)
        boxes[:, axis] = np.clip(start, 0, limit)
        boxes[:, axis + 2] = np.clip(start + np.round(extent), 0, limit)
    return boxes


def class_weights(labels: Tensor, mixing: Mixing, classes: int) -> Tensor:
    """Labels (B,) int64 or (B, K) float, mixed as the pictures are -> (B, K) float.

    An unknown label (-1) weighs nothing. Raises SigakError where the labels are whole numbers and
    the number of classes is not known.
    """
    weights = labels
    if labels.ndim == 1:
        if classes <= 0:
            raise SigakError(
                "mixup and cutmix turn labels into class weights, but the number of classes is not "
                "known; give classes= to Pipeline.parse, or labels of shape (B, classes)"
            )
        known = (labels >= 0)[:, None]
        weights = torch.nn.functional.one_hot(labels.clamp(min=0), classes).float() * known
    share = torch.from_numpy(mixing.share).to(weights)[:, None]
    partner = torch.from_numpy(mixing.partner).to(weights.device)
    return share * weights + (1 - share) * weights[partner]


def joined(parts: Sequence[Instances]) -> Instances:
    """The objects of several pictures as those of one; fields that one of them lacks are left out,
    but who is a crowd is kept.
    """
    if any(part.crowd is not None for part in parts):
        parts = [
            part if part.crowd is not None else replace(part, crowd=torch.zeros(len(part)).bool())
            for part in parts
        ]
    whole: dict[str, Any] = {}
    for f in fields(Instances):
        values = [getattr(part, f.name) for part in parts]
        if all(isinstance(value, Tensor) for value in values):
            whole[f.name] = torch.cat(values)
        elif all(isinstance(value, Masks) for value in values):
            whole[f.name] = Masks.joined(values)
        elif all(isinstance(value, list) for value in values):
            whole[f.name] = list(chain.from_iterable(values))
    return Instances(**whole)


def paste_objects(
    objects: Sequence[Instances], pasting: Pasting
) -> tuple[list[Instances], list[Tensor | None]]:
    """The objects of each picture after pasting, and (H, W) bool masks of what is pasted in it.

    What lies under a pasted object loses that part of its mask, its box becomes the hull of what is
    left, and its points there are hidden; an object with less than `KEEP_SHARE` left is dropped.
    """
    results: list[Instances] = []
    covers: list[Tensor | None] = []
    for own, partner, chosen, coins in zip(
        objects, pasting.partner, pasting.chosen, pasting.coins.tolist()
    ):
        given = objects[partner]
        if own.masks is None or given.masks is None:
            raise SigakError(
                "copypaste cuts objects out along their outlines, but this batch has only boxes; "
                "leave copypaste out of the augmentation"
            )
        picked = torch.tensor([bool(coins >> (n % 64) & 1) for n in range(len(given))]).bool()
        if given.crowd is not None:
            picked &= ~given.crowd
        if not chosen or not picked.any():
            results.append(own)
            covers.append(None)
            continue
        pasted = given[picked]
        cover = _union(given.masks[picked.nonzero()[:, 0]])
        results.append(joined([_under(own, cover), pasted]))
        covers.append(torch.from_numpy(cover))
    return results, covers


def _union(masks: Masks) -> np.ndarray:
    """(H, W) bool: what is in at least one mask."""
    whole = np.zeros(masks.size, bool)
    for window, patch in zip(masks.windows(), masks.patches):
        whole[window] |= patch
    return whole


def _under(objects: Instances, cover: np.ndarray) -> Instances:
    """What is left of objects with masks under a cover (H, W) bool."""
    if objects.masks is None or not len(objects):
        return objects
    masks = objects.masks
    patches = [patch & ~cover[place] for place, patch in zip(masks.windows(), masks.patches)]
    left = replace(masks, patches=patches)
    before, after = masks.areas(), left.areas()
    boxes = objects.boxes.clone()
    for place in torch.nonzero((after < before) & (after > 0)).flatten().tolist():
        rows, columns = (np.flatnonzero(patches[place].any(axis=d)) for d in (1, 0))
        x, y = masks.corners[place].tolist()
        sides = [x + columns[0], y + rows[0], x + columns[-1] + 1, y + rows[-1] + 1]
        hull = torch.tensor(sides).to(boxes)
        # A box drawn wider than its outline stays no wider than it was.
        boxes[place, :2] = torch.maximum(boxes[place, :2], hull[:2])
        boxes[place, 2:] = torch.minimum(boxes[place, 2:], hull[2:])
    kept = (after >= KEEP_SHARE * before) & ((boxes[:, 2:] - boxes[:, :2]) > 0).all(dim=1)
    under = replace(objects, boxes=boxes, masks=left)
    if objects.points is not None:
        under.points = _hidden(objects.points, torch.from_numpy(cover))
    return under[kept]


def _hidden(points: Tensor, cover: Tensor) -> Tensor:
    """Points (N, K, 3) of which those under a cover (H, W) bool are hidden."""
    height, width = cover.shape
    x = points[..., 0].long().clamp(0, width - 1)
    y = points[..., 1].long().clamp(0, height - 1)
    hidden = points.clone()
    hidden[..., 2] = torch.where(cover[y, x], points[..., 2].clamp(max=1), points[..., 2])
    return hidden
