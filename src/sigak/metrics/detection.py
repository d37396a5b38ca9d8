"""Detection: how well boxes with classes and scores fit the objects of the pictures.

The numbers are COCO's (Lin et al. 2014, https://arxiv.org/abs/1405.0312), crowds, areas and limits
included, so that they can be set beside published ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from sigak.metrics import _coco, _details
from sigak.metrics._counts import per_class, ratio
from sigak.metrics._matching import match
from sigak.metrics._tables import Found, Truth
from sigak.ops.outlines import codes
from sigak.structures import Instances, SigakError

__all__ = ["Detection", "report"]

_RESAMPLES = 200
_SEED = 0


@dataclass(frozen=True)
class _Picture:
    """What there is and what was found on one picture, as NumPy arrays; boxes (N, 4) float64 left,
    top, width, height, COCO's form; codes the masks as run-length codes, where there are any.
    """

    source: str
    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    areas: np.ndarray
    found_boxes: np.ndarray
    found_labels: np.ndarray
    found_scores: np.ndarray
    codes: list[dict[str, Any]] | None = None
    found_codes: list[dict[str, Any]] | None = None


class Detection:
    """COCO's numbers and what lies behind them. `classes` are the names in label order.

    It keeps every box until the end (some 60 bytes each, and a few hundred for a mask) and can be
    pickled. The numbers do not
    depend on the order in which pictures came, as long as their sources differ.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = list(classes)
        if not self.classes:
            raise SigakError("a detection needs at least one class, received none")
        self._pictures: list[_Picture] = []

    def add(self, predicted: Instances, truth: Instances, source: str) -> None:
        """Take in one picture, which `source` names.

        predicted needs scores; boxes and masks of both lie in the frame of the file. Of truth,
        crowd and areas count: where they are None, nothing is a crowd, and an object's area is that
        of its box. A box turned inside out has no area. Masks are measured where all pictures have
        them, in truth and prediction. Raises SigakError where a number is not finite or a label is
        not a class.
        """
        if predicted.scores is None:
            raise SigakError(f"{source}: predicted boxes need scores to be ranked by")
        boxes, labels = self._checked(truth, source)
        found_boxes, found_labels = self._checked(predicted, source)
        scores = _array(predicted.scores)
        if not np.isfinite(scores).all():
            raise SigakError(
                f"{source}: scores must be numbers, received NaN or infinity: the network has "
                "diverged; train it with a lower learning rate"
            )
        crowd = np.zeros(len(labels), bool) if truth.crowd is None else _array(truth.crowd) > 0
        areas = boxes[:, 2:].prod(1) if truth.areas is None else _array(truth.areas)
        known = found = None
        if predicted.masks is not None and truth.masks is not None:
            known, found = codes(truth.masks), codes(predicted.masks)
        self._pictures.append(
            _Picture(
                source, boxes, labels, crowd, areas, found_boxes, found_labels, scores, known, found
            )
        )

    def _checked(self, instances: Instances, source: str) -> tuple[np.ndarray, np.ndarray]:
        """Boxes as left, top, width, height, and labels."""
        boxes, labels = _array(instances.boxes), _array(instances.labels).astype(np.int64)
        if not np.isfinite(boxes).all():
            raise SigakError(
                f"{source}: boxes must be numbers, received NaN or infinity: the network has "
                "diverged (train it with a lower learning rate), or the labels are damaged"
            )
        if len(labels) and not 0 <= labels.min() <= labels.max() < len(self.classes):
            raise SigakError(
                f"{source}: labels must be 0 to {len(self.classes) - 1}, received {labels.min()} "
                f"to {labels.max()}"
            )
        sides = np.clip(boxes[:, 2:] - boxes[:, :2], 0, None)
        return np.concatenate([boxes[:, :2], sides], axis=1), labels

    def merge(self, other: Detection) -> None:
        """Take in the pictures of `other`, a metric of the same classes."""
        if other.classes != self.classes:
            raise SigakError(
                "only metrics of the same classes in the same order can be merged: one has "
                f"{len(self.classes)} from {self.classes[0]}, the other {len(other.classes)} from "
                f"{other.classes[0]}"
            )
        self._pictures += other._pictures

    def compute(self, detail: bool = True) -> dict[str, Any]:
        """The numbers, as plain values; None where there is nothing to compute from.

        Always: count: pictures. objects, crowds, detections. COCO's twelve: map (the mean of the
        average precision at the IoUs .5, .55, ... .95), map50, map75, map_small, map_medium,
        map_large (areas to 32^2, to 96^2 and beyond), ar1, ar10, ar100 (recall of the best 1, 10
        and 100 detections of a class in a picture), ar_small, ar_medium, ar_large. per_class: a
        list of name, ap, ap50, support (objects). Of masks the twelve again as mask_map, mask_map50
        and so on, and mask_ap, mask_ap50 of a class.

        With `detail`, all at IoU .5:

        * confidence: the score from which on F1 over all objects is highest; precision, recall, f1
          there, also per class; confusion: (K + 1, K + 1) counts there, rows truth, columns
          prediction, the last the background. Precision of a class is its diagonal over the sum of
          its column, recall over the sum of its row.
        * curves: precision at 101 recalls, per class and mean; map50_voc, map50_voc11: the two
          readings of the PASCAL VOC, see `curves.average_precision`.
        * interval: map and map50 with other pictures of the kind, [low, high] at 95 %, see
          `_details.interval`.
        * errors: what map50 would gain, and how often they are, for detections of the wrong class
          (cls), badly placed (loc), both, double (dupe), on background (bkg), and for missed
          objects (miss): TIDE, Bolya et al. 2020, https://arxiv.org/abs/2008.08115.
        * calibration: the gap between scores and precision, ece and bins, see
          `_details.calibration`: D-ECE, Kueppers et al. 2020, https://arxiv.org/abs/2004.13546.
        """
        truth, found = self._tables()
        result = report(truth, found, len(self._pictures), self.classes, detail)
        return result | self._masks(truth, found, result["per_class"])

    def _masks(self, truth: Truth, found: Found, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """The numbers of masks, those of classes into `rows`; nothing where a picture has none."""
        pictures = sorted(self._pictures, key=lambda picture: picture.source)
        if not pictures or any(p.codes is None or p.found_codes is None for p in pictures):
            return {}
        known = [code for picture in pictures for code in picture.codes or ()]
        shown = [code for picture in pictures for code in picture.found_codes or ()]
        compared = _coco.mask_evaluator(truth, known, found, shown, len(pictures), len(rows))
        tables = _coco.tables(compared)
        for row, more in zip(rows, _coco.per_class(tables), strict=True):
            row |= {f"mask_{name}": value for name, value in more.items()}
        return {f"mask_{name}": value for name, value in _coco.numbers(tables).items()}

    def _tables(self) -> tuple[Truth, Found]:
        """All pictures behind each other, by source: order decides between equal scores."""
        pictures = sorted(self._pictures, key=lambda picture: picture.source)
        pictures = pictures or [_Picture("", *_NOTHING)]

        def joined(name: str) -> np.ndarray:
            return np.concatenate([getattr(picture, name) for picture in pictures])

        def places(name: str) -> np.ndarray:
            return np.repeat(np.arange(len(pictures)), [len(getattr(p, name)) for p in pictures])

        return (
            Truth(places("labels"), *map(joined, ("boxes", "labels", "crowd", "areas"))),
            Found(
                places("found_labels"),
                *map(joined, ("found_boxes", "found_labels", "found_scores")),
            ),
        )


_FLAT, _WIDE, _INTEGERS = np.zeros(0), np.zeros((0, 4)), np.zeros(0, np.int64)
_NOTHING = (_WIDE, _INTEGERS, _FLAT > 0, _FLAT, _WIDE, _INTEGERS, _FLAT)


def report(
    truth: Truth, found: Found, pictures: int, classes: list[str], detail: bool
) -> dict[str, Any]:
    """`Detection.compute` of two tables sorted by picture, whose order decides between detections
    of equal scores.
    """
    # An evaluation of no picture has the form of one with an empty picture.
    compared = _coco.evaluator(truth, found, max(pictures, 1), len(classes))
    tables = _coco.tables(compared)
    support = np.bincount(truth.labels[~truth.crowd], minlength=len(classes)).tolist()
    result: dict[str, Any] = {
        "count": pictures,
        "objects": sum(support),
        "crowds": int(truth.crowd.sum()),
        "detections": len(found.labels),
        **_coco.numbers(tables),
        "per_class": [
            {"name": name, **row, "support": count}
            for name, row, count in zip(classes, _coco.per_class(tables), support)
        ],
    }
    if detail:
        _add_details(result, truth, found, max(pictures, 1))
        result["errors"] = _coco.errors(compared)
    return result


def _add_details(result: dict[str, Any], truth: Truth, found: Found, pictures: int) -> None:
    """All that is told of the matches, into `result`."""
    matches, rows = match(truth, found), result["per_class"]
    classes = len(rows)
    confidence = _details.best_confidence(matches)
    counts = _details.confusion(matches, np.inf if confidence is None else confidence, classes)
    for row, more in zip(rows, per_class([row["name"] for row in rows] + ["background"], counts)):
        row |= {key: more[key] for key in ("precision", "recall", "f1")}
    right, shown = int(np.trace(counts)), int(counts[:, :-1].sum())
    result |= {
        "confidence": confidence,
        "precision": ratio(right, shown),
        "recall": ratio(right, result["objects"]),
        "f1": ratio(2 * right, shown + result["objects"]),
        "confusion": counts.tolist(),
    }
    result |= _details.curves(matches, classes)
    result["interval"] = _details.interval(matches, pictures, classes, _RESAMPLES, _SEED)
    result["calibration"] = _details.calibration(matches)


def _array(values: Tensor) -> np.ndarray:
    array: np.ndarray = values.detach().cpu().double().numpy()
    return array
