"""YOLO: a data.yaml that names splits and classes, and one text file of objects per picture.

A line of a label file is `class cx cy w h`, in shares of the picture's width and height from 0 to
1; or `class x1 y1 x2 y2 x3 y3 ...`, an outline, whose hull is the box; or, where the yaml says
`kpt_shape: [P, 2 or 3]`, a box and P points `x y [visibility]`. Lines count in the upright picture
(EXIF turned).
"""

from __future__ import annotations

import glob
import os
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from sigak.data.headers import measure
from sigak.data.labels import (
    DIGITS,
    SPLITS,
    Draft,
    Findings,
    annotation,
    dataset,
    distinct,
    few,
    finish,
    one_class,
    tell_marks,
)
from sigak.data.objects import Objects, Outline
from sigak.data.records import Dataset, Split
from sigak.io import image
from sigak.structures import SigakError

__all__ = ["picture_folder", "read", "write"]

_LARGEST = 2.0  # shares beyond this are pixels by mistake
_HULL = 1e-6  # how far, in pixels, a box may lie from the hull of an outline that stands for it


def read(path: str | Path, strict: bool = False, *, single_class: bool = False) -> Dataset:
    """The set that a data.yaml, or a folder with one, describes.

    The yaml's keys: train, val and test, each a folder (searched to the bottom), a pattern, a text
    file with one picture per line, or a list of those; path, the folder they count from, which
    counts from the yaml's own; names, a list or a mapping; nc; kpt_shape. Nothing else is followed.
    Labels lie where the last folder called "images" of a picture's path is called "labels", or
    beside the picture; a picture without a label file has no objects. `single_class` makes all
    objects one class, "object".

    What is wrong is mended and listed in `problems`, or refused when `strict`. Raises SigakError
    for a yaml without pictures or classes, and where not one label file is found.
    """
    path = _find_yaml(Path(path))
    findings = Findings(path)
    spec = _load(path)
    classes = _classes(spec, path, findings)
    shape = _point_shape(spec, path)
    base = _base(spec, path, findings)
    shelf = _Shelf()
    splits: list[Split] = []
    for name in SPLITS:
        if name in spec and SPLITS[name] not in [split.name for split in splits]:
            try:
                pictures = _Search(base, path, findings).pictures(spec[name])
            except _Missing as error:
                if SPLITS[name] == "train":
                    raise
                findings.add(path, str(error), f"no {SPLITS[name]} split")
                continue
            draft = _draft(SPLITS[name], pictures, shelf, shape, findings)
            headers = measure(draft.pictures)
            _to_pixels(draft.objects, np.array([h.size for h in headers])[draft.owner])
            splits.append(finish(draft, len(classes), findings, headers))
    if not splits:
        raise SigakError(f"{path}: expected train, val or test, received {few(spec) or 'nothing'}")
    shelf.report(classes, path, findings)
    if single_class:
        classes = one_class(splits)
    return dataset(path, classes, splits, findings, strict)


# ------------------------------------------------------------------ the yaml


def _find_yaml(path: Path) -> Path:
    if path.is_dir():
        found = sorted([*path.glob("*.yaml"), *path.glob("*.yml")])
        named = [p for p in found if p.stem == "data"] or found
        if len(named) != 1:
            raise SigakError(
                f"expected a data.yaml in {path}, received {few(p.name for p in found) or 'none'}"
            )
        return named[0]
    if not path.is_file():
        raise SigakError(f"there is no file {path}; expected a data.yaml")
    return path


def _load(path: Path) -> dict[str, Any]:
    """The yaml's mapping. Every value is text, list or mapping: BaseLoader builds nothing else, and
    a class called `no` or `1` keeps its name.
    """
    try:
        spec = yaml.load(path.read_text("utf-8-sig"), Loader=yaml.BaseLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SigakError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(spec, dict):
        raise SigakError(f"{path}: expected keys such as train, val and names, received {spec!r}")
    return {key: value for key, value in spec.items() if value not in ("", "null", "~", [])}


def _classes(spec: Mapping[str, Any], path: Path, findings: Findings) -> list[str]:
    """Class names in the order of their numbers; numbers without a name are called by it."""
    names, count = spec.get("names", []), spec.get("nc")
    if isinstance(names, dict):
        numbers = {_whole(key, path, "a class number"): str(name) for key, name in names.items()}
    elif isinstance(names, list):
        numbers = dict(enumerate(map(str, names)))
    else:
        raise SigakError(f"{path}: names must be a list or a mapping, received {names!r}")
    stated = len(numbers) if count is None else _whole(count, path, "nc")
    total = max([stated if not numbers else 0, len(numbers), *(n + 1 for n in numbers)])
    if total == 0:
        raise SigakError(f"{path}: expected class names under names, or their number as nc")
    if stated > total:
        findings.add(path, f"nc is {stated}, names has {total}", "the rest is called by number")
        total = stated
    elif stated < total and count is not None:
        findings.add(path, f"nc is {stated}, names has {total}", "names are taken")
    elif len(numbers) not in (0, total):
        findings.add(path, f"names has {len(numbers)} of {total}", "the rest is called by number")
    return distinct([numbers.get(i, str(i)) for i in range(total)], path, findings)


def _whole(value: Any, path: Path, what: str) -> int:
    if isinstance(value, str) and value.strip().isdecimal() and int(value) < 1_000_000:
        return int(value)
    raise SigakError(
        f"{path}: expected {what} as a whole number below 1,000,000, received {value!r}"
    )


def _point_shape(spec: Mapping[str, Any], path: Path) -> tuple[int, int] | None:
    if "kpt_shape" not in spec:
        return None
    shape = spec["kpt_shape"]
    if isinstance(shape, list) and len(shape) == 2:
        count, numbers = (_whole(value, path, "kpt_shape") for value in shape)
        if count > 0 and numbers in (2, 3):
            return count, numbers
    raise SigakError(f"{path}: expected kpt_shape as [points, 2 or 3], received {shape!r}")


def _base(spec: Mapping[str, Any], path: Path, findings: Findings) -> Path:
    own = Path(os.path.abspath(path.parent))
    stated = own / os.path.expanduser(str(spec.get("path", ".")).replace("\\", "/"))
    if stated.is_dir():
        return stated
    findings.add(path, f"path: there is no folder {stated}", "the yaml's own folder is taken")
    return own


# ------------------------------------------------------------------ pictures


class _Missing(SigakError):  # noqa: N818
    """An entry of the yaml that names nothing."""


@dataclass
class _Search:
    """Pictures that entries of the yaml name."""

    base: Path
    path: Path
    findings: Findings

    def pictures(self, entry: Any) -> dict[str, str]:
        """Absolute path of each picture, in order, and the place that names it."""
        found: dict[str, str] = {}
        for item in entry if isinstance(entry, list) else [entry]:
            if not isinstance(item, str):
                raise SigakError(f"{self.path}: expected a path, received {item!r}")
            for picture, place in self._item(item.replace("\\", "/")):
                if os.path.abspath(picture) in found:
                    self.findings.note(place, f"{picture} is listed twice", "taken once")
                found.setdefault(os.path.abspath(picture), place)
        return found

    def _item(self, item: str) -> Iterator[tuple[str, str]]:
        target = self._locate(item)
        if target is None:
            names = sorted(glob.glob(str(self.base / item), recursive=True))
            if not names:
                raise _Missing(
                    f"{self.path}: {item!r} names no folder and no file (looked in {self.base}); "
                    "mend the path"
                )
            for name in names:
                yield from self._below(Path(name))
        elif target.suffix.lower() == ".txt" and target.is_file():
            yield from self._listed(target)
        else:
            yield from self._below(target)

    def _locate(self, item: str) -> Path | None:
        direct = self.base / os.path.expanduser(item)
        if direct.exists():
            return direct
        bare = item
        while bare.startswith("../"):  # some exports count from a folder that is not there
            bare = bare[3:]
        if bare != item and (self.base / bare).exists():
            self.findings.add(self.path, f"there is no {item}", f"{bare} is taken")
            return self.base / bare
        return None

    def _below(self, target: Path) -> Iterator[tuple[str, str]]:
        if target.is_file():
            if target.suffix.lower() in image.SUFFIXES:
                yield str(target), str(target)
            return
        for folder, folders, names in os.walk(target, followlinks=True):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(names, key=lambda name: unicodedata.normalize("NFC", name)):
                if not name.startswith(".") and name.lower().endswith(image.SUFFIXES):
                    picture = os.path.join(folder, name)
                    yield picture, picture

    def _listed(self, path: Path) -> Iterator[tuple[str, str]]:
        for number, line in enumerate(path.read_text("utf-8-sig", "replace").splitlines(), 1):
            if not line.strip():
                continue
            name = line.strip().replace("\\", "/")
            tried = [path.parent / name, self.base / name]
            found = next((place for place in tried if place.is_file()), None)
            if found is None:
                self.findings.add(f"{path}:{number}", f"there is no file {name}", "skipped")
            else:
                yield str(found), f"{path}:{number}"


# ------------------------------------------------------------------ label files


@dataclass
class _Shelf:
    """Folders of label files: what they hold, and what of it was used."""

    names: dict[str, set[str]] = field(default_factory=dict)
    used: dict[str, set[str]] = field(default_factory=dict)

    def find(self, picture: str) -> str | None:
        """The label file of a picture."""
        folder, name = os.path.split(picture)
        wanted = os.path.splitext(name)[0] + ".txt"
        for place in (_labels_folder(folder), folder):
            if place not in self.names:
                inside = os.listdir(place) if os.path.isdir(place) else []
                self.names[place] = {n for n in inside if n.lower().endswith(".txt")}
            if wanted in self.names[place]:
                self.used.setdefault(place, set()).add(wanted)
                return os.path.join(place, wanted)
        return None

    def report(self, classes: list[str], path: Path, findings: Findings) -> None:
        """Tell of label files without a picture, and of other class names beside them."""
        for place, used in self.used.items():
            rest = self.names[place] - used - {"classes.txt"}
            if rest:
                reason = f"{len(rest)} text files belong to no picture: {few(sorted(rest))}"
                findings.note(place, reason, "ignored")
            listed = Path(place, "classes.txt")
            if listed.is_file() and "classes.txt" not in used:
                names = listed.read_text("utf-8-sig", "replace").split("\n")
                names = [name.strip() for name in names if name.strip()]
                if names != classes:
                    reason = f"has other classes ({few(names)}) than {path.name} ({few(classes)})"
                    findings.add(listed, reason, f"those of {path.name} are taken")


def _labels_folder(folder: str) -> str:
    """The same with its last part called "images" called "labels"."""
    parts = list(Path(folder).parts)
    for i in reversed(range(len(parts))):
        if parts[i].lower() == "images":
            parts[i] = "labels"
            break
    return str(Path(*parts))


class _Bad(Exception):  # noqa: N818
    """A line that cannot be understood; says why."""


def _draft(
    name: str,
    pictures: dict[str, str],
    shelf: _Shelf,
    shape: tuple[int, int] | None,
    findings: Findings,
) -> Draft:
    """What the label files of a split say, in shares of the pictures."""
    files = [shelf.find(picture) for picture in pictures]
    missing = [picture for picture, file in zip(pictures, files) if file is None]
    if pictures and len(missing) == len(pictures):
        where = _labels_folder(os.path.dirname(missing[0]))
        reason = f"no picture of {name} has a label file (looked in {where} and beside them)"
        if name == "train":
            raise SigakError(f"{findings.path}: {reason}; put the label files there")
        findings.note(findings.path, reason, "taken as pictures without objects")
    elif missing:
        reason = f"{len(missing)} pictures of {name} have no label file: {few(missing)}"
        findings.note(findings.path, reason, "taken as pictures without objects")
    labels, boxes, outlines, points, owner, lines = [], [], [], [], [], []
    for number, file in enumerate(files):
        for line, words in _lines(file):
            try:
                label, box, outline, marks = _object(words, shape)
            except _Bad as error:
                findings.add(f"{file}:{line}", str(error), "left out")
                continue
            labels.append(label)
            boxes.append(box)
            outlines.append(outline)
            points.append(marks)
            owner.append(number)
            lines.append(line)
    objects = Objects(
        np.array(boxes, np.float64).reshape(-1, 4),
        np.array(labels, np.int64),
        outlines=outlines if any(outlines) else None,
        points=None if shape is None else np.array(points).reshape(-1, shape[0], 3),
    )
    return Draft(
        name, list(pictures), list(pictures.values()), [None] * len(pictures), objects,
        np.array(owner, np.int64), lambda i: f"{files[owner[i]]}:{lines[i]}",
    )  # fmt: skip


def _lines(file: str | None) -> Iterator[tuple[int, list[str]]]:
    """Line numbers and words of the lines that are not empty."""
    if file is not None:
        with open(file, encoding="utf-8-sig", errors="replace") as text:
            for number, line in enumerate(text, 1):
                if words := line.split():
                    yield number, words


def _object(
    words: list[str], shape: tuple[int, int] | None
) -> tuple[int, tuple[float, ...], Outline, np.ndarray | None]:
    """(label, box as corners, outline, points), all in shares, of a line's words."""
    try:
        label, *numbers = map(float, words)
    except ValueError:
        raise _Bad(f"expected numbers, received {' '.join(words)[:60]!r}") from None
    expected = 4 if shape is None else 4 + shape[0] * shape[1]
    if not label.is_integer() or abs(label) > 1e9:
        raise _Bad(f"expected a class as a whole number, received {words[0][:60]}")
    is_outline = shape is None and len(numbers) >= 6 and len(numbers) % 2 == 0
    if len(numbers) != expected and not is_outline:
        other = f"{expected + 1} columns" if shape else "5 columns, or 7, 9, 11 ... for an outline"
        raise _Bad(f"expected {other}, received {len(words)}")
    if any(abs(value) > _LARGEST for value in (numbers if is_outline else numbers[:4])):
        raise _Bad(f"expected shares from 0 to 1, received {max(numbers, key=abs):g} (pixels?)")
    if is_outline:
        polygon = np.array(numbers).reshape(-1, 2)
        return int(label), (*polygon.min(0).tolist(), *polygon.max(0).tolist()), [polygon], None
    x, y, w, h = numbers[:4]
    points = None if shape is None else _points(numbers[4:], shape)
    return int(label), (x - w / 2, y - h / 2, x + w / 2, y + h / 2), [], points


def _points(numbers: list[float], shape: tuple[int, int]) -> np.ndarray:
    """(P, 3) x, y in shares and visibility; points at (0, 0) are unlabelled where none is given."""
    given = np.array(numbers).reshape(shape)
    if shape[1] == 2:
        given = np.column_stack([given, np.where(given.any(1), 2.0, 0.0)])
    # Written so that NaN, which compares false with everything, is refused.
    near = (np.abs(given[:, :2]) <= _LARGEST).all()
    if not (near and np.isin(given[:, 2], (0, 1, 2)).all()):
        raise _Bad("expected points as shares, and visibilities 0, 1 or 2")
    return given


def _to_pixels(objects: Objects, sizes: np.ndarray) -> None:
    """Shares to pixels, in place; sizes (M, 2): the (H, W) of each object's picture."""
    sides = sizes.reshape(-1, 2)[:, ::-1].astype(np.float64)
    objects.boxes[:] *= np.tile(sides, (1, 2))
    if objects.points is not None:
        objects.points[..., :2] *= sides[:, None]
    for outline, side in zip(objects.outlines or [], sides):
        for polygon in outline:
            polygon *= side


# ------------------------------------------------------------------ writing


def picture_folder(split: str) -> str:
    """Where the pictures of a split belong, below the folder that is written."""
    return f"images/{split}"


def write(
    dataset: Dataset, folder: Path, names: Mapping[str, str], *, outlines: bool = True
) -> list[str]:
    """Write folder/data.yaml and folder/labels/SPLIT/NAME.txt; what was lost, in words.

    Every record must have objects and a size. names: the file name of each picture, by source. An
    outline takes the place of the box where the box is its hull, so that reading gives both again;
    no outline is written where `outlines` is False, or where there are points.
    """
    records = [record for split in dataset.splits.values() for record in split.records]
    found = [annotation(record)[0].points for record in records]
    points = max((p.shape[1] for p in found if p is not None), default=0)
    crowds = lost = 0
    for name, split in dataset.splits.items():
        place = folder / "labels" / name
        place.mkdir(parents=True, exist_ok=True)
        for record in split.records:
            objects, size = annotation(record)
            if objects.crowd is not None:
                crowds += int(objects.crowd.sum())
                objects = objects.subset(~objects.crowd)
            shapes = _shapes(objects, outlines and not points)
            lost += sum(map(bool, objects.outlines or ())) - sum(s is not None for s in shapes)
            lines = _text(objects, size, shapes, points)
            target = place / f"{os.path.splitext(names[record.source])[0]}.txt"
            target.write_text(lines, encoding="utf-8", newline="\n")
    _write_yaml(dataset, folder, points)
    told = [f"YOLO has no crowd flag: {crowds} crowd regions left out"] if crowds else []
    told += [f"{lost} outlines, of which YOLO has only the boxes"] if lost else []
    if any(annotation(record)[0].areas is not None for record in records):
        told.append("YOLO has no areas of objects")
    return told + tell_marks(records, (), "YOLO")


def _write_yaml(dataset: Dataset, folder: Path, points: int) -> None:
    spec: dict[str, Any] = {"path": "."}
    spec |= {name: picture_folder(name) for name in dataset.splits}
    spec |= {"nc": len(dataset.classes), "names": dict(enumerate(dataset.classes))}
    if points:
        spec["kpt_shape"] = [points, 3]
    text = yaml.safe_dump(spec, sort_keys=False, allow_unicode=True)
    (folder / "data.yaml").write_text(text, encoding="utf-8", newline="\n")


def _shapes(objects: Objects, wanted: bool) -> list[np.ndarray | None]:
    """For each object the polygon (K, 2) in pixels whose hull is its box, or None."""
    shapes: list[np.ndarray | None] = [None] * len(objects)
    for i, outline in enumerate(objects.outlines or () if wanted else ()):
        if isinstance(outline, list) and len(outline) == 1 and len(outline[0]) >= 3:
            hull = np.concatenate([outline[0].min(0), outline[0].max(0)])
            if np.abs(hull - objects.boxes[i]).max() <= _HULL:
                shapes[i] = outline[0]
    return shapes


def _text(
    objects: Objects, size: tuple[int, int], shapes: list[np.ndarray | None], points: int
) -> str:
    """The label file of one picture."""
    side = np.array(size[::-1], np.float64)
    low, high = objects.boxes[:, :2] / side, objects.boxes[:, 2:] / side
    rows = np.concatenate([(low + high) / 2, high - low], 1)
    if points:
        marks = np.zeros((len(objects), points, 3))
        if objects.points is not None:
            marks[:, : objects.points.shape[1]] = objects.points
            marks[..., :2] /= side
        rows = np.concatenate([rows, marks.reshape(len(rows), -1)], 1)
    lines = []
    for label, row, shape in zip(objects.labels.tolist(), rows, shapes):
        values = row if shape is None else (shape / side).ravel()
        lines.append(" ".join([str(label), *map(_share, values.tolist())]) + "\n")
    return "".join(lines)


def _share(value: float) -> str:
    """A number with `DIGITS` decimals, without zeros at its end."""
    return f"{round(value, DIGITS) + 0.0:.{DIGITS}f}".rstrip("0").rstrip(".")
