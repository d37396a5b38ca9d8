"""blobs3d: volumes of ellipsoids, boxes and tubes, made on the spot, with masks.

Nothing is downloaded: volume `index` of a `seed` is a pure function of the two (and of the size).
The things are turned at random and partly hidden by others, in noise on a slanting background, and
all kinds are equally bright: what something is shows in its shape alone.
"""

from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from sigak.augment.draws import Draws
from sigak.data.classmaps import BACKGROUND, lookup
from sigak.data.records import Dataset, Record, Split
from sigak.data.volumes import Shape, VolumeMap
from sigak.structures import SigakError

__all__ = ["CLASSES", "read", "render"]

CLASSES = (BACKGROUND, "ellipsoid", "box", "tube")

_TRAIN, _SIDE = 80, 40
_HELD_OUT = {"val": (10**9, 10), "test": (2 * 10**9, 20)}  # first index, volumes
_SMALLEST, _MOST_BYTES = 16, 4 << 30
_NOISE = 0.08  # standard deviation, of a range of 1


def render(seed: int, index: int, shape: Shape) -> tuple[np.ndarray, np.ndarray]:
    """Volume `index` of `seed`: voxels (D, H, W) uint8, and their classes (D, H, W) uint8, places
    in `CLASSES`. Three to six things; later ones hide earlier ones.
    """
    dice = Draws(seed, 0, np.array([index]))

    def number(name: str, low: float, high: float) -> float:
        return float(dice.uniform(name, low, high)[0])

    grid = np.stack(np.meshgrid(*(np.arange(side) + 0.5 for side in shape), indexing="ij"), -1)
    middle = np.array(shape) / 2
    slant = [number(f"slant {axis}", -0.1, 0.1) for axis in range(3)]
    voxels = 0.3 + ((grid - middle) / middle) @ np.array(slant)
    labels = np.zeros(shape, np.uint8)
    for thing in range(int(number("things", 3, 7))):
        place = [number(f"{thing} at {a}", 0.15, 0.85) * side for a, side in enumerate(shape)]
        kind = 1 + int(number(f"{thing} kind", 0, len(CLASSES) - 1))
        radii = [number(f"{thing} radius {axis}", 0.1, 0.2) * min(shape) for axis in range(3)]
        inside = _inside(kind, (grid - place) @ _turn(dice, thing), np.array(radii))
        voxels[inside] = number(f"{thing} bright", 0.5, 0.9)
        labels[inside] = kind
    noise = Draws(seed, index, np.arange(voxels.size)).normal("noise", 0.0, _NOISE)
    voxels = np.clip(voxels + noise.reshape(shape), 0, 1)
    return np.rint(voxels * 255).astype(np.uint8), labels


def _turn(dice: Draws, thing: int) -> np.ndarray:
    """(3, 3) rotation, each as likely: from a quaternion of four normal numbers."""
    q = np.array([float(dice.normal(f"{thing} turn {part}")[0]) for part in range(4)])
    w, x, y, z = q / np.linalg.norm(q)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def _inside(kind: int, points: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """(...,) bool: which points (..., 3), as the thing sees them, belong to it."""
    if CLASSES[kind] == "ellipsoid":
        return np.asarray(((points / radii) ** 2).sum(-1) <= 1)
    if CLASSES[kind] == "box":
        return np.asarray((np.abs(points) <= 0.85 * radii).all(-1))
    thin, length = 0.45 * radii[0], 2.2 * radii[1]
    round_about = (points[..., :2] ** 2).sum(-1) <= thin**2
    return np.asarray(round_about & (np.abs(points[..., 2]) <= length))


def read(spec: str = "blobs3d") -> Dataset:
    """The set that `spec` names: "blobs3d", "blobs3d:SIDE", or "blobs3d:N@SIDE" with N volumes in
    "train".

    "train" has 80 volumes (or N), "val" 10, "test" 20, of SIDE x 1.2 SIDE x 1.3 SIDE voxels (40 x
    48 x 52); seed 0.
    """
    count, side = _parse(spec)
    shape = (side, side * 6 // 5, side * 13 // 10)
    parts = {"train": (0, count)} | _HELD_OUT
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1), "sigak-blobs") as pool:
        splits = {
            name: _split(spec, name, range(first, first + length), shape, pool)
            for name, (first, length) in parts.items()
        }
    return Dataset(spec, list(CLASSES), splits, "gray")


def _parse(spec: str) -> tuple[int, int]:
    """Train volumes and voxels a side."""
    found = re.fullmatch(r"blobs3d(?::(?:(\d{1,6})@)?(\d{1,4}))?", spec)
    if found is None:
        raise SigakError(
            "these volumes are named blobs3d, blobs3d:SIDE such as blobs3d:24, or "
            f"blobs3d:VOLUMES@SIDE such as blobs3d:10@24, received {spec!r}"
        )
    count, side = int(found[1] or _TRAIN), int(found[2] or _SIDE)
    total = (count + sum(length for _, length in _HELD_OUT.values())) * 2 * side**3 * 78 // 50
    if count < 1 or side < _SMALLEST or total > _MOST_BYTES:
        raise SigakError(
            f"blobs3d needs at least 1 volume and {_SMALLEST} voxels a side, and may take "
            f"{_MOST_BYTES >> 30} GiB of memory; {spec!r} has {count:,} volumes of {side} voxels a "
            f"side, which take {total / 2**30:.1f} GiB"
        )
    return count, side


def _split(spec: str, name: str, indices: range, shape: Shape, pool: ThreadPoolExecutor) -> Split:
    voxels = np.empty((len(indices), *shape, 1), np.uint8)
    table = lookup({label: label for label in range(len(CLASSES))})

    def make(at: int) -> Record:
        voxels[at, ..., 0], labels = render(0, indices[at], shape)
        source = f"{spec}/{name}#{at}"
        class_map = VolumeMap(source, table, shape=shape, labels=labels)
        return Record(source, size=shape[1:], class_map=class_map, depth=shape[0])

    return Split(name, list(pool.map(make, range(len(indices)))), voxels)
