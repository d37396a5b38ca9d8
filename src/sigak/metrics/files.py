"""Detections evaluated from files alone: COCO's annotations and COCO's list of results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import hotcoco
import numpy as np

from sigak.metrics import _coco
from sigak.metrics._tables import Found, Truth
from sigak.metrics.detection import report
from sigak.structures import SigakError

__all__ = ["evaluate_files"]

_Rows = list[dict[str, Any]]


def evaluate_files(
    truth: str | Path, detections: str | Path, kind: Literal["boxes", "masks"] = "boxes"
) -> dict[str, Any]:
    """What `Detection.compute` tells of COCO files: `truth` an annotation file, `detections` a list
    of {"image_id", "category_id", "bbox": [left, top, width, height], "score"}.

    Every picture of `truth` counts, also one without detections; classes are in the order of their
    ids. Rows with a file_name and a category_name, as `sigak predict --coco` writes them, are those
    of the picture and class so called; other classes than those of `truth` do not count. Where all
    rows of both files have a "segmentation" the masks are measured too, and a detection may lack
    its box, which is then that of its mask. With kind "masks" they are measured alone: count,
    COCO's twelve numbers and per_class. Raises SigakError where a file cannot be read or names what
    the other does not have.
    """
    if kind not in ("boxes", "masks"):
        raise SigakError(f"kind must be boxes or masks, received {kind!r}")
    known, found = _read(truth), _read(detections)
    if not isinstance(found, list):
        raise SigakError(f"{detections}: expected COCO's list of detections, received an object")
    if not isinstance(known, dict):
        raise SigakError(f"{truth}: expected an object of COCO annotations, received a list")
    pictures = sorted(_ids(known, "images", truth))
    names = _ids(known, "categories", truth)
    classes = [str(names[key].get("name", key)) for key in sorted(names)]
    found = _by_name(found, known["images"], names)
    shape = "bbox" if kind == "boxes" else "segmentation"
    outlined = bool(found) and all(
        isinstance(row, dict) and row.get("segmentation") for row in found
    )
    if outlined and kind == "boxes":
        found = _boxed(known, found)
    _check(known.get("annotations"), pictures, names, (shape,), truth)
    _check(found, pictures, names, (shape, "score"), detections)
    if kind == "masks":
        return _masks(known, found, classes)
    outlined &= all(row.get("segmentation") for row in known["annotations"])
    own = [row.get("area") for row in known["annotations"]]
    for place, area in enumerate(own):
        if not (area is None or _sound("area", area)):
            raise SigakError(f"{truth}: row {place} has no usable area, received {area!r}")
    columns = _columns(known["annotations"], pictures, sorted(names))
    areas = columns["boxes"][:, 2:].prod(1)
    areas = np.array([area if a is None else a for a, area in zip(own, areas)], np.float64)
    crowd = np.array([bool(row.get("iscrowd")) for row in known["annotations"]], bool)
    scores = np.array([row["score"] for row in found], np.float64)
    result = report(
        Truth(**_sorted(columns | {"crowd": crowd, "areas": areas})),
        Found(**_sorted(_columns(found, pictures, sorted(names)) | {"scores": scores})),
        len(pictures),
        classes,
        detail=True,
    )
    if outlined:
        masks = _masks(known, found, classes)
        for row, more in zip(result["per_class"], masks.pop("per_class"), strict=True):
            row |= {"mask_ap": more["ap"], "mask_ap50": more["ap50"]}
        del masks["count"]
        result |= {f"mask_{name}": value for name, value in masks.items()}
    return result


def _read(path: str | Path) -> Any:
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as wrong:
        raise SigakError(f"{path} cannot be read as JSON: {wrong}") from wrong


def _ids(known: dict[str, Any], part: str, path: str | Path) -> dict[int, dict[str, Any]]:
    """The rows of a part of an annotation file, by id."""
    rows = known.get(part)
    if not isinstance(rows, list) or not all(
        isinstance(row, dict) and isinstance(row.get("id"), int) for row in rows
    ):
        raise SigakError(f'{path}: expected a list "{part}" of objects with an integer "id"')
    if not rows:
        raise SigakError(f'{path}: expected at least one row in "{part}", received none')
    return {row["id"]: row for row in rows}


def _by_name(found: list[Any], images: _Rows, names: dict[int, dict[str, Any]]) -> list[Any]:
    """The rows that name their picture and class with the numbers of both in the annotations."""
    classes = {row.get("name"): key for key, row in names.items()}
    files: dict[str, list[tuple[tuple[str, ...], int]]] = {}
    for image in images:
        parts = Path(str(image.get("file_name", ""))).parts
        files.setdefault(parts[-1] if parts else "", []).append((parts, image["id"]))
    rows = []
    for row in found:
        if not (isinstance(row, dict) and {"file_name", "category_name"} <= set(row)):
            rows.append(row)
        elif row["category_name"] in classes:
            parts = Path(str(row["file_name"])).parts
            alike = files.get(parts[-1] if parts else "", [])
            # Of pictures with one name the one in the same folders.
            exact = [one for one in alike if parts[-len(one[0]) :] == one[0]] or alike
            number = exact[0][1] if len(exact) == 1 else row.get("image_id")
            rows.append(row | {"image_id": number, "category_id": classes[row["category_name"]]})
    return rows


def _check(
    rows: Any, pictures: list[int], names: dict[int, Any], fields: tuple[str, ...], path: str | Path
) -> None:
    """Raise SigakError at the first row that cannot be compared."""
    if not isinstance(rows, list):
        raise SigakError(f'{path}: expected a list "annotations"')
    allowed = {"image_id": set(pictures), "category_id": set(names)}
    for place, row in enumerate(rows):
        if not isinstance(row, dict):
            raise SigakError(f"{path}: row {place} must be an object, received {row!r}")
        for key, values in allowed.items():
            number = row.get(key)
            if not isinstance(number, int) or isinstance(number, bool) or number not in values:
                raise SigakError(
                    f"{path}: row {place} has the {key} {row.get(key)!r}, which the annotations do "
                    "not list"
                )
        for field in fields:
            value = row.get(field)
            if not _sound(field, value):
                raise SigakError(f"{path}: row {place} has no usable {field}, received {value!r}")


def _sound(field: str, value: Any) -> bool:
    if field == "segmentation":
        return isinstance(value, list | dict)
    numbers = value if isinstance(value, list) else [value]
    wanted = 4 if field == "bbox" else 1
    sound = len(numbers) == wanted and all(
        isinstance(n, int | float) and not isinstance(n, bool) and np.isfinite(n) for n in numbers
    )
    return sound and (field != "bbox" or min(numbers[2:]) >= 0)


def _columns(rows: _Rows, pictures: list[int], categories: list[int]) -> dict[str, np.ndarray]:
    place = {key: i for i, key in enumerate(pictures)}
    label = {key: i for i, key in enumerate(categories)}
    return {
        "picture": np.array([place[row["image_id"]] for row in rows], np.int64),
        "boxes": np.array([row["bbox"] for row in rows], np.float64).reshape(-1, 4),
        "labels": np.array([label[row["category_id"]] for row in rows], np.int64),
    }


def _sorted(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The rows picture by picture, otherwise in the order of the file."""
    order = np.argsort(columns["picture"], kind="stable")
    return {name: values[order] for name, values in columns.items()}


def _boxed(known: dict[str, Any], found: _Rows) -> _Rows:
    """The detections, those without a box with that of their mask."""
    if all("bbox" in row for row in found):
        return found
    try:
        whole = hotcoco.COCO(known).load_res([_bare(row) for row in found]).dataset["annotations"]
    except (ValueError, RuntimeError, TypeError, KeyError) as wrong:
        raise SigakError(f"expected polygons or COCO's run-length codes: {wrong}") from wrong
    return [{"bbox": box["bbox"]} | row for row, box in zip(found, whole, strict=True)]


def _bare(row: dict[str, Any]) -> dict[str, Any]:
    """Without the box, so that a detection's area is that of its mask."""
    return {name: value for name, value in row.items() if name != "bbox"}


def _masks(known: dict[str, Any], found: _Rows, classes: list[str]) -> dict[str, Any]:
    table = hotcoco.COCO(known)
    try:
        rows = [_bare(row) for row in found]
        compared = _coco.compared(table, table.load_res(rows), "segm")
    except (ValueError, RuntimeError) as wrong:
        raise SigakError(f"expected polygons or COCO's run-length codes: {wrong}") from wrong
    tables = _coco.tables(compared)
    named = [{"name": name, **row} for name, row in zip(classes, _coco.per_class(tables))]
    return {"count": len(known["images"]), **_coco.numbers(tables), "per_class": named}
