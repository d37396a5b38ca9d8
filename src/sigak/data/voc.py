"""Pascal VOC: an XML file a picture, and lists of pictures for the splits.

VOC counts pixels from 1 and names the first and the last pixel of a box; here that is
x1 = xmin - 1, y1 = ymin - 1, x2 = xmax, y2 = ymax. http://host.robots.ox.ac.uk/pascal/VOC/
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np

from sigak.data.labels import (
    DIGITS,
    SPLIT_ORDER,
    SPLITS,
    Draft,
    Findings,
    annotation,
    column,
    dataset,
    few,
    finish,
    one_class,
    split_folders,
)
from sigak.data.objects import Objects
from sigak.data.records import Dataset, Record
from sigak.io import image
from sigak.structures import SigakError

__all__ = ["picture_folder", "read", "write"]

_EDGES = ("xmin", "ymin", "xmax", "ymax")
_TOLD = ("object", "size", "filename")
_MARKS = {"pose": "Unspecified", "truncated": 0, "difficult": 0}
_TAG = r"[A-Za-z_][A-Za-z0-9_]*"  # marks of other formats that can be elements
_OWN = ("name", "bndbox", "part", "polygon")


def read(path: str | Path, strict: bool = False, *, single_class: bool = False) -> Dataset:
    """The set of a folder with Annotations/*.xml and JPEGImages, or with XML beside the pictures.

    Splits are the lists ImageSets/Main/{train,val,test}.txt (trainval where there is no train),
    else folders of these names, else all is "train". Classes are the names of the objects in
    alphanumeric order. What else an object says (pose, truncated, difficult ...) is kept in
    `marks`. `single_class` makes all objects one class, "object".

    What is wrong is mended and listed in `problems`, or refused when `strict`. Raises SigakError
    for a folder without XML files.
    """
    path = Path(path)
    findings = Findings(path)
    shelf = _Shelf(Path(os.path.abspath(path)))
    sheets = {
        name: [_sheet(file, picture, shelf, findings) for file, picture in pairs]
        for name, pairs in _splits(path, shelf, findings).items()
    }
    names = {row.name for part in sheets.values() for sheet in part for row in sheet.rows}
    classes = sorted(names)
    if not classes:
        raise SigakError(f"expected objects in the XML files of {path}, received none")
    labels = {name: label for label, name in enumerate(classes)}
    splits = [
        finish(_draft(name, part, labels), len(classes), findings) for name, part in sheets.items()
    ]
    classes = one_class(splits) if single_class else classes
    return dataset(path, classes, splits, findings, strict)


# ------------------------------------------------------------------ which files


_Pair = tuple[Path | None, str | None]  # an XML file and a picture; one of them may be missing


def _splits(path: Path, shelf: _Shelf, findings: Findings) -> dict[str, list[_Pair]]:
    """What belongs to each split."""
    root = shelf.root
    lists = {SPLITS.get(p.stem, p.stem): p for p in sorted(root.glob("ImageSets/Main/*.txt"))}
    if "train" not in lists and "trainval" in lists:
        lists["train"] = lists["trainval"]
    lists = {name: lists[name] for name in SPLIT_ORDER if name in lists}
    if lists:
        return {name: _listed(file, shelf, findings) for name, file in lists.items()}
    folders = split_folders(root) if root.is_dir() else {}
    folders = {name: folders[name] for name in SPLIT_ORDER if name in folders}
    if not any(any(folder.glob("**/*.xml")) for folder in folders.values()):
        folders = {"train": root}
    result: dict[str, list[_Pair]] = {}
    for name, folder in folders.items():
        files = sorted(p for p in folder.glob("**/*.xml") if not p.name.startswith("."))
        result[name] = [(file, shelf.picture(file)) for file in files]
    if not any(result.values()):
        raise SigakError(f"expected Annotations/*.xml in {path}, received no XML file")
    return result


def _listed(file: Path, shelf: _Shelf, findings: Findings) -> list[_Pair]:
    """What a list of ImageSets names, one id a line."""
    pairs: list[_Pair] = []
    seen: set[str] = set()
    bare = []
    for number, line in enumerate(file.read_text("utf-8-sig", "replace").splitlines(), 1):
        name = line.split()[0] if line.split() else ""
        if name in seen or not name:
            if name:
                findings.add(f"{file}:{number}", f"{name} is listed twice", "taken once")
            continue
        seen.add(name)
        sheet = shelf.root / "Annotations" / f"{name}.xml"
        if sheet.is_file():
            pairs.append((sheet, shelf.picture(sheet)))
        elif picture := shelf.named(name):
            pairs.append((None, picture))
            bare.append(name)
        else:
            reason = f"{name} has neither an XML file nor a picture"
            findings.add(f"{file}:{number}", reason, "skipped")
    if bare:
        reason = f"{len(bare)} pictures have no XML file: {few(bare)}"
        findings.note(file, reason, "taken as pictures without objects")
    return pairs


class _Shelf:
    """The folders that hold pictures, and what they hold by stem."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folders: dict[Path, dict[str, str]] = {}

    def named(self, stem: str) -> str | None:
        """The picture with this stem in the set's own folders."""
        return self._find(stem, [self.root / "JPEGImages", self.root / "images", self.root])

    def picture(self, sheet: Path, stem: str = "") -> str | None:
        """The picture that has the stem, or else the XML file's own."""
        near = [sheet.parent, sheet.parent.parent / "JPEGImages", sheet.parent.parent / "images"]
        return self._find(stem or sheet.stem, near) or self.named(stem or sheet.stem)

    def _find(self, stem: str, places: Iterable[Path]) -> str | None:
        for place in places:
            if place not in self.folders:
                inside = sorted(os.listdir(place), reverse=True) if place.is_dir() else []
                pictures = [n for n in inside if n.lower().endswith(image.SUFFIXES)]
                self.folders[place] = {os.path.splitext(n)[0]: n for n in pictures}
            if stem in self.folders[place]:
                return str(place / self.folders[place][stem])
        return None


# ------------------------------------------------------------------ one XML file


class _Row(NamedTuple):
    """An object as its file has it: corners in continuous pixels, and which <object> it is."""

    name: str
    box: list[float]
    marks: dict[str, int | str]
    number: int


@dataclass
class _Sheet:
    """One picture and what its XML file says."""

    picture: str
    place: str
    size: tuple[int, int] | None = None
    rows: list[_Row] = field(default_factory=list)


def _sheet(file: Path | None, picture: str | None, shelf: _Shelf, findings: Findings) -> _Sheet:
    if file is None:
        return _Sheet(picture or "", str(picture))
    body = _parse(file, findings)
    if picture is None:
        name = (body.findtext("filename") or "").strip().replace("\\", "/").rpartition("/")[2]
        picture = shelf.picture(file, os.path.splitext(name)[0])
        picture = picture or str(shelf.root / "JPEGImages" / (name or f"{file.stem}.jpg"))
    sheet = _Sheet(picture, str(file), _size(body))
    for number, entry in enumerate(body.iter("object")):
        try:
            sheet.rows.append(_row(entry, number))
        except ValueError as error:
            findings.add(_place(file, number), str(error), "left out")
    return sheet


def _parse(file: Path, findings: Findings) -> ElementTree.Element:
    """The file's root; of a damaged file whatever stands before the damage."""
    data = file.read_bytes()
    if b"<!ENTITY" in data:
        findings.add(file, "defines entities, which are not followed", "its objects left out")
        return ElementTree.Element("annotation")
    try:
        return ElementTree.fromstring(data)
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        line = getattr(error, "position", (1, 0))[0]
        root = ElementTree.Element("annotation")
        with contextlib.suppress(ElementTree.ParseError, LookupError, ValueError):
            parser: Any = ElementTree.XMLPullParser(["end"])
            parser.feed(data)
            for _, entry in parser.read_events():
                if entry.tag in _TOLD:
                    root.append(entry)
        count = sum(1 for _ in root.iter("object"))
        findings.add(f"{file}:{line}", f"is no whole XML file ({error})", f"{count} objects kept")
        return root


def _row(entry: ElementTree.Element, number: int) -> _Row:
    name = " ".join((entry.findtext("name") or "").split())
    if not name:
        raise ValueError("an object without a name")
    corners = entry.find("bndbox")
    if corners is None:
        raise ValueError(f"an object {name!r} without a bndbox")
    texts = [corners.findtext(edge) for edge in _EDGES]
    try:
        x1, y1, x2, y2 = (float(text or "nothing") for text in texts)
    except ValueError:
        shown = ", ".join(f"{edge} {text!r}" for edge, text in zip(_EDGES, texts))
        raise ValueError(f"expected numbers in bndbox, received {shown[:100]}") from None
    marks = {
        part.tag: _value(part.text) for part in entry if part.tag not in _OWN and not len(part)
    }
    return _Row(name, [x1 - 1, y1 - 1, x2, y2], marks, number)


def _value(text: str | None) -> int | str:
    text = (text or "").strip()
    return int(text) if text.isdecimal() and str(int(text)) == text else text


def _size(body: ElementTree.Element) -> tuple[int, int] | None:
    """(H, W) as stated, or None where it is missing or zero."""
    texts = [body.findtext(f"size/{side}") or "" for side in ("height", "width")]
    try:
        height, width = (int(float(text)) for text in texts)
    except (ValueError, OverflowError):
        return None
    return (height, width) if height > 0 and width > 0 else None


def _place(file: str | Path, number: int) -> str:
    """ "file:line" of the <object> with this number."""
    text = Path(file).read_bytes()
    starts = [found.start() for found in re.finditer(rb"<object[\s>]", text)]
    line = text.count(b"\n", 0, starts[number]) + 1 if number < len(starts) else 1
    return f"{file}:{line}"


def _draft(name: str, sheets: list[_Sheet], labels: Mapping[str, int]) -> Draft:
    owner = np.array([i for i, sheet in enumerate(sheets) for _ in sheet.rows], np.int64)
    rows = [row for sheet in sheets for row in sheet.rows]
    tags = dict.fromkeys(tag for row in rows for tag in row.marks)
    objects = Objects(
        np.array([row.box for row in rows], np.float64).reshape(-1, 4),
        np.array([labels[row.name] for row in rows], np.int64),
        marks={tag: column([row.marks.get(tag) for row in rows]) for tag in tags},
    )
    return Draft(
        name,
        [sheet.picture for sheet in sheets],
        [sheet.place for sheet in sheets],
        [sheet.size for sheet in sheets],
        objects,
        owner,
        lambda i: _place(sheets[owner[i]].place, rows[i].number),
    )


# ------------------------------------------------------------------ writing


def picture_folder(split: str) -> str:
    """Where the pictures of a split belong, below the folder that is written."""
    return "JPEGImages"


def write(dataset: Dataset, folder: Path, names: Mapping[str, str]) -> list[str]:
    """Write folder/Annotations/NAME.xml and ImageSets/Main/SPLIT.txt; what was lost, in words.

    Every record must have objects and a size. names: the file name of each picture, by source.
    Edges between pixels are written as decimal numbers.
    """
    (folder / "Annotations").mkdir(parents=True, exist_ok=True)
    (folder / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
    for name, split in dataset.splits.items():
        stems = []
        for record in split.records:
            file = names[record.source]
            stem = os.path.splitext(file)[0]
            stems.append(f"{stem}\n")
            body = _body(record, file, dataset.classes)
            ElementTree.indent(body, "\t")
            text = ElementTree.tostring(body, encoding="unicode") + "\n"
            target = folder / "Annotations" / f"{stem}.xml"
            target.write_text(text, encoding="utf-8", newline="\n")
        listed = folder / "ImageSets" / "Main" / f"{name}.txt"
        listed.write_text("".join(stems), encoding="utf-8", newline="\n")
    return _lost(dataset)


def _lost(dataset: Dataset) -> list[str]:
    records = [record for split in dataset.splits.values() for record in split.records]
    parts = [annotation(record)[0] for record in records]
    lost = []
    if crowds := sum(int(p.crowd.sum()) for p in parts if p.crowd is not None):
        lost.append(f"VOC has no crowd flag: {crowds} crowd regions left out")
    if outlines := sum(map(bool, (outline for p in parts for outline in p.outlines or ()))):
        lost.append(f"VOC has no outlines of objects: {outlines} left out")
    if any(p.areas is not None for p in parts):
        lost.append("VOC has no areas of objects")
    if any(p.points is not None for p in parts):
        lost.append("VOC has no key points")
    present = {
        label
        for p in parts
        for label in p.labels[slice(None) if p.crowd is None else ~p.crowd].tolist()
    }
    marks = sorted({tag for p in parts for tag in p.marks or ()})
    if strange := [tag for tag in marks if not re.fullmatch(_TAG, tag) or tag in _OWN]:
        lost.append(f"VOC has no place for {few(strange, 20)}")
    absent = [name for label, name in enumerate(dataset.classes) if label not in present]
    if absent:
        lost.append(f"VOC names only classes that occur: {few(absent)} left out")
    return lost


def _body(record: Record, file: str, classes: list[str]) -> ElementTree.Element:
    objects, (height, width) = annotation(record)
    body = ElementTree.Element("annotation")
    _add(body, "folder", "JPEGImages")
    _add(body, "filename", file)
    size = ElementTree.SubElement(body, "size")
    for side, value in (("width", width), ("height", height), ("depth", 3)):
        _add(size, side, value)
    _add(body, "segmented", 0)
    for i, label in enumerate(objects.labels.tolist()):
        if objects.crowd is not None and objects.crowd[i]:
            continue
        entry = ElementTree.SubElement(body, "object")
        _add(entry, "name", classes[label])
        known = {
            tag: values[i].item()
            for tag, values in (objects.marks or {}).items()
            if re.fullmatch(_TAG, tag) and tag not in _OWN
        }
        for tag, mark in (_MARKS | known).items():
            _add(entry, tag, mark)
        corners = ElementTree.SubElement(entry, "bndbox")
        for edge, number, shift in zip(_EDGES, objects.boxes[i].tolist(), (1, 1, 0, 0)):
            _add(
                corners, edge, f"{round(number + shift, DIGITS):.{DIGITS}f}".rstrip("0").rstrip(".")
            )
    return body


def _add(parent: ElementTree.Element, tag: str, value: object) -> None:
    ElementTree.SubElement(parent, tag).text = str(value)
