"""A folder of pictures: a folder per class, with or without train, val and test above them."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from sigak.data import Dataset, Problem, Record, Split, portable
from sigak.data.splits import THREADS
from sigak.io import image
from sigak.structures import SigakError

__all__ = ["read"]

_SPLITS = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
_LAYOUT = "expected one folder of pictures per class, such as {0}/cat/1.jpg and {0}/dog/1.jpg"
_SAMPLED = 200  # pictures whose headers decide whether a set is gray
_GRAY_MODES = ("1", "L", "LA", "I", "F", "I;16", "I;16B")


@dataclass
class _Found:
    """What lies below a split's folder: pictures by class, in order, and other files."""

    pictures: dict[str, list[Path]] = field(default_factory=dict)
    others: list[Path] = field(default_factory=list)


def read(root: Path, strict: bool = False) -> Dataset:
    """The set below `root`, with the splits the folders make; without split folders all is "train".

    Classes are the folders' names in alphanumeric order. Damaged files are left out and listed in
    `problems`, or refused when `strict`. Raises SigakError for a layout that is not understood,
    fewer than two classes, a class without pictures, and splits of different classes.
    """
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise SigakError(f"{root} {what}; {_LAYOUT.format(root)}")
    folders = _split_folders(root)
    found = {name: _scan(folder) for name, folder in folders.items()}
    classes = _common_classes(root, found)
    damaged = _damaged(found)
    if damaged and strict:
        listed = _few(f"{path} ({reason})" for path, reason in damaged.items())
        raise SigakError(f"damaged files ({len(damaged)}) in {root}: {listed}; mend or remove them")
    problems = [Problem(str(path), reason, "skipped") for path, reason in damaged.items()]
    problems += _ignored(root, folders, found)

    splits = {}
    for name, part in found.items():
        records = [
            Record(str(path), label)
            for label, class_name in enumerate(classes)
            for path in part.pictures[class_name]
            if path not in damaged
        ]
        splits[name] = Split(name, records)
        problems += _check_empty(root, splits[name], classes)
    color = _color([record.source for split in splits.values() for record in split.records])
    return Dataset(root.resolve().name, classes, splits, color, problems, root)


def _visible(folder: Path) -> list[Path]:
    """What `folder` holds in one order everywhere, without hidden entries and macOS leftovers."""
    try:
        names = [entry.name for entry in os.scandir(folder)]
    except OSError as error:
        raise SigakError(
            f"{folder} cannot be listed: {error.strerror}; mend its permissions"
        ) from error
    shown = [name for name in names if not name.startswith(".") and name != "__MACOSX"]
    return [folder / name for name in sorted(shown, key=_composed)]


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _split_folders(root: Path) -> dict[str, Path]:
    """The folder of each split; {"train": root} where the class folders lie directly in `root`.

    A folder called train may also be a class of vehicles: it is one where it holds pictures and no
    folders, beside classes of other names. A test folder of pictures without classes, as contests
    give it, is no split.
    """
    folders = [path for path in _visible(root) if path.is_dir()]
    if not folders:
        pictures = [path for path in _visible(root) if _is_picture(path)]
        raise SigakError(
            f"{_LAYOUT.format(root)}; received no folders and {len(pictures)} pictures"
        )
    named = [path for path in folders if path.name.lower() in _SPLITS]
    nested = [path for path in named if any(below.is_dir() for below in _visible(path))]
    if any(_SPLITS[path.name.lower()] == "train" for path in nested):
        named = nested
    elif len(named) < len(folders):
        return {"train": root}
    splits: dict[str, Path] = {}
    for path in named:
        name = _SPLITS[path.name.lower()]
        if name in splits:
            raise SigakError(
                f"expected one folder for the {name} split, received {splits[name]} and {path}; "
                "join them"
            )
        splits[name] = path
    return {name: splits[name] for name in ("train", "val", "test") if name in splits}


def _scan(folder: Path) -> _Found:
    found = _Found()
    for path in _visible(folder):
        if not path.is_dir():
            found.others.append(path)
            continue
        pictures = found.pictures.setdefault(_composed(path.name), [])
        for file in _files(path, frozenset()):
            (pictures if _is_picture(file) else found.others).append(file)
    return found


def _files(folder: Path, above: frozenset[str]) -> Iterator[Path]:
    """Every visible file below `folder`; links are followed, but not round in circles."""
    real = os.path.realpath(folder)
    if real in above:
        return
    for path in _visible(folder):
        if path.is_dir():
            yield from _files(path, above | {real})
        else:
            yield path


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in image.SUFFIXES


def _common_classes(root: Path, found: dict[str, _Found]) -> list[str]:
    """Class names in alphanumeric order, the same in every split and at least two."""
    first, *rest = found
    classes = sorted(found[first].pictures)
    for name in rest:
        others = sorted(found[name].pictures)
        if others != classes:
            only_first = _few(sorted(set(classes) - set(others))) or "none"
            only_here = _few(sorted(set(others) - set(classes))) or "none"
            raise SigakError(
                f"the splits of {root} must have the same classes; only in {first}: {only_first}; "
                f"only in {name}: {only_here}; add or rename the folders"
            )
    if len(classes) < 2:
        place = f"{root}/{first}" if len(found) > 1 or first != "train" else str(root)
        raise SigakError(
            f"{_LAYOUT.format(place)}, at least two; received {_few(classes) or 'no class folders'}"
        )
    return classes


def _damaged(found: dict[str, _Found]) -> dict[Path, str]:
    """What is wrong with each damaged picture, in words."""
    paths = [p for part in found.values() for pictures in part.pictures.values() for p in pictures]
    with ThreadPoolExecutor(THREADS) as pool:
        reasons = list(pool.map(image.check, paths))
    return {path: reason for path, reason in zip(paths, reasons) if reason is not None}


def _ignored(root: Path, folders: dict[str, Path], found: dict[str, _Found]) -> list[Problem]:
    """One problem for each kind of file or folder that has no place in the layout."""
    others = [path for part in found.values() for path in part.others]
    if root not in folders.values():
        others += [path for path in _visible(root) if path not in folders.values()]
    kinds: dict[str, list[str]] = {}
    for path in others:
        if path.is_dir():
            kind = "folders that are no split of classes"
        elif _is_picture(path):
            kind = "pictures in no class folder"
        else:
            kind = "files that are not pictures"
        kinds.setdefault(kind, []).append(portable(path, root))
    return [
        Problem(str(root), f"{kind} ({len(names)}): {_few(names)}", "ignored")
        for kind, names in kinds.items()
    ]


def _check_empty(root: Path, split: Split, classes: list[str]) -> list[Problem]:
    """Refuse a class without pictures to learn from; report one without pictures to measure on."""
    present = {record.label for record in split.records}
    empty = [name for label, name in enumerate(classes) if label not in present]
    if empty and (split.name == "train" or not present):
        raise SigakError(
            f"expected pictures for every class, received none that can be read for {_few(empty)} "
            f"in the {split.name} split of {root}; add pictures or remove the folder"
        )
    return [Problem(f"{split.name}/{name}", "no pictures of this class", "kept") for name in empty]


def _color(paths: list[str]) -> str:
    """ "gray" where the headers of pictures from all over the set say so, else "rgb"."""
    step = -(-len(paths) // _SAMPLED)
    modes = (image.describe(path)["mode"] for path in paths[::step])
    return "gray" if all(mode in _GRAY_MODES for mode in modes) else "rgb"


def _few(names: Iterable[str], shown: int = 5) -> str:
    """The first names, and how many more there are."""
    names = list(names)
    rest = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + rest
