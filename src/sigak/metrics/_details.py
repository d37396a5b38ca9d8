"""What lies behind a mean average precision: where detections go wrong, and how sure it is."""

from __future__ import annotations

from typing import Any

import numpy as np

from sigak.metrics._counts import ratio
from sigak.metrics._matching import THRESHOLDS, Matches
from sigak.metrics.curves import RECALLS, average_precision, interpolated, precision_recall

__all__ = ["best_confidence", "calibration", "confusion", "curves", "interval"]

_BINS = 20
SHOWN = 0.25  # the confidence from which a prediction is shown unless another is asked for


def best_confidence(matches: Matches) -> float | None:
    """The score from which on, over all classes at IoU .5, F1 is highest; None without objects or
    detections. Of equals, the highest score.
    """
    counted = ~matches.ignored[:, 0]
    scores, right = matches.found.scores[counted], matches.right[counted, 0]
    objects = int((~matches.truth.crowd).sum())
    if not objects or not len(scores):
        return None
    order = np.argsort(-scores, kind="stable")
    scores, hits = scores[order], np.cumsum(right[order])
    f1 = 2 * hits / (np.arange(1, len(hits) + 1) + objects)
    f1[:-1][scores[1:] == scores[:-1]] = -1  # equal scores come and go together
    return float(scores[f1.argmax()])


def confusion(matches: Matches, least: float, classes: int) -> np.ndarray:
    """(K + 1, K + 1) int64 counts at IoU .5 of detections with a score of `least` or more: rows
    truth, columns prediction, the last of both the background.

    First detections meet objects of their own class, as they do for precision and recall; only what
    is left over then meets objects of other classes.
    """
    found, truth = matches.found, matches.truth
    missed = ~truth.crowd
    counts = np.zeros((classes + 1, classes + 1), np.int64)
    shown = ~matches.ignored[:, 0] & (found.scores >= least)
    other = matches.confused(least)
    partner = np.where(matches.right[:, 0], matches.partner[:, 0], other)[shown]
    labels = np.append(truth.labels, classes)  # partner -1 is the background
    np.add.at(counts, (labels[partner], found.labels[shown]), 1)
    missed[partner[partner >= 0]] = False
    np.add.at(counts, (truth.labels[missed], classes), 1)
    return counts


def curves(matches: Matches, classes: int) -> dict[str, Any]:
    """At IoU .5: "recall" (101), the precision there of each class (None without objects) and the
    mean of these, and the means over classes of VOC's two average precisions.
    """
    objects = np.bincount(matches.truth.labels[~matches.truth.crowd], minlength=classes)
    counted = ~matches.ignored[:, 0]
    scores, right = matches.found.scores[counted], matches.right[counted, 0]
    labels = matches.found.labels[counted]
    order = np.argsort(labels, kind="stable")
    ends = np.cumsum(np.bincount(labels, minlength=classes))[:-1]
    lines: list[np.ndarray | None] = []
    areas: dict[str, list[float]] = {"voc": [], "voc11": []}
    for rows, total in zip(np.split(order, ends), objects.tolist()):
        if not total:
            lines.append(None)
            continue
        precision, recall = precision_recall(scores[rows], right[rows], total)
        lines.append(interpolated(precision, recall, RECALLS))
        areas["voc"].append(average_precision(precision, recall, "voc"))
        areas["voc11"].append(average_precision(precision, recall, "voc11"))
    present = [line for line in lines if line is not None]
    return {
        "map50_voc": float(np.mean(areas["voc"])) if present else None,
        "map50_voc11": float(np.mean(areas["voc11"])) if present else None,
        "curves": {
            "recall": RECALLS.round(2).tolist(),
            "precision": np.mean(present, axis=0).round(6).tolist() if present else None,
            "per_class": [None if line is None else line.round(6).tolist() for line in lines],
        },
    }


def calibration(matches: Matches) -> dict[str, Any]:
    """Whether 8 of 10 detections with a score of 0.8 are right at IoU .5.

    bins: 20 of equal width (low, high]. ece: the mean gap between score and precision, weighted by
    the detections, over the bins above .25: the many faint candidates below would hide all else.
    """
    counted = ~matches.ignored[:, 0]
    scores, right = matches.found.scores[counted], matches.right[counted, 0]
    edges = np.arange(_BINS + 1) / _BINS
    places = np.clip(np.searchsorted(edges, scores) - 1, 0, _BINS - 1)
    count = np.bincount(places, minlength=_BINS)
    sums = np.bincount(places, scores, _BINS)
    hits = np.bincount(places, right, _BINS)
    above = edges[:-1] >= SHOWN
    return {
        "ece": ratio(float(abs(sums - hits)[above].sum()), int(count[above].sum())),
        "bins": [
            {
                "low": float(edges[i]),
                "high": float(edges[i + 1]),
                "confidence": ratio(float(sums[i]), int(count[i])),
                "precision": ratio(float(hits[i]), int(count[i])),
                "count": int(count[i]),
            }
            for i in range(_BINS)
        ],
    }


def interval(
    matches: Matches, pictures: int, classes: int, resamples: int, seed: int
) -> dict[str, Any]:
    """Where map and map50 would lie with other pictures of the same kind, [low, high] at 95 %.

    1.96 standard errors around the value, which are the spread over `resamples` draws of as many
    pictures, with repetition (Efron 1979, https://doi.org/10.1214/aos/1176344552). Not percentiles
    of the draws: a draw that holds a rare class at all holds its pictures too often, so that draws
    lie too high. The matches are counted anew, not made anew.
    """
    draw = np.random.default_rng(seed)
    mean = _Resampled(matches, classes)
    drawn = []
    for _ in range(resamples):
        weights = np.bincount(draw.integers(0, pictures, pictures), minlength=pictures)
        values = mean(weights)
        if values is not None:  # a draw may hold no object at all
            drawn.append(values)
    result: dict[str, Any] = {"map": None, "map50": None, "resamples": resamples, "seed": seed}
    middle = mean(np.ones(pictures, np.int64))
    if middle is not None:
        reach = 1.96 * np.std(drawn or [middle], axis=0)
        ends = np.clip([middle - reach, middle + reach], 0, 1).T.tolist()
        result |= {"map": ends[0], "map50": ends[1]}
    return result


class _Resampled:
    """COCO's map and map50 of pictures that count a number of times each.

    Only right detections need be looked at: between two of them precision falls. All classes and
    thresholds lie behind each other in one long list of them, in segments of one class at one
    threshold, best score first.
    """

    def __init__(self, matches: Matches, classes: int) -> None:
        found, truth = matches.found, matches.truth
        order = np.lexsort((-found.scores, found.labels))
        labels = found.labels[order]
        count, self.classes = len(order), classes
        self.picture = found.picture[order]
        self.object_picture = truth.picture[~truth.crowd]
        self.object_label = truth.labels[~truth.crowd]
        # Places in the long list of all detections at the first threshold, at the second, ...
        hits = np.flatnonzero(matches.right[order].T)
        ignored = np.flatnonzero(matches.ignored[order].T)
        level, self.place = np.divmod(hits, max(count, 1))
        self.segment = level * classes + labels[self.place]
        self.segments = len(THRESHOLDS) * classes
        starts = np.searchsorted(labels, np.arange(classes))
        self.class_start = starts[labels[self.place]]
        self.segment_start = np.searchsorted(self.segment, self.segment)
        self.ignored_picture = self.picture[ignored % max(count, 1)]
        self.ignored_before = np.searchsorted(ignored, hits)
        self.ignored_start = np.searchsorted(ignored, level * count + self.class_start)

    def __call__(self, weights: np.ndarray) -> tuple[float, float] | None:
        """(map, map50) with weights (P,) int; None without objects."""
        objects = np.bincount(
            self.object_label, weights[self.object_picture], minlength=self.classes
        )
        if not objects.any():
            return None
        own = weights[self.picture]
        all_, skipped = _sums(own), _sums(weights[self.ignored_picture])
        right = _sums(own[self.place])
        shown = all_[self.place + 1] - all_[self.class_start]
        shown = shown - skipped[self.ignored_before] + skipped[self.ignored_start]
        hits = right[1:] - right[self.segment_start]
        precision = hits / np.maximum(shown, 1)
        recall = hits / np.maximum(objects, 1)[self.segment % self.classes]
        # Later segments are lifted above all earlier ones on the way back, so that none leaks.
        lift = 2.0 * (self.segments - self.segment)
        best = np.maximum.accumulate((precision + lift)[::-1])[::-1] - lift
        reached = np.searchsorted(RECALLS, recall, "right")
        new = np.diff(reached, prepend=0)
        first = self.segment_start == np.arange(len(new))
        new[first] = reached[first]
        area = np.bincount(self.segment, best * new, self.segments) / len(RECALLS)
        present = area.reshape(len(THRESHOLDS), self.classes)[:, objects > 0]
        return float(present.mean()), float(present[0].mean())


def _sums(values: np.ndarray) -> np.ndarray:
    """(N + 1,) sums of the first 0, 1, ... N values."""
    return np.concatenate([[0], np.cumsum(values)])
