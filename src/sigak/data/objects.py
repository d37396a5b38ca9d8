"""The annotation of one picture, as files state it: boxes, classes, outlines, points.

Coordinates are continuous pixels of the upright picture (EXIF turned), in double precision, so that
what was read can be written again to the last digit. `to_instances` makes tensors of them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch

from sigak.augment.geometry import move_instances
from sigak.ops.outlines import Outline, masks_of
from sigak.structures import Instances, SigakError

__all__ = ["Objects", "Outline", "to_instances"]


@dataclass(frozen=True)
class Objects:
    """N objects of one picture.

    boxes (N, 4) float64 xyxy; labels (N,) int64; crowd (N,) bool; areas (N,) float64 square pixels;
    outlines one `Outline` an object, polygons or a run-length code, empty where none is known;
    points (N, P, 3) float64 x, y, visibility 0, 1, 2; marks: other facts by name, (N, ...) each,
    which are carried through and not used.
    """

    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray | None = None
    areas: np.ndarray | None = None
    outlines: list[Outline] | None = None
    points: np.ndarray | None = None
    marks: dict[str, np.ndarray] | None = None

    def __post_init__(self) -> None:
        if self.boxes.ndim != 2 or self.boxes.shape[1] != 4:
            raise SigakError(
                f"boxes must have shape (N, 4) as x1, y1, x2, y2, received {self.boxes.shape}"
            )
        for f in fields(self):
            value = getattr(self, f.name)
            parts = value if isinstance(value, dict) else {f.name: value}
            for name, part in parts.items():
                if part is not None and len(part) != len(self.boxes):
                    raise SigakError(
                        f"all facts of a picture's objects must have the same length: boxes has "
                        f"{len(self.boxes)}, {name} {len(part)}"
                    )

    def __len__(self) -> int:
        return len(self.boxes)

    @classmethod
    def empty(cls) -> Objects:
        """No objects: a background picture."""
        return cls(np.zeros((0, 4)), np.zeros(0, np.int64))

    def subset(self, chosen: np.ndarray) -> Objects:
        """The objects a bool mask (N,) or an integer index (M,) picks, with all their facts."""
        index = np.flatnonzero(chosen) if chosen.dtype == bool else chosen

        def pick(value: Any) -> Any:
            if isinstance(value, dict):
                return {name: pick(part) for name, part in value.items()}
            if isinstance(value, list):
                return [value[i] for i in index]
            return None if value is None else value[index]

        return Objects(**{f.name: pick(getattr(self, f.name)) for f in fields(self)})


def to_instances(
    objects: Objects,
    matrix: np.ndarray | None = None,
    size: tuple[int, int] | None = None,
    *,
    masks: bool = False,
) -> Instances:
    """Tensors of the objects: as they stand (boxes float64), or moved by a (3, 3) `matrix` onto a
    canvas of `size` (H, W), cut to it, without what has vanished (boxes float32).

    With `masks` their outlines are filled, as they stand in a picture of `size`. An object without
    an outline then becomes a crowd, all of its box: where it lies is known, but not what of it is
    seen, so that it teaches nothing and forgives what is found there. SigakError where a run-length
    code is damaged.
    """
    outlines: list[Outline] = []
    if masks:
        objects, outlines = _outlined(objects)
    found = Instances(
        boxes=torch.from_numpy(objects.boxes.astype(np.float64)),
        labels=torch.from_numpy(objects.labels.astype(np.int64)),
        points=None if objects.points is None else torch.from_numpy(objects.points),
        crowd=None if objects.crowd is None else torch.from_numpy(objects.crowd.astype(bool)),
        areas=None if objects.areas is None else torch.from_numpy(objects.areas.astype(np.float64)),
    )
    if matrix is None or size is None:
        if masks and size is not None:
            found.masks = masks_of(outlines, size)
        return found
    found.ids = torch.arange(len(objects))
    moved = move_instances(found, matrix, size)
    moved.boxes = moved.boxes.float()
    if moved.points is not None:
        moved.points = moved.points.float()
    if masks and moved.ids is not None:
        moved.masks = masks_of([outlines[i] for i in moved.ids.tolist()], size, matrix)
    moved.ids = None
    return moved


def _outlined(objects: Objects) -> tuple[Objects, list[Outline]]:
    """The objects, those without an outline as crowds, and an outline of each."""
    outlines = objects.outlines or [[] for _ in range(len(objects))]
    bare = np.array([not outline for outline in outlines], bool)
    corners = objects.boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2)
    whole = [outline or [square] for outline, square in zip(outlines, corners)]
    crowd = bare if objects.crowd is None else objects.crowd.astype(bool) | bare
    return replace(objects, crowd=crowd), whole
