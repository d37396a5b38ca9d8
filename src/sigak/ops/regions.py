"""Masks of objects: enlarged from a network's coarse logits, measured, cleaned.

A coarse mask (h, w) covers a network's square canvas, of which a picture fills the upper left part.
It is enlarged in two bilinear steps, to the canvas and from the picture's part of it to the file,
as Segment Anything does. Both are linear in rows and in columns, so together they are two narrow
matrices, and only the part of a mask that is not certainly empty is ever made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Enlargement", "Region", "clean"]

_ROWS, _COLUMNS = 128, 256  # of the result that are made at once: they stay in the cache
_STRIP = 16  # rows or columns in which a side of a box is looked for
_MARGIN = 2  # coarse pixels around what matters, so that what lies beyond cannot change it


@dataclass(frozen=True)
class Region:
    """One mask: bits, the pixels of its box, eight a byte, since a thousand candidates may wait;
    shape (h, w) of the box; corner x, y of its first pixel; area in pixels; stability, the area
    where the logit is above +offset as a share of that above -offset.
    """

    bits: np.ndarray
    shape: tuple[int, int]
    corner: tuple[int, int]
    area: int
    stability: float

    @classmethod
    def of(cls, patch: np.ndarray, corner: tuple[int, int], stability: float) -> Region:
        """From the pixels (h, w) bool of its box."""
        bits, area = np.packbits(patch, axis=1), int(np.count_nonzero(patch))
        return cls(bits, (patch.shape[0], patch.shape[1]), corner, area, stability)

    @property
    def patch(self) -> np.ndarray:
        """(h, w) bool."""
        return np.unpackbits(self.bits, axis=1, count=self.shape[1]).astype(bool)

    @property
    def box(self) -> tuple[int, int, int, int]:
        """x1, y1, x2, y2 in continuous pixels: the last pixel ends at x2; zeros if empty."""
        x, y = self.corner
        return x, y, x + self.shape[1], y + self.shape[0]

    def mask(self, size: tuple[int, int]) -> np.ndarray:
        """(H, W) bool."""
        whole = np.zeros(size, bool)
        x1, y1, x2, y2 = self.box
        whole[y1:y2, x1:x2] = self.patch
        return whole


class Enlargement:
    """From coarse masks of `coarse` pixels a side to a file of `size` (H, W), which lies on a
    canvas of `canvas` pixels a side as `inner` (h, w).
    """

    def __init__(
        self, coarse: int, canvas: int, inner: tuple[int, int], size: tuple[int, int]
    ) -> None:
        self.size = size
        self.seen = tuple(min(coarse, -(-side * coarse // canvas)) for side in inner)
        rows, columns = (
            self._steps(coarse, canvas, part, whole) for part, whole in zip(inner, size)
        )
        self.rows = rows.T.contiguous()  # (H, coarse)
        self.columns = columns  # (coarse, W)
        self.row_ends, self.column_ends = _ends(self.rows), _ends(columns.T)

    @staticmethod
    def _steps(coarse: int, canvas: int, inner: int, whole: int) -> Tensor:
        """(coarse, whole): what each coarse pixel gives to each pixel of the file along an axis."""
        table = F.interpolate(torch.eye(coarse)[None], canvas, mode="linear")[..., :inner]
        return F.interpolate(table, whole, mode="linear")[0]

    def logits(self, coarse: Tensor) -> Tensor:
        """(K, coarse, coarse) -> (K, H, W)."""
        return self.rows @ coarse @ self.columns

    def region(self, coarse: Tensor, offset: float = 1.0) -> Region:
        """The mask of one coarse mask's logits above 0, and its stability at ±offset."""
        window = self._window(coarse, -offset)
        if window is None:
            return Region.of(np.zeros((0, 0), bool), (0, 0), 0.0)
        (y1, y2), (x1, x2) = window
        patch = np.zeros((y2 - y1, x2 - x1), bool)
        high = low = 0
        for y in range(y1, y2, _ROWS):
            last = min(y + _ROWS, y2)
            strip = self._rows(coarse, y, last)
            for x in range(x1, x2, _COLUMNS):
                end = min(x + _COLUMNS, x2)
                part = self._columns(strip, x, end).numpy()
                high += int(np.count_nonzero(part > offset))
                low += int(np.count_nonzero(part > -offset))
                patch[y - y1 : last - y1, x - x1 : end - x1] = part > 0
        return _hull(patch, (x1, y1), high / low if low else 0.0)

    def box(self, coarse: Tensor) -> tuple[int, int, int, int]:
        """The box x1, y1, x2, y2 of `region`, found from its four sides without making the rest;
        zeros if empty.
        """
        window = self._window(coarse, 0.0)
        if window is None:
            return 0, 0, 0, 0
        (y1, y2), (x1, x2) = window

        def in_rows(y: int, end: int) -> Tensor:
            return (self._columns(self._rows(coarse, y, end), x1, x2) > 0).any(1)

        first = _first(in_rows, y1, y2)
        if first is None:
            return 0, 0, 0, 0
        last = _last(in_rows, first, y2)

        def in_columns(x: int, end: int) -> Tensor:
            return (self._rows(self._columns(coarse, x, end), first, last) > 0).any(0)

        left = _first(in_columns, x1, x2) or x1
        return left, first, _last(in_columns, left, x2), last

    def _rows(self, table: Tensor, first: int, end: int) -> Tensor:
        """Rows `first` to `end` of the file made of a table (coarse, C): (end - first, C)."""
        top, bottom = int(self.row_ends[0][first]), int(self.row_ends[1][end - 1])
        return self.rows[first:end, top:bottom] @ table[top:bottom]

    def _columns(self, table: Tensor, first: int, end: int) -> Tensor:
        """Columns `first` to `end` of the file made of a table (R, coarse): (R, end - first)."""
        left, right = int(self.column_ends[0][first]), int(self.column_ends[1][end - 1])
        return table[:, left:right] @ self.columns[left:right, first:end]

    def _window(
        self, coarse: Tensor, least: float
    ) -> tuple[tuple[int, int], tuple[int, int]] | None:
        """The first row and the one behind the last, likewise columns, of the file outside which no
        logit is above `least`; None where none is at all.
        """
        above = coarse > least
        found = []
        for axis, ends, side in ((1, self.row_ends, 0), (0, self.column_ends, 1)):
            places = above.any(axis).nonzero()[:, 0]
            if not len(places):
                return None
            first, last = int(places[0]) - _MARGIN, int(places[-1]) + _MARGIN
            begin = int(np.searchsorted(ends[1], first, side="right"))
            end = int(np.searchsorted(ends[0], last, side="right"))
            found.append((begin, min(max(end, begin), self.size[side])))
        if any(begin >= end for begin, end in found):
            return None
        return found[0], found[1]

    def rough_stability(self, coarse: Tensor, offset: float = 1.0) -> tuple[Tensor, Tensor]:
        """(K, coarse, coarse) -> stability (K,) as the coarse pixels have it, and how many of them
        (K,) are above -offset.
        """
        part = coarse[:, : self.seen[0], : self.seen[1]]
        high, low = ((part > level).sum((1, 2)) for level in (offset, -offset))
        return high / low.clamp_min(1), low


def _first(holds: Callable[[int, int], Tensor], begin: int, end: int) -> int | None:
    """The first place from `begin` to `end` where `holds` is true, asked a few places at a time."""
    for start in range(begin, end, _STRIP):
        places = holds(start, min(start + _STRIP, end)).nonzero()
        if len(places):
            return start + int(places[0, 0])
    return None


def _last(holds: Callable[[int, int], Tensor], begin: int, end: int) -> int:
    """Behind the last such place; at least one holds."""
    while end > begin:
        start = max(begin, end - _STRIP)
        places = holds(start, end).nonzero()
        if len(places):
            return start + int(places[-1, 0]) + 1
        end = start
    return begin


def _ends(table: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """(N, coarse) -> the first coarse pixel that gives to each of N, and the one behind the last;
    both never fall.
    """
    gives = (table != 0).numpy()
    first = gives.argmax(1)
    behind = gives.shape[1] - gives[:, ::-1].argmax(1)
    return np.minimum.accumulate(first[::-1])[::-1], np.maximum.accumulate(behind)


def _hull(patch: np.ndarray, corner: tuple[int, int], stability: float) -> Region:
    """The region cut to the box of what is in it."""
    rows, columns = np.flatnonzero(patch.any(1)), np.flatnonzero(patch.any(0))
    if not len(rows):
        return Region.of(np.zeros((0, 0), bool), (0, 0), stability)
    cut = patch[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    place = (corner[0] + int(columns[0]), corner[1] + int(rows[0]))
    return Region.of(cut, place, stability)


def clean(region: Region, size: tuple[int, int], least: float) -> tuple[Region, bool]:
    """Holes of fewer than `least` pixels filled, then islands of fewer taken away, but the largest
    if all are; neighbours touch at corners too. Also whether anything changed.
    """
    filled, holes = _without_small(region, size, least, holes=True)
    kept, islands = _without_small(filled, size, least, holes=False)
    return kept, holes or islands


def _without_small(
    region: Region, size: tuple[int, int], least: float, *, holes: bool
) -> tuple[Region, bool]:
    """What lies beside the box is all outside the mask: a row or column stands for all of it."""
    x1, y1, x2, y2 = region.box
    margins = ((y1, size[0] - y2), (x1, size[1] - x2))
    pads = [tuple(int(m > 0) for m in pair) for pair in margins]
    plane = np.pad(region.patch, pads)
    counts = [
        np.concatenate([[m] * (m > 0), np.ones(n, int), [k] * (k > 0)])
        for (m, k), n in zip(margins, region.shape)
    ]
    parts, number = ndimage.label(plane != holes, np.ones((3, 3), int))
    sizes = np.bincount(parts.ravel(), np.outer(*counts).ravel(), number + 1)
    small = sizes < least
    small[0] = False
    if not small[1:].any():
        return region, False
    if not holes and small[1:].all():
        small[1 + int(sizes[1:].argmax())] = False
    changed = plane | small[parts] if holes else plane & ~small[parts]
    beside = ~np.pad(np.ones(region.shape, bool), pads)
    if (changed & beside).any():
        return _hull_of_whole(changed, counts, region.stability), True
    corner = (x1 - pads[1][0], y1 - pads[0][0])
    return _hull(changed, corner, region.stability), True


def _hull_of_whole(plane: np.ndarray, counts: list[np.ndarray], stability: float) -> Region:
    """A plane whose outer rows and columns stand for many, in full size."""
    whole = plane.repeat(counts[0].astype(int), 0).repeat(counts[1].astype(int), 1)
    return _hull(whole, (0, 0), stability)
