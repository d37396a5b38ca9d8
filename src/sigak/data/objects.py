"""The annotation of one picture, as files state it: boxes, classes, outlines, points.

Coordinates are continuous pixels of the upright picture (EXIF turned), in double precision, so that
what was read can be written again to the last digit. `to_instances` makes tensors of them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch

from sigak.augment.geometry import move_instances
from sigak.structures import Instances, SigakError

__all__ = ["Objects", "Outline", "to_instances"]

# Polygons [(K, 2) float64, ...], or a COCO run-length code {"size": [H, W], "counts": ...}.
Outline = list[np.ndarray] | dict[str, Any]


@dataclass(frozen=True)
class Objects:
    """N objects of one picture.

    boxes (N, 4) float64 xyxy; labels (N,) int64; crowd (N,) bool; areas (N,) float64 square pixels;
    outlines one `Outline` an object; points (N, P, 3) float64 x, y, visibility 0, 1, 2; marks:
    other facts by name, (N, ...) each, which are carried through and not used.
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
) -> Instances:
    """Tensors of the objects: as they stand (boxes float64), or moved by a (3, 3) `matrix` onto a
    canvas of `size` (H, W), cut to it, without what has vanished (boxes float32).
    """
    found = Instances(
        boxes=torch.from_numpy(objects.boxes.astype(np.float64)),
        labels=torch.from_numpy(objects.labels.astype(np.int64)),
        points=None if objects.points is None else torch.from_numpy(objects.points),
        crowd=None if objects.crowd is None else torch.from_numpy(objects.crowd.astype(bool)),
        areas=None if objects.areas is None else torch.from_numpy(objects.areas.astype(np.float64)),
    )
    if matrix is None or size is None:
        return found
    moved = move_instances(found, matrix, size)
    moved.boxes = moved.boxes.float()
    if moved.points is not None:
        moved.points = moved.points.float()
    return moved
