"""Classification: how well class probabilities fit the truth.

All totals are exact - integers, or float sums without rounding error - so the numbers depend
neither on how the pictures were cut into batches nor on the order in which parts were merged.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from sigak.metrics._counts import macro, per_class, ratio
from sigak.structures import UNKNOWN, SigakError

__all__ = ["Classification"]

_BINS = 15
_EDGES = np.arange(_BINS + 1) / _BINS  # of the calibration bins; bin i is (edge i, edge i + 1]


class Classification:
    """How well class probabilities fit the truth: overall, class by class, and their calibration.

    `classes` are the names in label order. Pictures of UNKNOWN truth are counted as `unknown` and
    otherwise left out.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = list(classes)
        if len(self.classes) < 2:
            raise SigakError(f"a classification needs two classes or more, received {self.classes}")
        size = len(self.classes)
        self._confusion = np.zeros((size, size), np.int64)  # rows truth, columns prediction
        self._top5 = 0
        self._unknown = 0
        self._losses = 0
        self._loss = _ExactSum()
        self._brier = _ExactSum()
        self._bin_count = np.zeros(_BINS, np.int64)
        self._bin_right = np.zeros(_BINS, np.int64)
        self._bin_confidence = [_ExactSum() for _ in range(_BINS)]

    def update(
        self,
        scores: Tensor | np.ndarray,
        truth: Tensor | np.ndarray,
        loss: Tensor | np.ndarray | None = None,
    ) -> None:
        """Take in one batch.

        scores (B, K) float probabilities, each row adding up to 1; truth (B,) class indices or
        UNKNOWN, or (B, K) class weights, which count as their heaviest class (none above 0:
        UNKNOWN); loss (B,) one per picture, optional. Equal scores are ranked by class index.
        Raises SigakError where shapes or values are not these.
        """
        probability = _scores(scores, len(self.classes))
        labels = _labels(truth, probability.shape)
        known = labels != UNKNOWN
        self._unknown += int((~known).sum())
        if loss is not None:
            self._losses += int(known.sum())
            self._loss.add(_loss(loss, known))
        probability, labels = probability[known], labels[known]

        predicted = probability.argmax(1)
        pairs = labels * len(self.classes) + predicted
        self._confusion += np.bincount(pairs, minlength=self._confusion.size).reshape(
            self._confusion.shape
        )
        self._top5 += int((_ranks(probability, labels) < 5).sum())
        errors = probability.copy()
        errors[np.arange(len(labels)), labels] -= 1
        self._brier.add((errors**2).sum(1))
        self._calibrate(probability.max(1), predicted == labels)

    def merge(self, other: Classification) -> None:
        """Take in the totals of `other`, a metric of the same classes."""
        if other.classes != self.classes:
            raise SigakError(
                "only metrics of the same classes in the same order can be merged: one has "
                f"{_shown(self.classes)}, the other {_shown(other.classes)}"
            )
        self._confusion += other._confusion
        self._top5 += other._top5
        self._unknown += other._unknown
        self._losses += other._losses
        self._loss.add(other._loss.parts)
        self._brier.add(other._brier.parts)
        self._bin_count += other._bin_count
        self._bin_right += other._bin_right
        for mine, theirs in zip(self._bin_confidence, other._bin_confidence, strict=True):
            mine.add(theirs.parts)

    def compute(self) -> dict[str, Any]:
        """The numbers, as plain values; None where there is nothing to compute from.

        count, unknown: pictures. accuracy. top5: only above 5 classes. loss: the mean. per_class: a
        list of name, precision, recall, f1, support; the three are None for a class without
        pictures, and precision is 0 for a class that has pictures and is never predicted. macro:
        their means over the classes with pictures. confusion: (K, K) counts, rows truth.
        calibration: ece, mce, brier, bins - see `_calibration`.
        """
        count = int(self._confusion.sum())
        rows = per_class(self.classes, self._confusion)
        result: dict[str, Any] = {
            "count": count,
            "unknown": self._unknown,
            "accuracy": ratio(int(np.trace(self._confusion)), count),
            "loss": ratio(self._loss.total(), self._losses),
            "per_class": rows,
            "macro": macro(rows),
            "confusion": self._confusion.tolist(),
            "calibration": self._calibration(count),
        }
        if len(self.classes) > 5:
            result["top5"] = ratio(self._top5, count)
        return result

    def _calibrate(self, confidence: np.ndarray, right: np.ndarray) -> None:
        """Sort (B,) confidences, and whether each was right, into the bins."""
        places = np.clip(np.searchsorted(_EDGES, confidence) - 1, 0, _BINS - 1)
        self._bin_count += np.bincount(places, minlength=_BINS)
        self._bin_right += np.bincount(places[right], minlength=_BINS)
        for place in np.unique(places):
            self._bin_confidence[place].add(confidence[places == place])

    def _calibration(self, count: int) -> dict[str, Any]:
        """Whether a confidence of 0.8 is right 8 times in 10.

        ece and mce: mean and largest gap between confidence and accuracy over 15 bins (low, high]
        of equal width (Guo et al. 2017, https://arxiv.org/abs/1706.04599). brier: mean over
        pictures of the squared errors summed over all classes, 0 to 2 (Brier 1950); with two
        classes this is twice the figure that looks at the positive class alone.
        """
        bins: list[dict[str, Any]] = []
        gaps: list[float] = []
        for i in range(_BINS):
            size, right = int(self._bin_count[i]), int(self._bin_right[i])
            confidence = self._bin_confidence[i].total()
            bins.append(
                {
                    "low": float(_EDGES[i]),
                    "high": float(_EDGES[i + 1]),
                    "confidence": ratio(confidence, size),
                    "accuracy": ratio(right, size),
                    "count": size,
                }
            )
            gaps.append(abs(confidence - right))
        worst = max((gap / b["count"] for gap, b in zip(gaps, bins) if b["count"]), default=None)
        return {
            "ece": ratio(math.fsum(gaps), count),
            "mce": worst,
            "brier": ratio(self._brier.total(), count),
            "bins": bins,
        }


class _ExactSum:
    """A sum of floats without rounding error, after Shewchuk (1997), doi.org/10.1007/PL00009321.

    `parts` is a short list of floats that together are the exact sum of everything added; `total`
    rounds it once.
    """

    def __init__(self) -> None:
        self.parts: list[float] = []

    def add(self, values: Iterable[float]) -> None:
        rest = [*self.parts, *map(float, values)]
        self.parts = []
        # fsum rounds correctly: taking its result away leaves exactly what that rounding lost.
        while part := math.fsum(rest):
            self.parts.append(part)
            rest.append(-part)

    def total(self) -> float:
        return math.fsum(self.parts)


def _array(values: Tensor | np.ndarray) -> np.ndarray:
    """On the CPU and contiguous: the order of summation, so the last digit, follows the layout."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        # numpy has no bfloat16; double holds every float exactly.
        values = (values.double() if values.is_floating_point() else values).numpy()
    return np.ascontiguousarray(values)


def _scores(values: Tensor | np.ndarray, classes: int) -> np.ndarray:
    """(B, K) float64 probabilities, checked."""
    scores = _array(values)
    if scores.ndim != 2 or scores.shape[1] != classes:
        raise SigakError(
            f"scores must have shape (B, {classes}), one column per class, received {scores.shape}"
        )
    if not np.isfinite(scores).all():
        raise SigakError(
            "scores must be numbers, received NaN or infinity: the network has diverged; "
            "train it with a lower learning rate"
        )
    # The slack covers the rounding of half precision.
    if len(scores) and (scores.min() < -1e-3 or abs(scores.sum(1) - 1).max() > 0.02):
        raise SigakError(
            "scores must be probabilities, each row at least 0 and adding up to 1; "
            f"received values from {scores.min():.3g} to {scores.max():.3g}: apply a softmax first"
        )
    return scores.astype(np.float64, copy=False)


def _labels(values: Tensor | np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """(B,) int64 class indices or UNKNOWN, from those or from (B, K) class weights."""
    truth = _array(values)
    if truth.shape == shape:
        return np.where(truth.max(1) > 0, truth.argmax(1), UNKNOWN)
    if truth.shape != shape[:1] or truth.dtype.kind not in "iu":
        raise SigakError(
            f"truth must be {shape[0]} integer class indices or class weights of shape {shape}, "
            f"received {truth.dtype} {truth.shape}"
        )
    if len(truth) and (truth.min() < UNKNOWN or truth.max() >= shape[1]):
        raise SigakError(
            f"class indices must be 0 to {shape[1] - 1}, or {UNKNOWN} where unknown; "
            f"received {truth.min()} to {truth.max()}"
        )
    labels: np.ndarray = truth.astype(np.int64)
    return labels


def _loss(values: Tensor | np.ndarray, known: np.ndarray) -> np.ndarray:
    """The losses of the `known` (B,) pictures, checked."""
    loss: np.ndarray = _array(values)
    if loss.shape != known.shape:
        raise SigakError(
            f"loss must hold one number per picture, shape {known.shape}, received {loss.shape}"
        )
    loss = loss[known]
    if not np.isfinite(loss).all():
        raise SigakError(
            "losses must be finite, received NaN or infinity: compute them from log-probabilities, "
            "or keep probabilities above 0; if those are NaN too, the network has diverged"
        )
    return loss


def _ranks(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(B,) how many classes come before the true one; equal scores go by class index."""
    own = scores[np.arange(len(labels)), labels][:, None]
    earlier = np.arange(scores.shape[1]) < labels[:, None]
    ranks: np.ndarray = ((scores > own) | ((scores == own) & earlier)).sum(1)
    return ranks


def _shown(names: list[str]) -> str:
    """The first few of `names`, for a message."""
    more = f", ... ({len(names)} in all)" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
