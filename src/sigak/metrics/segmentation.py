"""Segmentation: how well class maps fit the truth, pixel by pixel and at the boundaries.

Maps of volumes are measured alike, with voxels for pixels, surfaces for boundaries.

All totals are whole numbers, so that the figures depend neither on how the pictures were cut into
batches nor on the order in which parts were merged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.spatial import cKDTree

from sigak.metrics._counts import macro, per_class, ratio
from sigak.structures import IGNORE, SigakError

__all__ = ["Segmentation"]

_TOLERANCE = 0.0075  # of a picture's diagonal, how far boundaries may lie apart


class Segmentation:
    """Confusion of pixels, and how many pixels of boundaries lie near the other's.

    `classes` are the names in label order. Pixels whose truth is IGNORE count nowhere.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = list(classes)
        size = len(self.classes)
        self._confusion = np.zeros((size, size), np.int64)  # rows truth, columns prediction
        # Of each class: boundary pixels found, of these right; true ones, of these found.
        self._boundary = np.zeros((size, 4), np.int64)
        self._ignored = 0
        self._pictures = 0

    def add(self, found: np.ndarray, truth: np.ndarray) -> None:
        """Take in one picture: two maps (H, W) or (D, H, W) uint8 of class indices, IGNORE in the
        truth only.

        Raises SigakError where their sizes differ, or an index is no class.
        """
        if found.shape != truth.shape:
            raise SigakError(
                f"expected a class map of the truth's size {truth.shape}, received {found.shape}"
            )
        known = truth != IGNORE
        size = len(self.classes)
        rows, columns = truth[known].astype(np.int64), found[known].astype(np.int64)
        if max(rows.max(initial=0), columns.max(initial=0)) >= size:
            raise SigakError(
                f"expected classes from 0 to {size - 1}, received one of "
                f"{max(rows.max(), columns.max())}"
            )
        counts = np.bincount(rows * size + columns, minlength=size * size)
        self._confusion += counts.reshape(size, size)
        self._ignored += int(known.size - len(rows))
        self._pictures += 1
        self._add_boundaries(np.where(known, found, IGNORE), truth)

    def _add_boundaries(self, found: np.ndarray, truth: np.ndarray) -> None:
        reach = max(1.0, _TOLERANCE * math.hypot(*truth.shape))
        ours, theirs = _edges(found), _edges(truth)
        for label in np.union1d(found[ours], truth[theirs]).tolist():
            one = np.argwhere(ours & (found == label))
            other = np.argwhere(theirs & (truth == label))
            self._boundary[label] += (
                len(one), _near(one, other, reach), len(other), _near(other, one, reach)
            )  # fmt: skip

    def merge(self, other: Segmentation) -> None:
        """Take in the totals of `other`, a metric of the same classes."""
        if other.classes != self.classes:
            raise SigakError(
                "only metrics of the same classes in the same order can be merged: one has "
                f"{', '.join(self.classes[:5])}, the other {', '.join(other.classes[:5])}"
            )
        self._confusion += other._confusion
        self._boundary += other._boundary
        self._ignored += other._ignored
        self._pictures += other._pictures

    def compute(self) -> dict[str, Any]:
        """The numbers, as plain values; None where there is nothing to compute from.

        count: pictures; pixels, ignored: how many counted and how many did not. miou, dice: means
        over the classes that occur in truth or answers of the intersection over union, and of
        2 TP / (2 TP + FP + FN). pixel_accuracy. boundary_f: the mean over those classes of F1 of
        boundary pixels that lie within .75 % of the diagonal (at least a pixel) of a true one,
        over all pictures together; Csurka et al. 2013, "What is a good evaluation measure for
        semantic segmentation?". per_class: a list of name, iou, f1 (Dice), boundary_f, precision,
        recall and support (pixels). macro: means over the classes with support. confusion: (K, K)
        counts of pixels, rows truth.
        """
        rows = per_class(self.classes, self._confusion)
        shared = self._confusion.diagonal()
        union = self._confusion.sum(0) + self._confusion.sum(1) - shared
        for label, row in enumerate(rows):
            row["iou"] = ratio(int(shared[label]), int(union[label]))
            row["boundary_f"] = _boundary_f(self._boundary[label])
        dice = [2 * int(s) / int(s + u) for s, u in zip(shared, union) if u]
        pixels = int(self._confusion.sum())
        order = ("name", "iou", "f1", "boundary_f", "precision", "recall", "support")
        return {
            "count": self._pictures,
            "pixels": pixels,
            "ignored": self._ignored,
            "miou": _mean([row["iou"] for row in rows]),
            "pixel_accuracy": ratio(int(shared.sum()), pixels),
            "dice": _mean(dice),
            "boundary_f": _mean([row["boundary_f"] for row in rows]),
            "per_class": [{key: row[key] for key in order} for row in rows],
            "macro": macro(rows),
            "confusion": self._confusion.tolist(),
        }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def _boundary_f(counts: np.ndarray) -> float | None:
    """F1 of a row of boundary counts; None where neither side has a boundary."""
    found, right, true, met = (int(count) for count in counts)
    if not found and not true:
        return None
    if not found or not true or not right or not met:
        return 0.0
    precision, recall = right / found, met / true
    return 2 * precision * recall / (precision + recall)


def _edges(classes: np.ndarray) -> np.ndarray:
    """bool of the map's shape: pixels of a class beside another class along any axis; IGNORE is
    none, and the picture's edge is no boundary.
    """
    edges = np.zeros(classes.shape, bool)
    for axis in range(classes.ndim):
        along, marks = np.moveaxis(classes, axis, 0), np.moveaxis(edges, axis, 0)
        here, there = along[1:], along[:-1]
        apart = (here != there) & (here != IGNORE) & (there != IGNORE)
        marks[1:] |= apart
        marks[:-1] |= apart
    return edges


def _near(points: np.ndarray, others: np.ndarray, reach: float) -> int:
    """How many of (N, 2) or (N, 3) points lie within `reach` of one of (M, 2) or (M, 3) others."""
    if not len(points) or not len(others):
        return 0
    distances, _ = cKDTree(others).query(points, distance_upper_bound=reach + 1e-9)
    return int(np.isfinite(distances).sum())
