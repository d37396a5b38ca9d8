"""What a data set is made of - records, splits, problems - and what its formats share."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sigak.data.classmaps import ClassMap
from sigak.data.objects import Objects
from sigak.io.download import cache_folder
from sigak.structures import UNKNOWN, SigakError

__all__ = [
    "Dataset",
    "Problem",
    "Record",
    "Split",
    "check_labels",
    "decoded_split",
    "digest",
    "find_file",
    "keys",
    "locate",
    "portable",
]


@dataclass(frozen=True, slots=True)
class Record:
    """One picture.

    source: its path, or a name such as "digits#17"; label: a class index or UNKNOWN; objects: what
    lies where on it, None in a set of labelled pictures; size: (H, W) of the upright picture, where
    the set knows it; class_map: where the class of each pixel is found; depth: of a volume, how
    many slices of `size` it has, 0 for a picture.
    """

    source: str
    label: int = UNKNOWN
    objects: Objects | None = field(default=None, compare=False)
    size: tuple[int, int] | None = None
    class_map: ClassMap | None = field(default=None, compare=False)
    depth: int = 0


@dataclass(frozen=True)
class Problem:
    """Something wrong: where, what, and what was done about it ("skipped", "kept", ...)."""

    source: str
    reason: str
    action: str


def _first_label(record: Record) -> int:
    if record.objects is None:
        return record.label
    return int(record.objects.labels[0]) if len(record.objects) else UNKNOWN


@dataclass
class Split:
    """Records of one split.

    pixels (N, H, W, C) uint8, or of volumes (N, D, H, W), holds them all where the set comes
    decoded, else it is None.
    """

    name: str
    records: list[Record]
    pixels: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.records)

    @property
    def labels(self) -> np.ndarray:
        """(N,) int64 class indices; of a picture with objects, the class of the first."""
        return np.array([_first_label(r) for r in self.records], np.int64)

    @property
    def object_labels(self) -> np.ndarray:
        """(M,) int64 class of every picture or, where they carry objects, of every object; none
        where their pixels have classes.
        """
        parts = (
            [r.label] if r.objects is None else r.objects.labels.tolist()
            for r in self.records
            if r.class_map is None
        )
        return np.array([label for part in parts for label in part], np.int64)

    def subset(self, indices: np.ndarray, name: str) -> Split:
        """The records (and pixels) at `indices`, in that order, as a split called `name`."""
        pixels = None if self.pixels is None else self.pixels[indices]
        return Split(name, [self.records[i] for i in indices], pixels)


@dataclass
class Dataset:
    """A named set: class names in label order, splits by name, and the problems found.

    color is what the pictures are: "gray", "rgb" or "rgba"; palette the colours (red, green, blue)
    of the classes, 0 to 255, where the set has some.
    """

    name: str
    classes: list[str]
    splits: dict[str, Split]
    color: str = "rgb"
    problems: list[Problem] = field(default_factory=list)
    root: Path | None = None
    palette: list[tuple[int, int, int]] | None = None

    def __post_init__(self) -> None:
        for name, split in self.splits.items():
            strange = [r for r in split.records if not UNKNOWN <= r.label < len(self.classes)]
            if strange:
                raise SigakError(
                    f"expected labels from 0 to {len(self.classes) - 1}, received "
                    f"{strange[0].label} for {strange[0].source} in the {name} split"
                )

    @property
    def kind(self) -> str:
        """ "objects" where the records carry boxes, "class_map" where the pixels have classes,
        "volume" where they are volumes' voxels, and "label" where each picture has one.
        """
        first = next((r for split in self.splits.values() for r in split.records), None)
        if first is not None and first.class_map is not None:
            return "volume" if first.depth else "class_map"
        return "objects" if first is not None and first.objects is not None else "label"


def keys(dataset: Dataset, split: Split) -> list[str]:
    """Names that are the same on every machine: sources, from the root on where they are files."""
    if split.pixels is not None or dataset.root is None:
        return [record.source for record in split.records]
    return [portable(record.source, dataset.root) for record in split.records]


def portable(path: str | Path, root: Path) -> str:
    """`path` from `root` on, with forward slashes and composed letters (macOS takes some apart)."""
    return unicodedata.normalize("NFC", Path(path).relative_to(root).as_posix())


def decoded_split(name: str, split: str, pixels: np.ndarray, labels: np.ndarray) -> Split:
    """A split of decoded pictures: pixels (N, H, W, C) uint8, labels (N,) integers."""
    prefix = f"{name}/{split}#" if split else f"{name}#"
    records = [Record(f"{prefix}{i}", label) for i, label in enumerate(map(int, labels.tolist()))]
    return Split(split, records, pixels)


def check_labels(labels: np.ndarray, classes: int, path: Path) -> None:
    """Raise SigakError where a label of the file at `path` lies beyond the classes."""
    beyond = np.flatnonzero(labels >= classes)
    if len(beyond):
        raise SigakError(
            f"{path}: expected labels from 0 to {classes - 1}, received {labels[beyond[0]]} for "
            f"picture {beyond[0]} and {len(beyond)} such labels in all; delete the file and fetch "
            "it again with --download"
        )


def find_file(path: Path) -> Path:
    """`path`, or the same with .gz where only that exists."""
    zipped = path.with_name(path.name + ".gz")
    return zipped if zipped.exists() and not path.exists() else path


def locate(
    name: str, folder: str, wanted: Sequence[str], fetch: Callable[[Path], None] | None
) -> Path:
    """Where every file in `wanted` is: `folder` in $SIGAK_DATA, or else in the cache.

    When they are in neither, `fetch` is called with the cache's folder; without it SigakError says
    where they were looked for.
    """
    roots = [Path(os.environ["SIGAK_DATA"])] if os.environ.get("SIGAK_DATA") else []
    places = [root.expanduser() / folder for root in [*roots, cache_folder()]]
    for place in places:
        if all(find_file(place / file).exists() for file in wanted):
            return place
    if fetch is None:
        raise SigakError(
            f"{name} is not on this machine; looked for {', '.join(wanted)} in "
            f"{' and '.join(map(str, places))}. Add --download to fetch it from its publisher, or "
            f"name in SIGAK_DATA the folder that holds {folder}"
        )
    fetch(places[-1])
    return places[-1]


def digest(dataset: Dataset) -> str:
    """16 hex digits that stay the same as long as the data does, wherever it lies.

    How it is split by `val` and `seed` does not matter. Of a folder the files' names within it and
    their sizes count, of a decoded set the pixels and labels as they were loaded.
    """
    total = hashlib.sha256("\0".join(dataset.classes).encode())
    splits = list(dataset.splits.values())
    entries = sorted(
        (key, split_at, index)
        for split_at, split in enumerate(splits)
        for index, key in enumerate(keys(dataset, split))
    )
    for key, split_at, index in entries:
        split = splits[split_at]
        record = split.records[index]
        total.update(f"{key}\0{record.label}\0".encode("utf-8", "surrogateescape"))
        if record.objects is not None:
            total.update(record.objects.boxes.tobytes())
            total.update(record.objects.labels.tobytes())
        if record.class_map is not None:
            total.update(record.class_map.fingerprint())
        if split.pixels is None:
            total.update(str(os.path.getsize(record.source)).encode())
        else:
            total.update(split.pixels[index])
    return total.hexdigest()[:16]
