"""Mixing two pictures of a batch and their labels: mixup and cutmix.

Partners are found within the batch: its samples are set in a random ring by the draws, and each
takes its neighbour. Who partners whom depends on who is in the batch, not on their order nor on how
many workers made it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sigak.augment.draws import Draws
from sigak.structures import SigakError

__all__ = ["Mixing", "class_weights", "cutout", "plan_mixing"]


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


def plan_mixing(draws: Draws, mixup: float, cutmix: float, size: tuple[int, int]) -> Mixing:
    """Who is mixed with whom, and how much; mixup and cutmix are the alpha of a Beta, 0 is off.

    Mixup: Zhang et al. (ICLR 2018); cutmix: Yun et al. (ICCV 2019). With both chosen, each picture
    takes one of them by a coin.
    """
    count = len(draws)
    ring = np.argsort(draws.uniform("mix.ring"), kind="stable")
    partner = np.empty(count, np.int64)
    partner[ring] = np.roll(ring, -1)
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
