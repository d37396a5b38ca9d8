"""COCO: one JSON file of images, categories and annotations a split.

Boxes are [x, y, width, height] in continuous pixels; outlines are polygons, or run-length codes of
crowds; key points are triples x, y, visibility, taken as they are written. https://cocodataset.org
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from sigak.data.headers import Header
from sigak.data.labels import (
    DIGITS,
    SPLIT_ORDER,
    SPLITS,
    Draft,
    Findings,
    annotation,
    column,
    dataset,
    distinct,
    few,
    finish,
    one_class,
)
from sigak.data.objects import Objects, Outline
from sigak.data.records import Dataset
from sigak.structures import SigakError

__all__ = ["Facts", "parse", "picture_folder", "read", "write"]

_SAMPLED = 50  # pictures that decide where the others are looked for
_OWN = {
    "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation", "keypoints",
    "num_keypoints",
}  # fmt: skip


@dataclass
class Facts:
    """What the files say besides objects: enough to write them again, and results for them.

    head: info, licenses and other lists; categories: one dict a class, in the order of labels, each
    with its "id"; images: by a record's source, the dict of its picture with its "id".
    """

    head: dict[str, Any] = field(default_factory=dict)
    categories: list[dict[str, Any]] = field(default_factory=list)
    images: dict[str, dict[str, Any]] = field(default_factory=dict)


def read(path: str | Path, strict: bool = False, *, single_class: bool = False) -> Dataset:
    """The set of a COCO instances file, as the split "train", or of a folder of such files.

    A folder has annotations/*train*.json, *val*.json, *test*.json, or SPLIT/*.json. Pictures are
    looked for by file_name beside the file, in images, and in folders of the split's name, here and
    one level up. Categories become labels 0, 1, ... in the order of their ids. `single_class` makes
    all objects one class, "object".

    What is wrong is mended and listed in `problems`, or refused when `strict`. Raises SigakError
    for a file that is no COCO file, and where not one picture is found.
    """
    found, _ = parse(path, strict)
    if single_class:
        found.classes = one_class(found.splits.values())
    return found


def parse(
    path: str | Path, strict: bool = False, *, pictures: bool = True
) -> tuple[Dataset, Facts]:
    """`read`, with what else the files say. Without `pictures` none is looked for or checked: the
    sources are the file names, the sizes those of the file.
    """
    path = Path(path)
    findings = Findings(path)
    files = _files(path)
    bodies = {name: _load(file) for name, file in files.items()}
    facts = Facts()
    labels = _categories(files, bodies, facts, findings)
    names = [str(category["name"]) for category in facts.categories]
    classes = distinct(names, path, findings)
    splits = []
    for name, file in files.items():
        body = bodies.pop(name)
        facts.head |= {
            key: value
            for key, value in body.items()
            if key not in ("images", "annotations", "categories")
        }
        images = _images(body, file, findings)
        folder = _Folders(file) if pictures else None
        draft = _draft(name, file, images, body.get("annotations", []), labels, findings)
        if folder is not None:
            draft.pictures = folder.find(draft.pictures)
        headers = None if pictures else [_header(stated) for stated in draft.stated]
        facts.images |= dict(zip(draft.pictures, images.values()))
        splits.append(finish(draft, len(classes), findings, headers))
    return dataset(path, classes, splits, findings, strict), facts


def _header(stated: tuple[int, int] | None) -> Header:
    """What stands for the header of a picture that is not looked at."""
    if stated is None or min(stated) < 1:
        return Header((0, 0), damage="has no size")
    return Header(stated)


# ------------------------------------------------------------------ files


def _files(path: Path) -> dict[str, Path]:
    """The JSON file of each split."""
    if path.is_file():
        return {"train": path}
    if not path.is_dir():
        raise SigakError(f"there is no file {path}; expected a COCO .json")
    files: dict[str, Path] = {}
    for file in sorted(
        [*path.glob("*.json"), *path.glob("annotations/*.json"), *path.glob("*/_*.json")]
    ):
        words = [file.parent.name.lower(), *_words(file.stem)]
        name = next((SPLITS[word] for word in words if word in SPLITS), None)
        if name is None or "captions" in words or "keypoints" in words:
            continue
        if name in files:
            raise SigakError(
                f"expected one file for the {name} split, received {files[name]} and {file}; name "
                "the file itself"
            )
        files[name] = file
    lone = [*path.glob("*.json")]
    if not files and len(lone) == 1:
        return {"train": lone[0]}
    if not files:
        raise SigakError(f"expected annotations/instances_train.json or the like in {path}")
    return {name: files[name] for name in SPLIT_ORDER if name in files}


def _words(stem: str) -> list[str]:
    """ "instances_val2017" -> ["instances", "val"]."""
    return [word.rstrip("0123456789") for word in stem.lower().replace("-", "_").split("_")]


def _load(file: Path) -> dict[str, Any]:
    try:
        body = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise SigakError(f"{file} cannot be read as JSON: {error}") from None
    wanted = ("images", "annotations", "categories")
    if not isinstance(body, dict) or not all(isinstance(body.get(k), list) for k in wanted[::2]):
        keys = few(body, 6) if isinstance(body, dict) else type(body).__name__
        raise SigakError(
            f"{file}: expected the lists images, annotations and categories, received {keys}"
        )
    if not isinstance(body.get("annotations", []), list):
        raise SigakError(f"{file}: expected annotations as a list")
    return body


def _categories(
    files: Mapping[str, Path], bodies: Mapping[str, Any], facts: Facts, findings: Findings
) -> dict[int, int]:
    """The label of each category id; `facts.categories` gets their dicts."""
    found: dict[int, dict[str, Any]] = {}
    for split, body in bodies.items():
        for entry in body["categories"]:
            try:
                number, name = int(entry["id"]), str(entry["name"])
            except (TypeError, KeyError, ValueError):
                findings.add(files[split], f"category {_short(entry)} lacks id or name", "left out")
                continue
            first = found.setdefault(number, entry)
            if str(first["name"]) != name:
                reason = f"category {number} is {first['name']!r} and {name!r}"
                findings.add(files[split], reason, f"{first['name']!r} is taken")
    facts.categories += [found[number] for number in sorted(found)]
    if not found:
        raise SigakError(f"{few(map(str, files.values()))}: expected categories, received none")
    return {number: label for label, number in enumerate(sorted(found))}


def _images(body: Mapping[str, Any], file: Path, findings: Findings) -> dict[Any, dict[str, Any]]:
    """The images by id."""
    images: dict[Any, dict[str, Any]] = {}
    for entry in body["images"]:
        try:
            number, name = entry["id"], entry["file_name"]
            if not isinstance(name, str) or not isinstance(number, (int, str)):
                raise TypeError
        except (TypeError, KeyError):
            reason = f"image {_short(entry)} lacks id or file_name"
            findings.add(file, reason, "picture skipped")
            continue
        if number in images:
            reason = f"image id {number} comes twice, for {images[number]['file_name']} and {name}"
            findings.add(file, reason, "the second skipped")
            continue
        images[number] = entry
    return images


def _short(value: Any) -> str:
    return repr(value)[:60]


class _Folders:
    """Where the pictures of a file are."""

    def __init__(self, file: Path) -> None:
        own = Path(os.path.abspath(file.parent))
        split = file.stem.rpartition("_")[2]  # "train2017" of "instances_train2017"
        self.places = [
            os.path.join(base, *below)
            for base in (own, own.parent)
            for below in ((), ("images",), (split,), ("images", split), ("JPEGImages",))
        ]
        self.file = file

    def find(self, names: list[str]) -> list[str]:
        """The path of each picture; one that is nowhere is given where most others are."""
        names = [name.replace("\\", "/") for name in names]
        some = names[:: -(-len(names) // _SAMPLED) or 1]
        hits = [sum(os.path.isfile(os.path.join(p, n)) for n in some) for p in self.places]
        best = self.places[hits.index(max(hits))]
        order = [best, *(place for place in self.places if place != best)]
        found = [self._one(name, order) for name in names]
        if names and not any(found):
            raise SigakError(
                f"none of the {len(names)} pictures of {self.file} is there; looked for "
                f"{names[0]} in {', '.join(self.places)}"
            )
        missing = [os.path.normpath(os.path.join(best, name)) for name in names]
        return [path or lost for path, lost in zip(found, missing)]

    def _one(self, name: str, order: list[str]) -> str | None:
        paths = (os.path.join(place, name) for place in order)
        found = next((path for path in paths if os.path.isfile(path)), None)
        return None if found is None else os.path.normpath(found)


# ------------------------------------------------------------------ annotations


def _draft(
    name: str,
    file: Path,
    images: dict[Any, dict[str, Any]],
    annotations: list[Any],
    labels: Mapping[int, int],
    findings: Findings,
) -> Draft:
    """The annotations of a split, ordered by picture; pictures are file names as yet."""
    place_of = {number: place for place, number in enumerate(images)}
    rows: list[tuple[int, dict[str, Any], tuple[int, list[float], Outline, list[float]]]] = []
    for at, entry in enumerate(annotations):
        try:
            parsed = _object(entry, labels)
            rows.append((place_of[entry["image_id"]], entry, parsed))
        except (TypeError, KeyError, ValueError, OverflowError) as error:
            number = entry.get("id", f"at {at}") if isinstance(entry, dict) else f"at {at}"
            findings.add(f"{file}:annotation {number}", _reason(entry, error), "left out")
    rows.sort(key=lambda row: row[0])
    entries = [entry for _, entry, _ in rows]
    objects = Objects(
        _corners([box for _, _, (_, box, _, _) in rows]),
        np.array([label for _, _, (label, _, _, _) in rows], np.int64),
        crowd=np.array([bool(entry.get("iscrowd")) for entry in entries], bool),
        areas=_areas(entries),
        outlines=[outline for _, _, (_, _, outline, _) in rows],
        points=_points([points for _, _, (_, _, _, points) in rows]),
        marks=_marks(entries),
    )
    return Draft(
        name,
        [image["file_name"] for image in images.values()],
        [f"{file}:image {number}" for number in images],
        [_size(image) for image in images.values()],
        objects,
        np.array([place for place, _, _ in rows], np.int64),
        lambda i: f"{file}:annotation {entries[i].get('id', '?')}",
    )


def _object(
    entry: dict[str, Any], labels: Mapping[int, int]
) -> tuple[int, list[float], Outline, list[float]]:
    """(label, [x, y, w, h], outline, key points) of an annotation."""
    if entry["category_id"] not in labels:
        raise ValueError(f"category {_short(entry['category_id'])} is not in categories")
    label = labels[entry["category_id"]]
    outline = _outline(entry.get("segmentation"))
    points = [float(value) for value in entry.get("keypoints") or ()]
    if len(points) % 3:
        raise ValueError(f"keypoints has {len(points)} numbers, expected triples")
    if "bbox" not in entry and outline and isinstance(outline, list):
        corners = np.concatenate(outline)
        return label, [*corners.min(0), *np.ptp(corners, 0)], outline, points
    box = entry["bbox"]
    if not isinstance(box, list) or len(box) != 4:
        raise ValueError(f"bbox must be [left, top, width, height], received {_short(box)}")
    x, y, w, h = map(float, box)
    return label, [x, y, w, h], outline, points


def _reason(entry: Any, error: Exception) -> str:
    if isinstance(entry, dict):
        for key in ("image_id", "category_id", "bbox"):
            if key not in entry:
                return f"there is no {key}"
        if isinstance(error, KeyError):
            return f"there is no image {_short(entry['image_id'])}"
    return f"cannot be understood ({error})"


def _outline(segmentation: Any) -> Outline:
    """Polygons that are polygons, or the run-length code as it is."""
    if isinstance(segmentation, dict):
        return segmentation
    polygons = []
    for numbers in segmentation or ():
        if len(numbers) >= 6 and len(numbers) % 2 == 0:
            polygon = np.array(numbers, np.float64).reshape(-1, 2)
            if np.isfinite(polygon).all():
                polygons.append(polygon)
    return polygons


def _corners(boxes: list[list[float]]) -> np.ndarray:
    corners = np.array(boxes, np.float64).reshape(-1, 4)
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is told later
        corners[:, 2:] += corners[:, :2]
    return corners


def _areas(entries: list[dict[str, Any]]) -> np.ndarray | None:
    """The stated areas; None where not every object has one."""
    values = [entry.get("area") for entry in entries]
    if not all(isinstance(value, (int, float)) for value in values):
        return None
    return np.array(values, np.float64)


def _points(rows: list[list[float]]) -> np.ndarray | None:
    count = max(map(len, rows), default=0) // 3
    if count == 0:
        return None
    points = np.zeros((len(rows), count * 3))
    for row, values in zip(points, rows):
        row[: len(values)] = values
    return points.reshape(-1, count, 3)


def _marks(entries: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Every further fact that is one number or word."""
    names = dict.fromkeys(chain.from_iterable(entries))
    marks = {}
    for name in names:
        values = [entry.get(name) for entry in entries]
        if name not in _OWN and not any(isinstance(value, (list, dict)) for value in values):
            marks[name] = column(values)
    return marks


def _size(image: Mapping[str, Any]) -> tuple[int, int] | None:
    height, width = image.get("height"), image.get("width")
    if not (isinstance(height, (int, float)) and isinstance(width, (int, float))):
        return None
    return (int(height), int(width)) if 0 <= height < 1e9 and 0 <= width < 1e9 else None


# ------------------------------------------------------------------ writing


def picture_folder(split: str) -> str:
    """Where the pictures of a split belong, below the folder that is written."""
    return split


def write(
    dataset: Dataset, folder: Path, names: Mapping[str, str], facts: Facts | None = None
) -> list[str]:
    """Write folder/annotations/instances_SPLIT.json; what was lost, in words.

    Every record must have objects and a size. names: the file name of each picture, by source.
    Ids are those of `facts` and of the mark "id"; without them images, categories and annotations
    are counted from 1.
    """
    facts = facts or Facts()
    categories = facts.categories
    if [category.get("name") for category in categories] != dataset.classes:
        numbers = [category["id"] for category in categories]
        if len(numbers) != len(dataset.classes):
            numbers = list(range(1, len(dataset.classes) + 1))
        categories = [{"id": n, "name": name} for n, name in zip(numbers, dataset.classes)]
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    image_id, object_id = 0, 0
    for name, split in dataset.splits.items():
        images, annotations = [], []
        for record in split.records:
            objects, (height, width) = annotation(record)
            image_id += 1
            image = {"id": image_id} | facts.images.get(record.source, {})
            image |= {"file_name": names[record.source], "height": height, "width": width}
            images.append(image)
            for entry in _entries(objects):
                object_id += 1
                entry = {"id": object_id, "image_id": image["id"]} | entry
                entry["category_id"] = categories[entry["category_id"]]["id"]
                annotations.append(entry)
        if len({entry["id"] for entry in annotations}) < len(annotations):
            for number, entry in enumerate(annotations, 1):
                entry["id"] = number
        body = facts.head | {"images": images, "annotations": annotations, "categories": categories}
        target = folder / "annotations" / f"instances_{name}.json"
        target.write_text(json.dumps(body, ensure_ascii=False), encoding="utf-8", newline="\n")
    return []


def _entries(objects: Objects) -> list[dict[str, Any]]:
    """The annotations of one picture, with their labels for category ids."""
    boxes = objects.boxes.copy()
    boxes[:, 2:] -= boxes[:, :2]
    entries = []
    for i, label in enumerate(objects.labels.tolist()):
        outline: Outline = [] if objects.outlines is None else objects.outlines[i]
        area = _area(boxes[i], outline) if objects.areas is None else objects.areas[i].item()
        entry: dict[str, Any] = {
            "category_id": label,
            "bbox": _numbers(boxes[i]),
            "area": area,
            "iscrowd": 0 if objects.crowd is None else int(objects.crowd[i]),
            "segmentation": outline
            if isinstance(outline, dict)
            else [_numbers(polygon.ravel()) for polygon in outline],
        }
        if objects.points is not None and objects.points[i].any():
            entry["keypoints"] = _numbers(objects.points[i].ravel())
            entry["num_keypoints"] = int((objects.points[i, :, 2] > 0).sum())
        entries.append(entry | {k: v[i].item() for k, v in (objects.marks or {}).items()})
    return entries


def _area(box: np.ndarray, outline: Outline) -> float:
    """Square pixels: those within the polygons, or of the box [x, y, w, h]."""
    if isinstance(outline, dict) or not outline:
        return float(box[2] * box[3])
    total = 0.0
    for polygon in outline:
        x, y = polygon.T
        total += abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2
    return total


def _numbers(values: np.ndarray) -> list[float]:
    """Rounded to `DIGITS` decimals; whole ones as integers."""
    rounded = [round(value, DIGITS) for value in values.tolist()]
    return [int(value) if value == int(value) else value for value in rounded]
