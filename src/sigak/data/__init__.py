"""Data sets: records (paths and numbers), class names, splits, and what was found wrong.

`load(spec)` takes a name (digits, mnist, fashion-mnist, cifar10, cifar100, cifar100-coarse) or a
folder.
"""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from io import StringIO
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from sigak import draw
from sigak.data.splits import THREADS, carve, group_files, group_pixels, shuffled
from sigak.io import image
from sigak.io.download import cache_folder
from sigak.structures import UNKNOWN, SigakError

__all__ = [
    "NAMES",
    "Dataset",
    "Problem",
    "Record",
    "Split",
    "check_labels",
    "decoded_split",
    "describe_text",
    "digest",
    "find_file",
    "load",
    "locate",
    "portable",
    "sheet",
    "summary",
]

_MEASURED = 1000  # pictures per split whose headers tell the sizes
_SHOWN = 20  # problems listed for people; `summary` has them all
NAMES = ("digits", "mnist", "fashion-mnist", "cifar10", "cifar100", "cifar100-coarse")


@dataclass(frozen=True, slots=True)
class Record:
    """One picture: `source` its path or a name such as "digits#17"; label an index or UNKNOWN."""

    source: str
    label: int = UNKNOWN


@dataclass(frozen=True)
class Problem:
    """Something wrong: where, what, and what was done about it ("skipped", "kept", ...)."""

    source: str
    reason: str
    action: str


@dataclass
class Split:
    """Records of one split.

    pixels (N, H, W, C) uint8 holds them all where the set comes decoded, else it is None.
    """

    name: str
    records: list[Record]
    pixels: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.records)

    @property
    def labels(self) -> np.ndarray:
        """(N,) int64 class indices."""
        return np.array([r.label for r in self.records], np.int64)

    def subset(self, indices: np.ndarray, name: str) -> Split:
        """The records (and pixels) at `indices`, in that order, as a split called `name`."""
        pixels = None if self.pixels is None else self.pixels[indices]
        return Split(name, [self.records[i] for i in indices], pixels)


@dataclass
class Dataset:
    """A named set: class names in label order, splits by name, and the problems found.

    color is what the pictures are: "gray", "rgb" or "rgba".
    """

    name: str
    classes: list[str]
    splits: dict[str, Split]
    color: str = "rgb"
    problems: list[Problem] = field(default_factory=list)
    root: Path | None = None

    def __post_init__(self) -> None:
        for name, split in self.splits.items():
            strange = [r for r in split.records if not UNKNOWN <= r.label < len(self.classes)]
            if strange:
                raise SigakError(
                    f"expected labels from 0 to {len(self.classes) - 1}, received "
                    f"{strange[0].label} for {strange[0].source} in the {name} split"
                )


def load(
    spec: str | Path,
    *,
    val: float = 0.1,
    seed: int = 0,
    download: bool = False,
    strict: bool = False,
    color: str | None = None,
) -> Dataset:
    """The data set `spec` names, split into "train", "val" and, where there is one, "test".

    spec is one of `NAMES`, or a folder with one folder of pictures per class, with or without
    train, val and test folders above them. A name always means the set: write ./digits for a folder
    so called.

    Where the data has no "val" split, the share `val` of each class is held out of "train"; 0 holds
    nothing out. The choice depends on the files' names, `val` and `seed` alone, and pictures that
    are identical stay on one side. `download` allows the network to be used for a named set that is
    not found in $SIGAK_DATA or the cache. `strict` refuses damaged files, which are skipped and
    listed in `problems` otherwise. color is what the pictures are to be read as: "gray", "rgb",
    "rgba", or None for what they are.

    Raises SigakError for whatever the user can mend: no such name or folder, a layout that is not
    understood, a class without pictures, damaged official files, values out of range.
    """
    if not 0 <= val < 1:
        raise SigakError(
            f"expected val as a share of the pictures from 0 to below 1, received {val}"
        )
    if color not in (None, "gray", "rgb", "rgba"):
        raise SigakError(f"expected the color gray, rgb or rgba, received {color!r}")
    dataset = _read(spec, download, strict)
    groups = _identical(dataset)
    dataset.problems += _report_identical(dataset, groups)
    if val > 0 and "train" in dataset.splits and "val" not in dataset.splits:
        _hold_out(dataset, groups["train"], val, seed)
    dataset.color = color or dataset.color
    return dataset


def _read(spec: str | Path, download: bool, strict: bool) -> Dataset:
    # The formats stand on the classes above, so they are imported when they are used.
    from sigak.data import cifar, digits, folder, idx

    if spec == "digits":
        return digits.read()
    if spec in idx.SETS:
        return idx.read(str(spec), download)
    if spec in cifar.SETS:
        return cifar.read(str(spec), download)
    path = Path(spec).expanduser()
    # A lone word that is no folder was meant as a name, anything with a slash as a folder.
    if isinstance(spec, str) and "/" not in spec and "\\" not in spec and not path.exists():
        near = get_close_matches(spec.lower(), NAMES, 3, 0.5) or NAMES
        raise SigakError(
            f"there is no data set and no folder called {spec!r}; did you mean {', '.join(near)}? "
            "Otherwise name a folder with one folder of pictures per class"
        )
    return folder.read(path, strict=strict)


def _identical(dataset: Dataset) -> dict[str, list[int]]:
    """For each split, a number per picture that is equal for identical pictures of any split."""
    records = [record for split in dataset.splits.values() for record in split.records]
    parts = [split.pixels for split in dataset.splits.values()]
    if parts[0] is None:
        numbers = group_files([record.source for record in records])
    else:
        numbers = group_pixels(chain.from_iterable(part for part in parts if part is not None))
    groups, start = {}, 0
    for name, split in dataset.splits.items():
        groups[name] = numbers[start : start + len(split)]
        start += len(split)
    return groups


def _report_identical(dataset: Dataset, groups: dict[str, list[int]]) -> list[Problem]:
    """Pictures that also lie in another split, or in another class of the same one."""
    numbers = list(chain.from_iterable(groups.values()))
    if len(set(numbers)) == len(numbers):
        return []
    first: dict[int, tuple[str, Record]] = {}
    problems = []
    for name, split in dataset.splits.items():
        for record, group in zip(split.records, groups[name]):
            other_name, other = first.setdefault(group, (name, record))
            if other_name == name and other.label == record.label:
                continue
            place = f"{other.source} of {other_name}" if other_name != name else other.source
            reason = f"identical to {place}"
            if other.label != record.label:
                classes = dataset.classes[other.label], dataset.classes[record.label]
                reason += f", but there it is {classes[0]!r} and here {classes[1]!r}"
            problems.append(Problem(record.source, reason, "kept"))
    return problems


def _hold_out(dataset: Dataset, groups: list[int], share: float, seed: int) -> None:
    """Move a share of "train" into a new split "val"."""
    train = dataset.splits["train"]
    labels = train.labels
    held = carve(labels, groups, _keys(dataset, train), share, seed)
    for label in sorted(set(labels.tolist()) - set(labels[held].tolist())):
        reason = "too few different pictures to hold one out for validation"
        dataset.problems.append(Problem(dataset.classes[label], reason, "kept in train"))
    if held.any():
        rest = {name: split for name, split in dataset.splits.items() if name != "train"}
        dataset.splits = {
            "train": train.subset(np.flatnonzero(~held), "train"),
            "val": train.subset(np.flatnonzero(held), "val"),
        } | rest


def _keys(dataset: Dataset, split: Split) -> list[str]:
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
        for index, key in enumerate(_keys(dataset, split))
    )
    for key, split_at, index in entries:
        split = splits[split_at]
        total.update(f"{key}\0{split.records[index].label}\0".encode("utf-8", "surrogateescape"))
        if split.pixels is None:
            total.update(str(os.path.getsize(split.records[index].source)).encode())
        else:
            total.update(split.pixels[index])
    return total.hexdigest()[:16]


def summary(dataset: Dataset) -> dict[str, Any]:
    """What there is to know of a set, as values JSON can hold.

    name, root, digest, color; classes: a list of {"name", one count per split}; splits: counts;
    total; height and width: {"min", "median", "max"} in pixels, of 1,000 pictures per split where
    there are more; problems: a list of {"source", "reason", "action"}.
    """
    counts = {
        name: np.bincount(split.labels, minlength=len(dataset.classes)).tolist()
        for name, split in dataset.splits.items()
    }
    sizes = np.array(_sizes(dataset))
    return {
        "name": dataset.name,
        "root": None if dataset.root is None else str(dataset.root),
        "digest": digest(dataset),
        "color": dataset.color,
        "classes": [
            {"name": name} | {split: counts[split][label] for split in counts}
            for label, name in enumerate(dataset.classes)
        ],
        "splits": {name: len(split) for name, split in dataset.splits.items()},
        "total": sum(len(split) for split in dataset.splits.values()),
        "height": _spread(sizes[:, 0]),
        "width": _spread(sizes[:, 1]),
        "problems": [asdict(problem) for problem in dataset.problems],
    }


def _sizes(dataset: Dataset) -> list[tuple[int, int]]:
    """(H, W) of pictures from all over each split; of a decoded one, which has one size, once."""
    sizes: list[tuple[int, int]] = []
    for split in dataset.splits.values():
        if split.pixels is not None:
            sizes.append((split.pixels.shape[1], split.pixels.shape[2]))
            continue
        step = -(-len(split) // _MEASURED)
        sources = [record.source for record in split.records[::step]]
        with ThreadPoolExecutor(THREADS) as pool:
            headers = pool.map(image.describe, sources)
            sizes += [tuple(header["size"]) for header in headers]
    return sizes


def _spread(values: np.ndarray) -> dict[str, int]:
    return {
        "min": int(values.min()),
        "median": int(np.median(values)),
        "max": int(values.max()),
    }


def describe_text(dataset: Dataset, width: int = 100) -> str:
    """`summary` for people: a table of classes, `width` letters wide, and the problems."""
    from rich.console import Console
    from rich.table import Table

    facts = summary(dataset)
    table = Table("class", box=None, pad_edge=False)
    for name in facts["splits"]:
        table.add_column(name, justify="right")
    for row in facts["classes"]:
        table.add_row(*(str(cell) for cell in row.values()))
    table.add_row("all", *(str(count) for count in facts["splits"].values()), style="bold")

    text = StringIO()
    text.write(
        f"{facts['name']}: {facts['total']:,} pictures, {_sides(facts)}, {facts['color']}\n\n"
    )
    Console(file=text, width=width, markup=False, emoji=False, color_system=None).print(table)
    problems = facts["problems"]
    if problems:
        text.write(f"\nproblems ({len(problems):,})\n")
        for problem in problems[:_SHOWN]:
            text.write(f"  {problem['source']}: {problem['reason']} ({problem['action']})\n")
        if len(problems) > _SHOWN:
            text.write(f"  and {len(problems) - _SHOWN:,} more\n")
    return text.getvalue()


def _sides(facts: dict[str, Any]) -> str:
    """Sizes in words, such as "32 high x 32 wide" or "90-480 (median 240) high x 32 wide"."""

    def side(spread: dict[str, int]) -> str:
        low, middle, high = spread["min"], spread["median"], spread["max"]
        return str(low) if low == high else f"{low}-{high} (median {middle})"

    return f"{side(facts['height'])} high x {side(facts['width'])} wide"


def sheet(dataset: Dataset, rows: int = 4, columns: int = 8, seed: int = 0) -> np.ndarray:
    """(H, W, 3) uint8: up to rows x columns pictures with their class names, the classes in turn.

    The pictures are of the "train" split, or the first there is.
    """
    split = dataset.splits.get("train", next(iter(dataset.splits.values())))
    turns: dict[int, int] = {}
    order = []
    for index in shuffled(_keys(dataset, split), seed):
        label = split.records[index].label
        turns[label] = turns.get(label, -1) + 1
        order.append((turns[label], label, index))
    chosen = [index for _, _, index in sorted(order)[: rows * columns]]
    pictures = [
        image.read(split.records[i].source if split.pixels is None else split.pixels[i])
        for i in chosen
    ]
    captions = [dataset.classes[split.records[i].label] for i in chosen]
    return draw.grid(pictures, captions, columns)
