"""Class maps: the class of every pixel of a picture, read when they are needed.

A map comes from a file of its own (gray values, places in a palette, or colours stand for classes)
or is painted from the outlines of objects. Either way it becomes (H, W) uint8 class indices of the
upright picture, with IGNORE (255) where the class is not known.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sigak.data.objects import Objects
from sigak.io import index_map
from sigak.ops.outlines import masks_of
from sigak.structures import IGNORE, UNKNOWN, SigakError

__all__ = [
    "BACKGROUND",
    "MOST",
    "ClassMap",
    "class_file",
    "class_rows",
    "lookup",
    "meanings",
    "paint",
    "values_of",
]

BACKGROUND = "background"  # the class of what no object covers
MOST = IGNORE  # classes that fit into a byte beside IGNORE


def lookup(known: Mapping[int, int]) -> np.ndarray:
    """(256,) int16: the class of each value of a file, from {value: class}; 255 is IGNORE where
    nothing else is said, and UNKNOWN marks values that must not occur.
    """
    table = np.full(256, UNKNOWN, np.int16)
    table[IGNORE] = IGNORE
    for value, label in known.items():
        table[value] = label
    return table


@dataclass(frozen=True)
class ClassMap:
    """Where the classes of a picture's pixels are found.

    source: a file, or the objects whose outlines are painted: value 0 is what none covers, label +
    1 an object's; table (256,) int16: the class of each value, see `lookup`; size: the (H, W) of
    the upright picture; colors: the value of each colour (red, green, blue), for files in colour.
    """

    source: str | Objects
    table: np.ndarray
    size: tuple[int, int] | None = None
    colors: Mapping[tuple[int, int, int], int] | None = None

    def read(self) -> np.ndarray:
        """(H, W) uint8 class indices. Raises SigakError for a map of another size than its
        picture's, and for a value that is no class.
        """
        values = self._values()
        if self.size is not None and values.shape != tuple(self.size):
            raise SigakError(
                f"{self.source} is {values.shape[0]} x {values.shape[1]} (height x width), its "
                f"picture {self.size[0]} x {self.size[1]}; a class map must have the picture's size"
            )
        classes = self.table[values]
        if classes.min(initial=0) < 0:
            strange = np.unique(values[classes < 0])
            known = np.flatnonzero((self.table >= 0) & (self.table != IGNORE)).tolist()
            raise SigakError(
                f"{self.source} holds the value {strange[0]}, which is no class; expected "
                f"{_shown(known)}, or {IGNORE} for pixels that do not count"
            )
        return np.asarray(classes.astype(np.uint8))

    def _values(self) -> np.ndarray:
        """(H, W) uint8 as the file has them, or as they are painted."""
        if not isinstance(self.source, Objects):
            return index_map.read(self.source, self.colors)
        if self.size is None:
            raise SigakError("the size of a picture must be known where its map is painted")
        return paint(self.source, self.size)

    def relabelled(self, table: np.ndarray) -> ClassMap:
        """The same map with its classes looked up in `table` (K,)."""
        known = (self.table >= 0) & (self.table != IGNORE)
        changed = self.table.copy()
        changed[known] = table[self.table[known]]
        return replace(self, table=changed)

    def fingerprint(self) -> bytes:
        """Bytes that change when the map does: of a file its size, of objects their numbers."""
        if isinstance(self.source, Objects):
            return self.source.boxes.tobytes() + self.source.labels.tobytes()
        return f"{os.path.getsize(self.source)}".encode()


def _shown(values: list[int]) -> str:
    """ "0 to 20" where they follow on each other, else the first few."""
    if values == list(range(len(values))):
        return f"0 to {len(values) - 1}"
    return ", ".join(map(str, values[:8])) + (", ..." if len(values) > 8 else "")


def paint(objects: Objects, size: tuple[int, int]) -> np.ndarray:
    """(H, W) uint8: label + 1 where an object is, 0 elsewhere.

    Small objects lie on top of large ones, and groups (crowds) below all others. Of an object
    without an outline only the box is known: its pixels are IGNORE where nothing else is.
    """
    canvas = np.zeros(size, np.uint8)
    outlines = objects.outlines or [[] for _ in range(len(objects))]
    crowd = np.zeros(len(objects), bool) if objects.crowd is None else objects.crowd
    for outline, box in zip(outlines, objects.boxes, strict=True):
        if not outline:
            x1, y1, x2, y2 = np.clip(np.rint(box), 0, max(size)).astype(int).tolist()
            canvas[y1:y2, x1:x2] = IGNORE
    masks = masks_of(outlines, size)
    order = np.lexsort((-masks.areas().numpy(), ~crowd.astype(bool)))
    windows = masks.windows()
    for place in order.tolist():
        canvas[windows[place]][masks.patches[place]] = objects.labels[place] + 1
    return canvas


# ------------------------------------------------------------------ files of names

_CLASS_FILES = ("classes.json", "classes.txt")
_Row = tuple[str, int | None, tuple[int, int, int] | None]


def class_file(root: Path) -> Path | None:
    """The file in the folder that names the classes, where there is one."""
    return next((root / name for name in _CLASS_FILES if (root / name).is_file()), None)


def class_rows(file: Path) -> list[_Row]:
    """(name, value, colour) of the classes of classes.txt (a name a line) or classes.json (a list
    of names or of {"name", "value", "color"}); None where a value or a colour is not given. Raises
    SigakError for anything else, for names that come twice and for more classes than a byte holds.
    """
    rows = _rows(file)
    if not 1 <= len(rows) <= MOST:
        raise SigakError(f"{file}: expected 1 to {MOST} classes, received {len(rows)}")
    names = [name for name, _, _ in rows]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        more = f" and {len(doubled) - 3} more" if len(doubled) > 3 else ""
        raise SigakError(f"{file} names {', '.join(doubled[:3])}{more} more than once")
    return rows


def meanings(rows: Sequence[_Row]) -> tuple[dict[int, int], list[tuple[int, int, int]] | None]:
    """{value: class} of what `class_rows` gives, and the colours where all classes have one."""
    known = {place if value is None else value: place for place, (_, value, _) in enumerate(rows)}
    colors = [color for _, _, color in rows if color is not None]
    return known, colors if len(colors) == len(rows) else None


def values_of(path: str, read: Callable[[str], np.ndarray]) -> set[int] | str:
    """The values of the map that `read` gives for a file, or in words why it is none."""
    try:
        return set(np.unique(read(path)).tolist())
    except SigakError as error:
        return str(error)


def _rows(file: Path) -> list[_Row]:
    text = file.read_text(encoding="utf-8-sig")
    if file.suffix == ".txt":
        return [(line.strip(), None, None) for line in text.splitlines() if line.strip()]
    try:
        body = json.loads(text)
        body = body["classes"] if isinstance(body, dict) else body
        return [_row(entry) for entry in body]
    except (ValueError, TypeError, KeyError) as error:
        raise SigakError(
            f'{file}: expected a list of names or of {{"name": "road", "color": [128, 64, 128]}}, '
            f"received something else ({error})"
        ) from None


def _row(entry: Any) -> _Row:
    if isinstance(entry, str):
        return entry, None, None
    color = entry.get("color")
    if color is not None:
        red, green, blue = (int(part) for part in color)
        if not 0 <= min(red, green, blue) <= max(red, green, blue) <= 255:
            raise ValueError(f"colour {color}")
        color = (red, green, blue)
    value = entry.get("value")
    if value is not None and not 0 <= int(value) <= 255:
        raise ValueError(f"value {value}")
    return str(entry["name"]), None if value is None else int(value), color
