"""COCO's numbers. They come from hotcoco, which follows the rules of pycocotools."""

from __future__ import annotations

from typing import Any

import hotcoco
import numpy as np

from sigak.metrics._tables import Found, Truth

__all__ = [
    "compared",
    "errors",
    "evaluator",
    "mask_evaluator",
    "numbers",
    "per_class",
    "tables",
]

_ALL, _SMALL, _MEDIUM, _LARGE = range(4)  # objects of any area; below 32^2; to 96^2; above
_BEST1, _BEST10, _BEST100 = range(3)  # how many detections of a picture and class count
# name -> place of the IoU threshold (None: all ten), area
_PRECISIONS: dict[str, tuple[int | None, int]] = {
    "map": (None, _ALL),
    "map50": (0, _ALL),
    "map75": (5, _ALL),
    "map_small": (None, _SMALL),
    "map_medium": (None, _MEDIUM),
    "map_large": (None, _LARGE),
}
# name -> area, detections that count
_RECALLS = {
    "ar1": (_ALL, _BEST1),
    "ar10": (_ALL, _BEST10),
    "ar100": (_ALL, _BEST100),
    "ar_small": (_SMALL, _BEST100),
    "ar_medium": (_MEDIUM, _BEST100),
    "ar_large": (_LARGE, _BEST100),
}
_ERRORS = {"Cls": "cls", "Loc": "loc", "Both": "both", "Dupe": "dupe", "Bkg": "bkg", "Miss": "miss"}


def evaluator(truth: Truth, found: Found, pictures: int, classes: int) -> hotcoco.COCOeval:
    """The tables, compared; there must be a picture."""
    known = _known(truth, pictures, classes)
    rows = [found.picture + 1, found.boxes, found.scores, found.labels + 1]
    return compared(known, known.load_res(np.column_stack(rows)), "bbox")


def mask_evaluator(
    truth: Truth,
    truth_codes: list[dict[str, Any]],
    found: Found,
    found_codes: list[dict[str, Any]],
    pictures: int,
    classes: int,
) -> hotcoco.COCOeval:
    """The tables, compared by masks: one run-length code a row. As in COCO's own measure of masks
    the area of a detection is that of its mask, not of its box.
    """
    known = _known(truth, pictures, classes, segmentation=truth_codes)
    rows = [
        {"image_id": picture + 1, "category_id": label + 1, "score": score, "segmentation": code}
        for picture, label, score, code in zip(
            found.picture.tolist(),
            found.labels.tolist(),
            found.scores.tolist(),
            found_codes,
            strict=True,
        )
    ]
    return compared(known, known.load_res(rows), "segm")


def _known(truth: Truth, pictures: int, classes: int, **more: Any) -> hotcoco.COCO:
    """The objects as hotcoco keeps them, with ids from 1: an annotation 0 is never matched."""
    return hotcoco.COCO.from_arrays(
        [{"id": place + 1} for place in range(pictures)],
        [{"id": label + 1, "name": str(label)} for label in range(classes)],
        truth.picture + 1,
        truth.labels + 1,
        truth.boxes,
        area=truth.areas,
        iscrowd=truth.crowd,
        **more,
    )


def compared(known: hotcoco.COCO, found: hotcoco.COCO, kind: str) -> hotcoco.COCOeval:
    """hotcoco's two tables, compared by their "bbox" or "segm"."""
    result = hotcoco.COCOeval(known, found, kind)
    result.evaluate()
    result.accumulate()
    return result


def tables(result: hotcoco.COCOeval) -> dict[str, np.ndarray]:
    """precision (thresholds, recalls, classes, areas, counts), and recall, which has no axis of
    recalls; -1 stands where there is no such object. A copy, of 8 MB for 80 classes.
    """
    made = result.eval or {}
    return {name: made[name] for name in ("precision", "recall")}


def numbers(tables: dict[str, np.ndarray]) -> dict[str, float | None]:
    """COCO's twelve, of `tables`."""
    precision, recall = tables["precision"], tables["recall"]
    found: dict[str, float | None] = {}
    for name, (threshold, area) in _PRECISIONS.items():
        places = slice(None) if threshold is None else threshold
        found[name] = _mean(precision[places, ..., area, _BEST100])
    for name, (area, count) in _RECALLS.items():
        found[name] = _mean(recall[..., area, count])
    return found


def per_class(tables: dict[str, np.ndarray]) -> list[dict[str, float | None]]:
    """ap and ap50 of each class, of `tables`."""
    precision = np.moveaxis(tables["precision"][..., _ALL, _BEST100], 2, 0)
    return [{"ap": _mean(values), "ap50": _mean(values[0])} for values in precision]


def errors(result: hotcoco.COCOeval) -> dict[str, dict[str, Any]]:
    """TIDE, see `Detection.compute`."""
    tide = result.tide_errors(pos_thr=0.5, bg_thr=0.1)
    return {
        ours: {"gain": tide["delta_ap"][theirs], "count": tide["counts"][theirs]}
        for theirs, ours in _ERRORS.items()
    }


def _mean(values: np.ndarray) -> float | None:
    known = values[values > -1]
    # COCO keeps denominators from 0 with 2e-16, so that one object, found, scores 1 less that.
    return round(float(known.mean()), 12) if len(known) else None
