"""Precision, recall, and the area under their curve.

Detections are taken best score first. After each, precision is the share of them that is right and
recall the share of the objects that is found. Average precision is the area under precision over
recall, of which three readings are in use; all of them first let precision fall only: at a recall
it counts as the best precision at that recall or beyond.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

from sigak.errors import SigakError

__all__ = ["RECALLS", "Reading", "average_precision", "interpolated", "precision_recall"]

Reading = Literal["coco", "voc", "voc11"]
RECALLS = np.linspace(0, 1, 101)  # where COCO reads the curve


def precision_recall(
    scores: np.ndarray, right: np.ndarray, objects: int
) -> tuple[np.ndarray, np.ndarray]:
    """scores (N,), right (N,) bool whether a detection is matched to an object, and the number of
    objects there are -> precision (N,) and recall (N,) after each detection, best score first.

    Equal scores keep their order. Without objects recall is 0.
    """
    if scores.shape != right.shape or scores.ndim != 1 or objects < 0:
        raise SigakError(
            f"expected scores and right of one shape (N,) and objects from 0, received "
            f"{scores.shape}, {right.shape} and {objects}"
        )
    hits = np.cumsum(right[np.argsort(-scores, kind="stable")])
    return hits / np.arange(1, len(hits) + 1), hits / max(objects, 1)


def interpolated(precision: np.ndarray, recall: np.ndarray, at: np.ndarray) -> np.ndarray:
    """The best precision at each recall of `at` or beyond; 0 where that recall is not reached."""
    best = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    found: np.ndarray = best[np.searchsorted(recall, at)]
    return found


def average_precision(
    precision: np.ndarray, recall: np.ndarray, reading: Reading = "coco"
) -> float:
    """The area under the curve of `precision_recall`, 0 to 1.

    "coco": the mean of the curve at the 101 recalls 0, 0.01, ... 1 (Lin et al. 2014,
    https://arxiv.org/abs/1405.0312). "voc11": at the 11 recalls 0, 0.1, ... 1, as PASCAL VOC did
    until 2009 (Everingham et al. 2010, https://doi.org/10.1007/s11263-009-0275-4). "voc": the exact
    area under the steps, as PASCAL VOC does since 2010.
    """
    if reading not in get_args(Reading):
        raise SigakError(f"reading must be one of coco, voc or voc11, received {reading!r}")
    if reading == "voc":
        heights = interpolated(precision, recall, recall)
        return float((np.diff(recall, prepend=0.0) * heights).sum())
    at = RECALLS if reading == "coco" else RECALLS[::10]
    return float(interpolated(precision, recall, at).mean())
