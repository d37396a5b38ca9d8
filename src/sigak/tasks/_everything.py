"""Masks of all that is on a picture, from a grid of prompts: Kirillov et al. 2023, appendix B.

The order of the steps is the published one, so that the same weights give the same masks in the
same order: predicted IoU, stability, cut-off, boxes that end at a crop's edge, suppression within a
crop, suppression between crops, small regions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain, product
from math import ceil
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sigak.asking import Prompts
from sigak.io.image import Preparation, prepare
from sigak.ops.boxes import iou
from sigak.ops.nms import nms
from sigak.ops.regions import Enlargement, Region, clean

__all__ = ["Found", "crops", "everything", "grid", "precise"]

_TOGETHER = 8  # prompts whose tokens are computed at once
_EDGE = 20  # pixels from the edge of a crop within which a box is taken to be cut off
_SURE = 0.05  # a coarse stability so far below what is asked for is not looked at closely
_COARSE = 256  # coarse pixels from which it is trusted so far

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Found:
    """One mask: region in the file's frame; quality the predicted IoU; point x, y that led to it;
    crop (x1, y1, x2, y2) of the file that was looked at.
    """

    region: Region
    quality: float
    point: tuple[float, float]
    crop: Box


@dataclass(frozen=True)
class _Candidate:
    """A mask that may be found: place of its prompt, predicted IoU, coarse logits (h, w), its box's
    first and last pixels in the crop.
    """

    place: int
    quality: float
    coarse: Tensor
    box: Box


def everything(
    network: Any, pixels: np.ndarray, preparation: Preparation, asked: Prompts, device: Any
) -> list[Found]:
    """All masks of a picture (H, W, 3) uint8, the best first.

    network: with `embed`, `prompt_encoder` and `crowd` as `sigak.models.sam.Sam` has them.
    """
    size = (pixels.shape[0], pixels.shape[1])
    parts = list(crops(size, asked.crop_layers, asked.crop_overlap))
    # Of a picture a few pixels wide some parts are empty.
    parts = [part for part in parts if part[0][0] < part[0][2] and part[0][1] < part[0][3]]
    found: list[Found] = []
    for crop, layer in parts:
        found += _of_crop(network, pixels, preparation, asked, (crop, layer, device))
    if len(parts) > 1:  # of doubled masks the one from the smaller crop
        scores = [1 / ((f.crop[2] - f.crop[0]) * (f.crop[3] - f.crop[1])) for f in found]
        found = _best(found, scores, asked.crop_nms_thresh)
    return _cleaned(found, size, asked) if asked.min_area else found


def crops(size: tuple[int, int], layers: int, overlap: float) -> Iterator[tuple[Box, int]]:
    """((x1, y1, x2, y2), layer): the whole picture, then of layer i (2^i)^2 parts that overlap."""
    height, width = size
    yield (0, 0, width, height), 0
    for layer in range(1, layers + 1):
        count = 2**layer
        shared = int(overlap * min(size) * (2 / count))
        wide, high = (ceil((shared * (count - 1) + side) / count) for side in (width, height))
        for i, j in product(range(count), repeat=2):
            x, y = (wide - shared) * i, (high - shared) * j
            yield (x, y, min(x + wide, width), min(y + high, height)), layer


def grid(count: int) -> np.ndarray:
    """(count^2, 2) x, y as shares of the sides, row by row, in the middle of equal cells."""
    steps = np.linspace(1 / (2 * count), 1 - 1 / (2 * count), count)
    return np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2)


def _of_crop(
    network: Any,
    pixels: np.ndarray,
    preparation: Preparation,
    asked: Prompts,
    where: tuple[Box, int, Any],
) -> list[Found]:
    crop, layer, device = where
    x1, y1, x2, y2 = crop
    part = pixels[y1:y2, x1:x2]
    ready, matrix = prepare(part, preparation)
    inner = (ready.shape[0], ready.shape[1])
    side = int(asked.points_per_side / asked.crop_points_downscale**layer)
    points = grid(max(1, side)) * (x2 - x1, y2 - y1)
    on_canvas = torch.from_numpy(points * (matrix[0, 0], matrix[1, 1]))[:, None].to(device)
    images = torch.from_numpy(ready.copy()).permute(2, 0, 1)[None].to(device).float() / 255
    with torch.inference_mode():
        with precise(asked.half, device):
            embedding = network.embed(images)
        crowd = network.crowd(embedding.float())
        tokens = network.prompt_encoder.tokens(network.asked(points=on_canvas))
    coarse = 4 * embedding.shape[2]
    enlargement = Enlargement(coarse, network.size[0], inner, (y2 - y1, x2 - x1))

    def look(start: int) -> list[_Candidate]:
        with torch.inference_mode():
            return _look(crowd, tokens, start, enlargement, asked)

    every = _in_threads(look, range(0, len(points), _TOGETHER))
    whole = [not _cut_off(_shifted(one.box, x1, y1), crop, pixels.shape) for one in every]
    kept = _kept([one for one, is_whole in zip(every, whole) if is_whole], enlargement, asked)
    return [
        Found(
            replace(region, corner=(region.corner[0] + x1, region.corner[1] + y1)),
            one.quality,
            (points[one.place, 0] + x1, points[one.place, 1] + y1),
            crop,
        )
        for one, region in kept
    ]


def precise(half: bool, device: Any) -> torch.autocast:
    """bfloat16 where it is asked for."""
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=half)


def _in_threads(look: Callable[[int], list[_Candidate]], starts: Sequence[int]) -> list[_Candidate]:
    """The answers in order. The products are small: two threads with a part of the prompts each
    are faster than two that share every product.
    """
    threads = torch.get_num_threads()
    if threads == 1 or len(starts) < 2:
        return list(chain.from_iterable(map(look, starts)))
    try:
        with ThreadPoolExecutor(threads, "sigak-masks", lambda: torch.set_num_threads(1)) as pool:
            return list(chain.from_iterable(pool.map(look, starts)))
    finally:
        torch.set_num_threads(threads)  # what threads made from now on begin with


def _look(
    crowd: Any, tokens: Tensor, start: int, enlargement: Enlargement, asked: Prompts
) -> list[_Candidate]:
    """The masks of some prompts that are good enough, and stable enough as far as one can tell."""
    found = []
    least, offset = asked.stability_score_thresh, asked.stability_score_offset
    for place, met in enumerate(crowd.ask(tokens[start : start + _TOGETHER]), start):
        quality = met.quality.float().cpu()
        good = quality[1:] > (asked.pred_iou_thresh or -torch.inf)
        chosen = good.nonzero()[:, 0] + 1
        if not len(chosen):
            continue
        coarse = crowd.masks(met, chosen).float().cpu()
        rough, area = enlargement.rough_stability(coarse, offset)
        for number, mask, share, count in zip(chosen, coarse, rough.tolist(), area.tolist()):
            if share >= least - _SURE or count <= _COARSE:
                box = _inclusive(enlargement.box(mask))
                found.append(_Candidate(place, float(quality[number]), mask.clone(), box))
    return found


def _kept(
    candidates: list[_Candidate], enlargement: Enlargement, asked: Prompts
) -> list[tuple[_Candidate, Region]]:
    """Those that are stable and that suppression leaves, the best first.

    Suppression asks only for boxes, so that a mask is made in full when nothing better has
    suppressed it, and only then is it seen whether it is stable: the same as if all had been made.
    """
    boxes = torch.tensor([one.box for one in candidates], dtype=torch.float32).reshape(-1, 4)
    alive = torch.ones(len(candidates), dtype=torch.bool)
    found = []
    for place in sorted(range(len(candidates)), key=lambda i: -candidates[i].quality):
        one = candidates[place]
        if not alive[place]:
            continue
        region = enlargement.region(one.coarse, asked.stability_score_offset)
        if region.stability >= asked.stability_score_thresh:
            found.append((one, region))
            alive &= ~(iou(boxes[place : place + 1], boxes)[0] > asked.box_nms_thresh)
    return found


def _shifted(box: Box, x: int, y: int) -> Box:
    return box[0] + x, box[1] + y, box[2] + x, box[3] + y


def _inclusive(box: Box) -> Box:
    """First and last pixels, as the published boxes are; zeros of an empty mask."""
    x1, y1, x2, y2 = box
    return (x1, y1, x2 - 1, y2 - 1) if x2 > x1 else (0, 0, 0, 0)


def _cut_off(box: Box, crop: Box, shape: tuple[int, ...]) -> bool:
    """Whether the box ends near an edge of the crop that is none of the picture."""
    whole = (0, 0, shape[1], shape[0])
    return any(
        abs(side - edge) <= _EDGE < abs(side - end) for side, edge, end in zip(box, crop, whole)
    )


def _best(found: list[Found], scores: Sequence[float], overlap: float) -> list[Found]:
    """Those that suppression leaves, the best first."""
    if not found:
        return []
    boxes = torch.tensor([_inclusive(f.region.box) for f in found], dtype=torch.float32)
    return [found[i] for i in nms(boxes, torch.tensor(scores), iou=overlap).tolist()]


def _cleaned(found: list[Found], size: tuple[int, int], asked: Prompts) -> list[Found]:
    """Without small holes and islands; of masks that have become doubled, an unchanged one."""
    results = [clean(f.region, size, asked.min_area) for f in found]
    new = [replace(f, region=region) for f, (region, _) in zip(found, results)]
    scores = [float(not changed) for _, changed in results]
    return _best(new, scores, max(asked.box_nms_thresh, asked.crop_nms_thresh))
