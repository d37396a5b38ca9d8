"""Whether two engines say the same: of raw output to rounding, of answers as people read them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sigak import data
from sigak.data import scenes
from sigak.io import image
from sigak.ops.boxes import aligned_iou, iou
from sigak.structures import Batch, Sample
from sigak.tasks import Task

__all__ = ["TOLERANCE", "Difference", "differences", "drawn", "noise", "same_answers", "together"]

TOLERANCE = 1e-4
"""Share of the largest number of raw output that float32 engines may differ by: they add up in
another order."""
_SAME_SCORE = 0.01
_SAME_BOX = 0.99  # intersection over union
_SAME_MASK = 0.95  # of masks, whose borders are thin
_SAME_PIXELS = 0.99  # share of a class map


def drawn(preparation: image.Preparation, count: int) -> list[Sample]:
    """`count` pictures that need no files: handwritten digits for networks that see gray, else
    drawn scenes; prepared for the network.
    """
    if preparation.color == "gray":
        pixels = data.load("digits").splits["test"].pixels
        chosen = [] if pixels is None else [(f"digits#{i}", pixels[i]) for i in range(count)]
    else:
        chosen = [(f"scenes#{i}", scenes.render(0, i, (256, 256))[0]) for i in range(count)]
    samples = []
    for place, (name, picture) in enumerate(chosen):
        ready, matrix, size = image.load(picture, preparation)
        samples.append(Sample(ready, name, place, matrix=matrix, size=size))
    return samples


def together(samples: Sequence[Sample], most: int) -> list[Batch]:
    """Floating batches of at most `most` neighbours of one size."""
    batches = []
    for _, group in groupby(samples, key=lambda sample: sample.image.shape):
        same = list(group)
        batches += [Batch.of(same[i : i + most]).floating() for i in range(0, len(same), most)]
    return batches


def noise(shape: tuple[int, ...], count: int, seed: int = 0) -> Batch:
    """`count` random inputs of `shape`: (C, H, W) from 0 to 1, or (N,) from N(0, 1)."""
    generator = np.random.default_rng(seed)
    picture = len(shape) == 3
    values = (
        generator.random((count, *shape)) if picture else generator.normal(size=(count, *shape))
    )
    name = f"noise {'x'.join(str(side) for side in shape[1:] or shape)} of {count}"
    return Batch(
        images=torch.from_numpy(values.astype(np.float32)),
        indices=torch.arange(count),
        matrix=torch.eye(3, dtype=torch.float64).expand(count, 3, 3),
        sizes=[(shape[-2], shape[-1]) if picture else (1, 1)] * count,
        sources=[f"{name}, {i + 1}" for i in range(count)],
    )


@dataclass(frozen=True)
class Difference:
    """How far raw outputs are apart for the picture `source`, as a share of the largest number."""

    source: str
    share: float


def differences(ours: Any, theirs: Any, sources: Sequence[str]) -> list[Difference]:
    """One a picture, over all raw tensors; infinite where shapes differ or a number is none."""
    first = [ours] if isinstance(ours, Tensor) else list(ours)
    second = [theirs] if isinstance(theirs, Tensor) else list(theirs)
    if len(first) != len(second):
        return [Difference(source, float("inf")) for source in sources]
    shares = torch.stack([_shares(a, b, len(sources)) for a, b in zip(first, second)]).amax(0)
    return [Difference(source, share) for source, share in zip(sources, shares.tolist())]


def _shares(ours: Tensor, theirs: Tensor, count: int) -> Tensor:
    """(count,) largest difference of each picture by the largest number of all."""
    if ours.shape != theirs.shape or len(ours) != count:
        return torch.full((count,), torch.inf)
    ours, theirs = ours.detach().cpu().double(), theirs.detach().cpu().double()
    apart = (ours - theirs).abs().flatten(1).amax(1)
    return (apart / ours.abs().max().clamp_min(1e-12)).nan_to_num(nan=torch.inf, posinf=torch.inf)


def same_answers(task: Task, ours: Sequence[Any], theirs: Sequence[Any]) -> bool | None:
    """Whether results are the same to a reader: the same class, the same boxes, pictures that
    differ by at most one level. None where nothing was found that could be compared.
    """
    compare = _SAME.get(task.name)
    if compare is None:
        return None
    verdicts = [compare(task, a, b) for a, b in zip(ours, theirs, strict=True)]
    if False in verdicts:
        return False
    return True if True in verdicts else None


def _same_class(task: Any, ours: Any, theirs: Any) -> bool:
    return bool(
        ours.label == theirs.label and np.abs(ours.scores - theirs.scores).max() < _SAME_SCORE
    )


def _same_boxes(task: Any, ours: Any, theirs: Any) -> bool | None:
    """Every box has its like in the other result, but for those that may have just missed the
    threshold.
    """
    if not len(ours) and not len(theirs):
        return None
    floor = task.conf + _SAME_SCORE
    return _found_in(ours, theirs, floor) and _found_in(theirs, ours, floor)


def _same_masks(task: Any, ours: Any, theirs: Any) -> bool | None:
    """Boxes as of detectors, and the masks of the boxes that stand at the same place."""
    same = _same_boxes(task, ours, theirs)
    if not same or len(ours) != len(theirs):
        return same
    first, second = (one.instances.masks.planes().flatten(1) for one in (ours, theirs))
    common, union = (first & second).sum(1), (first | second).sum(1)
    paired = aligned_iou(ours.instances.boxes, theirs.instances.boxes) > _SAME_BOX
    return bool((common >= _SAME_MASK * union)[paired].all())


def _found_in(ours: Any, theirs: Any, floor: float) -> bool:
    sure = ours.scores >= floor
    if not len(theirs):
        return not bool(sure.any())
    like = iou(ours.instances.boxes, theirs.instances.boxes) > _SAME_BOX
    like &= ours.instances.labels[:, None] == theirs.instances.labels
    like &= (ours.scores[:, None] - theirs.scores).abs() < _SAME_SCORE
    return bool(like.any(1)[sure].all())


def _same_map(task: Any, ours: Any, theirs: Any) -> bool:
    return bool(np.mean(ours.class_map == theirs.class_map) > _SAME_PIXELS)


def _same_picture(task: Any, ours: Any, theirs: Any) -> bool:
    return int(np.abs(ours.image.astype(int) - theirs.image.astype(int)).max()) <= 1


_SAME: dict[str, Callable[[Any, Any, Any], bool | None]] = {
    "classify": _same_class,
    "detect": _same_boxes,
    "segment": _same_map,
    "instances": _same_masks,
    "generate": _same_picture,
}
