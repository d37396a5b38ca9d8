"""scenes: pictures of shapes and digits, made on the spot, with boxes, outlines and key points.

Nothing is downloaded: picture `index` of a `seed` is a pure function of the two (and of the size),
so a set is the same on every machine with the same OpenCV, whatever the number of threads.
Backgrounds are soft blotches with lines, slivers and noise; objects are turned, stretched, outlined
and partly hidden by others. Every class has an upright form and is turned no further than it can be
told from itself, so that its key points "tip", "left" and "right" have one meaning.

"scenes-night" shows other scenes of the same kind in poor light, as a second domain to adapt to.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from math import cos, pi, sin

import cv2
import numpy as np

from sigak.data.objects import Objects, Outline
from sigak.data.records import Dataset, Record, Split
from sigak.ops.outlines import run_lengths
from sigak.structures import SigakError

__all__ = ["CLASSES", "POINTS", "SWAP", "read", "render", "stream"]

CLASSES = ("circle", "square", "triangle", "star", "ring", "cross", "two", "four", "five", "seven")
POINTS = ("tip", "left", "right")
SWAP = (0, 2, 1)  # what the points are called in a mirror

# Digits as pens write them, x and y from -1 to 1.
_STROKES = {
    "two": [(-.5, -.5), (-.4, -.78), (-.15, -.95), (.15, -.95), (.4, -.8), (.5, -.5), (.42, -.2),
            (-.5, .95), (.55, .95)],
    "four": [(.25, .95), (.25, -.95), (-.6, .4), (.6, .4)],
    "five": [(.5, -.95), (-.4, -.95), (-.45, -.15), (-.1, -.28), (.2, -.24), (.45, -.02),
             (.52, .3), (.4, .68), (.1, .92), (-.2, .93), (-.5, .75)],
    "seven": [(-.55, -.95), (.55, -.95), (-.15, .95)],
}  # fmt: skip
_PENS = (0.2, 0.3, 0.42)  # their widths in the same unit
# How far either way a class is turned, in degrees: less than half of what makes it look the same.
_TURN = {"circle": 0, "ring": 0, "square": 35, "cross": 35, "star": 28, "triangle": 180}
_DIGIT_TURN = 25

_TRAIN, _SIZE = 1000, 256
_HELD_OUT = {"val": (10**9, 100), "test": (2 * 10**9, 200)}  # first index, pictures
_MOST_BYTES = 4 << 30  # of a set that is held in memory

_SMALLEST, _SMALLEST_DIGIT = 9.0, 18.0  # diameters in pixels; the largest is half the picture
_VISIBLE = 0.3  # share of an object that must be seen, or it does not count
_CROWDED = 0.35  # share of a place that may be taken already
_FRACTION = 4  # binary places of OpenCV's coordinates
_NOISE = 1 << 20  # length of the pool that noise is cut from

Size = tuple[int, int]
Contours = list[np.ndarray]


class _Dice:
    """The random numbers of one picture: raw words of Philox, which NumPy promises to keep."""

    def __init__(self, seed: int, index: int) -> None:
        words = (1 << 64) - 1
        self._stream = np.random.Philox(key=((seed & words) << 64) | (index & words))
        self._ready: list[float] = []

    def bytes(self, shape: tuple[int, ...]) -> np.ndarray:
        """uint8 of this shape."""
        words = self._stream.random_raw(-(-int(np.prod(shape)) // 8)).astype("<u8")
        return np.asarray(words.view(np.uint8)[: np.prod(shape)].reshape(shape))

    def unit(self) -> float:
        """From 0 to below 1."""
        if not self._ready:
            raw = self._stream.random_raw(128) >> np.uint64(11)
            self._ready = (raw * 2.0**-53).tolist()
        return self._ready.pop()

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self.unit()

    def below(self, limit: int) -> int:
        """A whole number from 0 to below `limit`."""
        return int(self.unit() * limit)


def render(
    seed: int, index: int, size: Size = (_SIZE, _SIZE), most: int = 12, *, night: bool = False
) -> tuple[np.ndarray, Objects]:
    """Picture `index` of `seed`: pixels (H, W, 3) uint8 RGB, and what is on it.

    size (H, W) from 32 pixels a side; 1 to `most` objects are drawn, from about 8 pixels to half of
    the shorter side. Later ones cover earlier ones; boxes are the exact hulls of what is seen,
    outlines its exact run-length code, areas its pixels. An object of which less than 30 % is seen
    does not count. points (N, 3, 3): `POINTS`, visibility 2 or 1 where something lies over it.
    night: the same scene in poor light.
    """
    if min(size) < 32 or not 1 <= most <= 200:
        raise SigakError(
            f"a scene has sides of at least 32 pixels and 1 to 200 objects, received {size} "
            f"and {most}"
        )
    dice = _Dice(seed, index)
    pixels = _background(dice, size)
    owner = np.zeros(size, np.uint8)  # per pixel the number of the object that is seen, or 0
    drawn: list[_Drawn] = []
    for label, scale in _choose(dice, size, most):
        placed = _place(dice, label, scale, size)
        if not drawn or not _is_taken(owner, placed.window):
            drawn.append(_draw(dice, placed, pixels, owner, len(drawn) + 1))
    _finish(dice, pixels)
    if night:
        _darken(dice, pixels)
    return pixels, _objects(drawn, owner)


def stream(seed: int, size: Size = (_SIZE, _SIZE)) -> Iterator[tuple[np.ndarray, Objects]]:
    """The pictures 0, 1, 2 ... of `seed` without end, as `render` gives them.

    The first 1,000 of seed 0 are the "train" split of "scenes"; its "val" and "test" never come up.
    """
    return (render(seed, index, size) for index in count())


def read(spec: str = "scenes") -> Dataset:
    """The set that `spec` names: "scenes", "scenes:SIZE", or "scenes:N@SIZE" with N train pictures,
    and likewise "scenes-night".

    "train" has 1,000 pictures (or N), "val" 100, "test" 200, of SIZE x SIZE pixels (256); seed 0,
    by night 1.
    """
    pictures, side = _parse(spec)
    parts = {"train": (0, pictures)} | _HELD_OUT
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1), "sigak-scenes") as pool:
        splits = {
            name: _split(spec, name, range(first, first + length), side, pool)
            for name, (first, length) in parts.items()
        }
    return Dataset(spec, list(CLASSES), splits)


def _parse(spec: str) -> tuple[int, int]:
    """Train pictures and pixels a side."""
    found = re.fullmatch(r"scenes(?:-night)?(?::(?:(\d{1,7})@)?(\d{1,5}))?", spec)
    if found is None:
        raise SigakError(
            "scenes are named scenes, scenes:SIZE such as scenes:128, or scenes:PICTURES@SIZE such "
            f"as scenes:200@128, received {spec!r}"
        )
    pictures, side = int(found[1] or _TRAIN), int(found[2] or _SIZE)
    total = (pictures + sum(length for _, length in _HELD_OUT.values())) * 3 * side * side
    if pictures < 1 or side < 32 or total > _MOST_BYTES:
        raise SigakError(
            f"scenes need at least 1 picture and 32 pixels a side, and may take "
            f"{_MOST_BYTES >> 30} GiB of memory; {spec!r} would take {total / 2**30:.1f} GiB"
        )
    return pictures, side


def _split(spec: str, name: str, indices: range, side: int, pool: ThreadPoolExecutor) -> Split:
    pixels = np.empty((len(indices), side, side, 3), np.uint8)
    night = spec.startswith("scenes-night")

    def make(at: int) -> Record:
        pixels[at], objects = render(int(night), indices[at], (side, side), night=night)
        return Record(f"{spec}/{name}#{at}", objects=objects, size=(side, side))

    return Split(name, list(pool.map(make, range(len(indices)))), pixels)


# --------------------------------------------------------------------------------- the picture


def _background(dice: _Dice, size: Size) -> np.ndarray:
    """(H, W, 3): from two colours running into each other to fine blotches, with clutter on it."""
    rows, columns = 2 + dice.below(7), 2 + dice.below(7)
    base, spread = dice.bytes((1, 1, 3)).astype(np.float32), dice.between(0.1, 0.6)
    coarse = base + spread * (dice.bytes((rows, columns, 3)) - 127.5)
    grid = np.clip(coarse, 0, 255).astype(np.uint8)
    pixels = cv2.resize(grid, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
    for _ in range(dice.below(7)):
        colour = _colour(dice)
        middle = (int(dice.unit() * size[1]), int(dice.unit() * size[0]))
        length, angle = dice.between(0.05, 0.5) * min(size), dice.between(0, pi)
        if dice.unit() < 0.6:
            end = (int(middle[0] + length * cos(angle)), int(middle[1] + length * sin(angle)))
            cv2.line(pixels, middle, end, colour, 1 + dice.below(3))
        else:  # a sliver, too thin for any class
            axes = (max(2, int(length / 2)), max(1, int(length / 10)))
            cv2.ellipse(pixels, middle, axes, angle * 180 / pi, 0, 360, colour, -1)
    return np.asarray(pixels)


def _finish(dice: _Dice, pixels: np.ndarray) -> None:
    """A touch of lens and of sensor, in place: half of the pictures are soft, all have noise."""
    if dice.unit() < 0.5:
        cv2.GaussianBlur(pixels, (3, 3), 0, dst=pixels)
    for change in (cv2.add, cv2.subtract):
        start = dice.below(_NOISE)
        noise = _noise(dice.below(5))[start : start + pixels.size]
        change(pixels, np.resize(noise, pixels.shape), dst=pixels)


def _darken(dice: _Dice, pixels: np.ndarray) -> None:
    """Poor light, in place: what little there is falls from one side and is bluish, the sensor is
    noisy and lifts black to a gray.
    """
    height, width = pixels.shape[:2]
    turn, light, fall = dice.between(0, 2 * pi), dice.between(0.2, 0.5), dice.between(0, 0.8)
    x, y = np.linspace(-1, 1, width)[None], np.linspace(-1, 1, height)[:, None]
    bright = light * (1 + fall * (cos(turn) * x + sin(turn) * y) / 2)
    noise = dice.bytes(pixels.shape).astype(np.float64) - dice.bytes(pixels.shape)
    lit = pixels * bright[..., None] * (0.6, 0.8, 1.0) + 0.06 * noise + dice.between(15, 45)
    pixels[:] = np.clip(lit, 0, 255).astype(np.uint8)


@lru_cache(maxsize=8)
def _noise(level: int) -> np.ndarray:
    """(2 * _NOISE,) uint8 of even noise, from 0 to 1 at level 0 up to 31 at level 4."""
    return np.asarray(_Dice(0, -1).bytes((2 * _NOISE,)) >> (7 - level))


def _colour(dice: _Dice) -> tuple[int, int, int]:
    return dice.below(256), dice.below(256), dice.below(256)


def _unlike(dice: _Dice, other: tuple[float, ...]) -> tuple[int, int, int]:
    """A colour that can be told from `other`: its opposite stands in where it is too near."""
    colour = _colour(dice)
    if sum(abs(a - b) for a, b in zip(colour, other)) < 150:
        red, green, blue = ((value + 128) % 256 for value in colour)
        return red, green, blue
    return colour


# --------------------------------------------------------------------------------- the objects


@dataclass(frozen=True)
class _Placed:
    """An object before it is drawn: its turned contours and points in pixels, and the window
    (x1, y1, x2, y2) of the picture that it lies in.
    """

    label: int
    scale: float
    contours: Contours
    points: np.ndarray
    window: tuple[int, int, int, int]


@dataclass(frozen=True)
class _Drawn:
    """A drawn object, with the number of its pixels before others covered some."""

    placed: _Placed
    number: int
    pixels: int


def _choose(dice: _Dice, size: Size, most: int) -> list[tuple[int, float]]:
    """Classes and radii of 1 to `most` objects, the largest first, so that none buries a smaller
    one.
    """
    half = min(size) / 4  # the radius of an object as wide as half the picture
    chosen = []
    for _ in range(1 + dice.below(most)):
        label = dice.below(len(CLASSES))
        least = (_SMALLEST_DIGIT if CLASSES[label] in _STROKES else _SMALLEST) / 2
        least = min(least, half)
        chosen.append((label, least + (half - least) * dice.unit() ** 1.5))
    return sorted(chosen, key=lambda pair: -pair[1])


def _place(dice: _Dice, label: int, scale: float, size: Size) -> _Placed:
    """An object of a class and radius somewhere on the picture, at most a third of it outside."""
    name = CLASSES[label]
    contours, points = _form(name, _PENS[dice.below(len(_PENS))])
    turn = _TURN.get(name, _DIGIT_TURN)
    angle = dice.between(-turn, turn) * pi / 180
    stretch = dice.between(0.8, 1.25)
    across, down = scale * min(1.0, stretch), scale * min(1.0, 1 / stretch)
    linear = np.array([[cos(angle), sin(angle)], [-sin(angle), cos(angle)]])
    linear = np.array([[across], [down]]) * linear
    height, width = size
    middle_x = dice.between(0.6 * scale, width - 0.6 * scale)
    middle_y = dice.between(0.6 * scale, height - 0.6 * scale)
    middle = np.array([middle_x, middle_y])
    moved = [contour @ linear + middle for contour in contours]
    (x1, y1), (x2, y2) = moved[0].min(axis=0).tolist(), moved[0].max(axis=0).tolist()
    window = (
        max(0, int(x1) - 3), max(0, int(y1) - 3), min(width, int(x2) + 4), min(height, int(y2) + 4)
    )  # fmt: skip
    return _Placed(label, scale, moved, points @ linear + middle, window)


def _is_taken(owner: np.ndarray, window: tuple[int, int, int, int]) -> bool:
    """Whether other objects have so much of the window that it is too crowded for one more."""
    x1, y1, x2, y2 = window
    part = owner[y1:y2, x1:x2]
    return bool(cv2.countNonZero(part) > _CROWDED * part.size)


def _draw(
    dice: _Dice, placed: _Placed, pixels: np.ndarray, owner: np.ndarray, number: int
) -> _Drawn:
    """Paint the object, in place, over what is there, and enter its number where it is seen."""
    fixed = [np.rint((c - 0.5) * (1 << _FRACTION)).astype(np.int32) for c in placed.contours]
    x1, y1, x2, y2 = placed.window
    around = pixels[y1:y2, x1:x2]
    colour = _unlike(dice, cv2.mean(around)[:3])
    cv2.fillPoly(pixels, fixed, colour, shift=_FRACTION)
    cv2.fillPoly(owner, fixed, number, shift=_FRACTION)
    if dice.unit() < 0.3 and placed.scale > 15:
        edge, width = _unlike(dice, colour), 1 + dice.below(min(4, int(placed.scale / 15)))
        cv2.polylines(pixels, fixed, True, edge, width, shift=_FRACTION)
        cv2.polylines(owner, fixed, True, number, width, shift=_FRACTION)
    return _Drawn(placed, number, cv2.countNonZero(_pixels_of(number, owner, placed.window)))


def _pixels_of(number: int, owner: np.ndarray, window: tuple[int, int, int, int]) -> np.ndarray:
    """(h, w) uint8, 1 where the object of this number is seen in the window."""
    x1, y1, x2, y2 = window
    return np.asarray((owner[y1:y2, x1:x2] == number).view(np.uint8))


def _objects(drawn: list[_Drawn], owner: np.ndarray) -> Objects:
    boxes, labels, areas, points = [], [], [], []
    outlines: list[Outline] = []
    size = (owner.shape[0], owner.shape[1])
    for one in drawn:
        mine = _pixels_of(one.number, owner, one.placed.window)
        area = cv2.countNonZero(mine)
        if area < max(1, _VISIBLE * one.pixels):
            continue
        left, top, width, height = cv2.boundingRect(mine)
        seen = mine[top : top + height, left : left + width]
        left, top = left + one.placed.window[0], top + one.placed.window[1]
        boxes.append((left, top, left + width, top + height))
        labels.append(one.placed.label)
        areas.append(area)
        outlines.append(run_lengths(seen.view(bool), left, top, size))
        points.append(_visible(one, owner))
    if not boxes:
        return Objects.empty()
    return Objects(
        boxes=np.array(boxes, np.float64),
        labels=np.array(labels, np.int64),
        areas=np.array(areas, np.float64),
        outlines=outlines,
        points=np.array(points, np.float64),
    )


def _visible(one: _Drawn, owner: np.ndarray) -> list[tuple[float, float, int]]:
    """x, y and visibility of an object's points: 2, 1 under a later object, 0 off the picture."""
    height, width = owner.shape
    found = []
    for x, y in one.placed.points.tolist():
        inside = 0 <= x < width and 0 <= y < height
        seen = inside and owner[int(y), int(x)] <= one.number
        found.append((x, y, 2 if seen else 1) if inside else (0.0, 0.0, 0))
    return found


# --------------------------------------------------------------------------------- the classes


@lru_cache(maxsize=64)
def _form(name: str, pen: float) -> tuple[Contours, np.ndarray]:
    """Contours (K, 2), the outer one first and holes after it, and `POINTS` (3, 2) of a class,
    upright, within the circle of radius 1.
    """
    if name in _STROKES:
        contours = _written(_STROKES[name], pen)
    elif name == "ring":
        contours = [_polygon(48, 1.0), _polygon(36, 0.55)]
    else:
        contours = [_SOLID[name]]
    x, y = contours[0].T
    # On the upper end and, at the widest, on the sides; a little inwards, on the object itself.
    rows = y[np.abs(x) > np.abs(x).max() - 1e-6]
    side = float(rows.mean())
    points = np.array([(x[y < y.min() + 1e-6].mean(), y.min()), (x.min(), side), (x.max(), side)])
    return contours, points * 0.9


def _polygon(corners: int, radius: float, inner: float = 1.0) -> np.ndarray:
    """Corners on a circle, the first at the top; every other one drawn in to `inner` of it."""
    angle = 2 * pi * np.arange(corners) / corners
    reach = np.where(np.arange(corners) % 2 == 0, radius, radius * inner)
    return np.stack([reach * np.sin(angle), -reach * np.cos(angle)], axis=1)


def _round(points: list[tuple[float, float]]) -> np.ndarray:
    """The points about their own place, the farthest at distance 1."""
    corners = np.array(points)
    return np.asarray(corners / np.linalg.norm(corners, axis=1).max())


_SOLID = {
    "circle": _polygon(48, 1.0),
    "square": _round([(-1, -1), (1, -1), (1, 1), (-1, 1)]),
    "triangle": _round([(0, -1), (0.7, 0.7), (-0.7, 0.7)]),
    "star": _polygon(10, 1.0, 0.42),
    "cross": _round(
        [
            *[(-0.3, -1), (0.3, -1), (0.3, -0.3), (1, -0.3), (1, 0.3), (0.3, 0.3)],
            *[(0.3, 1), (-0.3, 1), (-0.3, 0.3), (-1, 0.3), (-1, -0.3), (-0.3, -0.3)],
        ]
    ),
}


def _written(stroke: list[tuple[float, float]], pen: float) -> Contours:
    """The outline of a line of points drawn with a pen of some width."""
    half = 128
    canvas = np.zeros((3 * half, 3 * half), np.uint8)
    line = np.rint((np.array(stroke) + 1.5) * half).astype(np.int32)
    cv2.polylines(canvas, [line], False, 1, round(pen * half))
    found, _ = cv2.findContours(canvas, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    smooth = [cv2.approxPolyDP(contour, 1.0, True)[:, 0] / half - 1.5 for contour in found]
    smooth.sort(key=lambda contour: -np.ptp(contour[:, 1]))  # the outer one is the tallest
    reach = np.linalg.norm(smooth[0], axis=1).max()
    return [contour / reach for contour in smooth]
