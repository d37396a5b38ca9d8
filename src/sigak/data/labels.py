"""What the annotation formats share: objects are checked and mended, and every mending is told.

A reader puts all objects of a split into one table, as the files state them, and `finish` makes
records of it. A bad object costs that object, never the picture; a bad picture costs that picture.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sigak.data.headers import Header, measure
from sigak.data.objects import Objects, Outline
from sigak.data.records import Dataset, Problem, Record, Split
from sigak.ops.outlines import code_of
from sigak.structures import SigakError

__all__ = [
    "DIGITS", "SPLITS", "SPLIT_ORDER", "Draft", "Findings", "annotation", "column", "dataset",
    "distinct", "few", "finish", "one_class", "split_folders", "tell_marks",
]  # fmt: skip

DIGITS = 10
"""Decimals that are written: a pixel to far below a millionth, without the noise of arithmetic."""

SPLITS = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
"""What splits are called in files and folders, in lower case, and what they are called here."""

SPLIT_ORDER = ("train", "val", "test")


def split_folders(root: Path) -> dict[str, Path]:
    """The folders in `root` that are called like a split, by its name."""
    named = [p for p in sorted(root.iterdir()) if p.is_dir() and p.name.lower() in SPLITS]
    return {SPLITS[p.name.lower()]: p for p in named}


# Boxes may reach this far out of the picture, in pixels: files round, and count from 0 or from 1.
_SLACK = 1 + 1e-6


class Findings:
    """What is found wrong while a set is read."""

    def __init__(self, path: str | Path) -> None:
        self.path = path
        self.problems: list[Problem] = []
        self._wrong: list[Problem] = []

    def add(self, source: str | Path, reason: str, action: str) -> None:
        """Something wrong that was mended, or that cost an object or a picture."""
        self.note(source, reason, action)
        self._wrong.append(self.problems[-1])

    def note(self, source: str | Path, reason: str, action: str) -> None:
        """Something that may be as it was meant, which `strict` does not refuse."""
        self.problems.append(Problem(str(source), reason, action))

    def refuse(self) -> None:
        """Raise SigakError where something is wrong: the first, and how many there are."""
        if self._wrong:
            first = self._wrong[0]
            raise SigakError(
                f"{self.path} is refused for its labels, {len(self._wrong)} mistakes in all, the "
                f"first in {first.source}: {first.reason}; correct them, or leave out --strict and "
                f"have them mended"
            )


@dataclass
class Draft:
    """One split as the files state it.

    pictures: absolute paths; places: where each is annotated, "file" or "file:line"; stated: the
    (H, W) that the annotation gives, or None; objects: those of all pictures in one table, in
    pixels of the stated size; owner (M,) int64: the picture of each object; where: the place of the
    object with a number, "file:line".
    """

    name: str
    pictures: list[str]
    places: list[str]
    stated: list[tuple[int, int] | None]
    objects: Objects
    owner: np.ndarray
    where: Callable[[int], str]


def few(names: Iterable[str], shown: int = 3) -> str:
    """The first names, and how many more there are."""
    names = list(names)
    rest = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + rest


def distinct(names: Sequence[str], source: str | Path, findings: Findings) -> list[str]:
    """Class names of which none comes twice: a number is added to those that do."""
    taken: set[str] = set()
    result = []
    for label, name in enumerate(names):
        unique, number = name, 1
        while unique in taken or (number > 1 and unique in names):
            number += 1
            unique = f"{name} {number}"
        if unique != name:
            findings.add(source, f"class {label} is called {name!r} again", f"called {unique!r}")
        taken.add(unique)
        result.append(unique)
    return result


def column(values: Sequence[Any]) -> np.ndarray:
    """Facts of M objects as an array: int64 or float64 where all are numbers, else strings; None,
    a fact that an object lacks, becomes 0 or "".
    """
    present = [value for value in values if value is not None]
    if all(isinstance(value, int) and abs(value) < 2**63 for value in present):
        return np.array([0 if value is None else value for value in values], np.int64)
    if all(isinstance(value, (int, float)) and abs(value) < 1e300 for value in present):
        return np.array([0 if value is None else value for value in values], np.float64)
    return np.array(["" if value is None else str(value) for value in values], dtype=str)


def one_class(splits: Iterable[Split]) -> list[str]:
    """Make all objects of `splits` one class, which become those of other records; its name."""
    for split in splits:
        found = [annotation(record)[0] for record in split.records]
        merged = [replace(one, labels=np.zeros_like(one.labels)) for one in found]
        split.records = [replace(r, objects=o) for r, o in zip(split.records, merged)]
    return ["object"]


def annotation(record: Record) -> tuple[Objects, tuple[int, int]]:
    """The objects and the (H, W) of a record, which both must be known where it is written."""
    if record.objects is None or record.size is None:
        raise SigakError(
            f"{record.source}: expected a picture with objects and a size, received one without"
        )
    return record.objects, record.size


def tell_marks(records: Iterable[Record], kept: Iterable[str], form: str) -> list[str]:
    """What a format loses of the objects' other facts, in words."""
    marks = {name for record in records for name in annotation(record)[0].marks or ()}
    rest = sorted(marks - set(kept))
    return [f"{form} has no place for {few(rest, 20)}"] if rest else []


# ------------------------------------------------------------------ from drafts to a data set


def dataset(
    path: Path, classes: list[str], splits: Sequence[Split], findings: Findings, strict: bool
) -> Dataset:
    """The set of these splits, named after the folder that holds all of it."""
    if strict:
        findings.refuse()
    sources = [record.source for split in splits for record in split.records]
    if not sources:
        raise SigakError(
            f"expected pictures with annotations in {path}, received none that can be read"
            + (f": {findings.problems[0].reason}" if findings.problems else "")
        )
    folder = os.path.abspath(path if path.is_dir() else path.parent)
    try:
        root = Path(os.path.commonpath([folder, *{os.path.dirname(s) for s in sources}]))
    except ValueError:  # two drives of Windows
        root = None
    kept = {split.name: split for split in splits if len(split)}
    name = Path(folder).name if path.is_dir() or path.stem == "data" else path.stem
    return Dataset(name, classes, kept, problems=findings.problems, root=root)


def finish(
    draft: Draft, classes: int, findings: Findings, headers: list[Header] | None = None
) -> Split:
    """The records of a draft: damaged pictures left out, objects mended, in the upright frame."""
    headers = measure(draft.pictures) if headers is None else headers
    starts = np.searchsorted(draft.owner, np.arange(len(headers) + 1))
    spans = [slice(a, b) for a, b in zip(starts[:-1].tolist(), starts[1:].tolist())]
    whole = np.ones(len(draft.owner), bool)
    for number, header in enumerate(headers):
        if header.damage is not None:
            reason = f"{draft.pictures[number]}: {header.damage}"
            findings.add(draft.places[number], reason, "picture skipped")
            whole[spans[number]] = False
        elif draft.stated[number] not in (None, header.size):
            _settle_frame(draft, number, header, spans[number], findings)
    sizes = np.array([header.size for header in headers], np.float64).reshape(-1, 2)
    objects, kept = _mend(draft, whole, sizes, classes, findings)
    _check_outlines(
        objects, sizes[draft.owner[kept]], lambda i: draft.where(int(kept[i])), findings
    )
    edges = np.searchsorted(draft.owner[kept], np.arange(len(headers) + 1)).tolist()
    records = [
        Record(path, objects=_part(objects, slice(a, b)), size=header.size)
        for path, header, a, b in zip(draft.pictures, headers, edges[:-1], edges[1:])
        if header.damage is None
    ]
    return Split(draft.name, records)


def _part(table: Objects, rows: slice) -> Objects:
    """`subset` of neighbours, as views: a set has hundred thousands of pictures."""
    return Objects(
        table.boxes[rows],
        table.labels[rows],
        None if table.crowd is None else table.crowd[rows],
        None if table.areas is None else table.areas[rows],
        None if table.outlines is None else table.outlines[rows],
        None if table.points is None else table.points[rows],
        None if table.marks is None else {k: v[rows] for k, v in table.marks.items()},
    )


# ------------------------------------------------------------------ frames


def _settle_frame(
    draft: Draft, number: int, header: Header, span: slice, findings: Findings
) -> None:
    """Move a picture's objects from the stated frame to the upright one, where they differ."""
    stated = draft.stated[number] or (0, 0)
    (height, width), (h, w) = header.size, stated
    matrix = None
    action = "the picture's own size is taken"
    if header.orientation >= 5 and stated == header.size[::-1]:
        matrix = _turning(header)
        action = "boxes turned with the picture"
    elif min(stated) > 0 and _one_shape(header.size, stated) and _fits(draft, span, stated):
        matrix = np.diag([width / w, height / h, 1.0])
        action = "boxes scaled to the picture"
    if matrix is not None:
        action += _move(draft.objects, span, matrix)
    reason = f"size {h} x {w} (height x width) is stated, the picture has {height} x {width}"
    findings.add(draft.places[number], reason, action)


def _turning(header: Header) -> np.ndarray:
    """(3, 3): from the pixels as they are stored to the upright picture (EXIF, orientation 5-8)."""
    height, width = header.size
    matrix = np.array([[0.0, 1, 0], [1, 0, 0], [0, 0, 1]])
    if header.orientation in (7, 8):
        matrix = np.array([[1.0, 0, 0], [0, -1, height], [0, 0, 1]]) @ matrix
    if header.orientation in (6, 7):
        matrix = np.array([[-1.0, 0, width], [0, 1, 0], [0, 0, 1]]) @ matrix
    return matrix


def _one_shape(size: tuple[int, int], stated: tuple[int, int]) -> bool:
    """Whether one is the other made smaller, up to rounding to whole pixels."""
    ratio = size[1] / stated[1]
    return abs(stated[0] * ratio - size[0]) <= max(1.0, ratio)


def _fits(draft: Draft, span: slice, size: tuple[int, int]) -> bool:
    boxes = draft.objects.boxes[span]
    inside = boxes[np.isfinite(boxes).all(1)] <= np.tile([size[1], size[0]], 2) + _SLACK
    return bool(inside.all())


def _move(objects: Objects, span: slice, matrix: np.ndarray) -> str:
    """Move the objects of `span` in place; what could not be moved, in words, or nothing."""
    linear, shift = matrix[:2, :2], matrix[:2, 2]
    corners = objects.boxes[span].reshape(-1, 2, 2) @ linear.T + shift
    objects.boxes[span] = np.concatenate([corners.min(1), corners.max(1)], 1)
    if objects.areas is not None:
        objects.areas[span] *= abs(np.linalg.det(linear))
    if objects.points is not None:
        points = objects.points[span]
        moved = points[..., :2] @ linear.T + shift
        points[..., :2] = np.where(points[..., 2:] > 0, moved, points[..., :2])
    lost = 0
    for i in range(span.start, span.stop) if objects.outlines is not None else ():
        outline = objects.outlines[i]  # type: ignore[index]
        lost += isinstance(outline, dict)
        moved_outline: Outline = []
        if not isinstance(outline, dict):
            moved_outline = [polygon @ linear.T + shift for polygon in outline]
        objects.outlines[i] = moved_outline  # type: ignore[index]
    return f", {lost} run-length outlines left out" if lost else ""


# ------------------------------------------------------------------ mending


def _mend(
    draft: Draft, alive: np.ndarray, sizes: np.ndarray, classes: int, findings: Findings
) -> tuple[Objects, np.ndarray]:
    """The objects that stand, with boxes mended, and their numbers in the draft."""
    labels, boxes, where = draft.objects.labels, draft.objects.boxes.copy(), draft.where

    def leave_out(bad: np.ndarray, reason: Callable[[int], str]) -> None:
        for i in np.flatnonzero(bad & alive).tolist():
            findings.add(where(i), reason(i), "left out")
        alive[bad] = False

    def change(bad: np.ndarray, mended: np.ndarray, reason: str, action: str) -> None:
        for i in np.flatnonzero(bad & alive).tolist():
            findings.add(where(i), f"box {_shown(boxes[i])} {reason}", action)
            boxes[i] = mended[i]

    leave_out(~np.isfinite(boxes).all(1), lambda i: f"box {_shown(boxes[i])} is not finite")
    boxes[~alive] = 0
    leave_out(
        (labels < 0) | (labels >= classes),
        lambda i: f"class {labels[i]} is not one of 0 to {classes - 1}",
    )
    ordered = np.concatenate(
        [np.minimum(boxes[:, :2], boxes[:, 2:]), np.maximum(boxes[:, :2], boxes[:, 2:])], 1
    )
    change((boxes != ordered).any(1), ordered, "is inverted", "corners swapped")
    same = _doubled(replace(draft.objects, boxes=boxes), draft.owner, alive)
    leave_out(same >= 0, lambda i: f"the same as {where(int(same[i]))}")

    edge = np.tile(sizes[draft.owner][:, ::-1], (1, 2))  # (M, 4): W, H, W, H
    clipped = np.clip(boxes, 0, edge)
    leave_out(_empty(boxes), lambda i: f"box {_shown(boxes[i])} has no area")
    leave_out(_empty(clipped), lambda i: f"box {_shown(boxes[i])} lies outside of the picture")
    beyond = (np.abs(boxes - clipped) > _SLACK).any(1)
    change(beyond, clipped, "reaches out of the picture", "clipped")
    kept = np.flatnonzero(alive)
    return replace(draft.objects, boxes=boxes).subset(kept), kept


def _check_outlines(
    objects: Objects, sizes: np.ndarray, where: Callable[[int], str], findings: Findings
) -> None:
    """Leave out, in place, run-length outlines that are damaged or of another size than their
    picture's (M, 2), and tell how many objects lack what others have.
    """
    outlines = objects.outlines or []
    for i, outline in enumerate(outlines):
        if isinstance(outline, dict):
            try:
                height, width = code_of(outline)["size"]
                reason = f"its run-length outline is of {height} x {width} pixels, its picture of "
                reason += f"{sizes[i, 0]:.0f} x {sizes[i, 1]:.0f}"
                if (height, width) == tuple(sizes[i]):
                    continue
            except SigakError as error:
                reason = str(error)
            findings.add(where(i), reason, "outline left out")
            outlines[i] = []
    bare = [i for i, outline in enumerate(outlines) if not outline]
    if bare and len(bare) < len(outlines):
        reason = (
            f"{len(bare)} of {len(outlines)} objects have no outline, the first {where(bare[0])}"
        )
        findings.note(findings.path, reason, "kept with their boxes alone")


def _empty(boxes: np.ndarray) -> np.ndarray:
    return np.asarray((boxes[:, 2:] <= boxes[:, :2]).any(1))


def _shown(box: np.ndarray) -> str:
    return "(" + ", ".join(f"{value:.6g}" for value in box.tolist()) + ")"


def _doubled(objects: Objects, owner: np.ndarray, alive: np.ndarray) -> np.ndarray:
    """(M,) int64: for each object an earlier one that is equal in everything, or -1."""
    keys = [owner, objects.labels, *objects.boxes.T]
    if objects.crowd is not None:
        keys.append(objects.crowd)
    order = np.lexsort(keys[::-1])  # equal ones side by side, the first of them first
    order = order[alive[order]]
    equal = np.ones(max(len(order) - 1, 0), bool)
    for key in keys:
        equal[key[order][1:] != key[order][:-1]] = False
    same = np.full(len(owner), -1, np.int64)
    for place in np.flatnonzero(equal).tolist():
        first, second = order[place], order[place + 1]
        if _same_shape(objects, first, second):
            same[second] = first
    return same


def _same_shape(objects: Objects, first: int, second: int) -> bool:
    if objects.points is not None and not np.array_equal(
        objects.points[first], objects.points[second]
    ):
        return False
    if objects.outlines is None:
        return True
    one, other = objects.outlines[first], objects.outlines[second]
    if isinstance(one, dict) or isinstance(other, dict):
        return one == other if isinstance(one, dict) and isinstance(other, dict) else False
    return len(one) == len(other) and all(map(np.array_equal, one, other))
