"""Pictures with class maps: two folders of the same names, Pascal VOC's and Cityscapes' layouts.

http://host.robots.ox.ac.uk/pascal/VOC/, https://www.cityscapes-dataset.com
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sigak.data.classmaps import (
    BACKGROUND,
    ClassMap,
    class_file,
    class_rows,
    lookup,
    meanings,
    values_of,
)
from sigak.data.headers import measure
from sigak.data.labels import SPLIT_ORDER, SPLITS, Findings, split_folders
from sigak.data.records import Dataset, Record, Split
from sigak.data.splits import THREADS
from sigak.io import image, index_map
from sigak.structures import IGNORE, SigakError

__all__ = ["CITYSCAPES", "VOC", "read", "recognize"]

_PICTURES = ("images", "imgs", "JPEGImages", "leftImg8bit")
_MAPS = ("masks", "labels", "annotations", "SegmentationClass", "gtFine")
# Cityscapes writes several maps a picture; the first that is there is taken.
_CITY_ENDINGS = ("_gtFine_labelTrainIds", "_gtFine_labelIds")

VOC = (
    BACKGROUND, "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair",
    "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor",
)  # fmt: skip
"""The classes of Pascal VOC's SegmentationClass, in the order of their values."""

CITYSCAPES = {
    "road": (7, (128, 64, 128)), "sidewalk": (8, (244, 35, 232)), "building": (11, (70, 70, 70)),
    "wall": (12, (102, 102, 156)), "fence": (13, (190, 153, 153)), "pole": (17, (153, 153, 153)),
    "traffic light": (19, (250, 170, 30)), "traffic sign": (20, (220, 220, 0)),
    "vegetation": (21, (107, 142, 35)), "terrain": (22, (152, 251, 152)),
    "sky": (23, (70, 130, 180)), "person": (24, (220, 20, 60)), "rider": (25, (255, 0, 0)),
    "car": (26, (0, 0, 142)), "truck": (27, (0, 0, 70)), "bus": (28, (0, 60, 100)),
    "train": (31, (0, 80, 100)), "motorcycle": (32, (0, 0, 230)), "bicycle": (33, (119, 11, 32)),
}  # fmt: skip
"""The 19 classes that Cityscapes evaluates: (value in its labelIds, colour)."""


@dataclass(frozen=True)
class _Classes:
    """Names in label order, their colours where some are known, and the class of each value."""

    names: list[str]
    table: np.ndarray
    palette: list[tuple[int, int, int]] | None = None
    colored: bool = False  # maps in colour are read by the palette
    unreadable: frozenset[str] = frozenset()  # maps that hold no classes


def recognize(path: Path, *, wanted: bool = False) -> bool:
    """Whether the folder holds pictures and class maps. Where it also has VOC's XML files with
    boxes, only if class maps are `wanted`.
    """
    if not path.is_dir() or _folders(path) is None:
        return False
    return wanted or not any((path / "Annotations").glob("*.xml"))


def read(path: str | Path, strict: bool = False) -> Dataset:
    """The set of a folder with pictures in images and class maps of the same names in masks.

    The splits are folders train, val and test above or below these two, or lists in
    ImageSets/Segmentation; without them all is "train". A map is a gray, paletted or coloured file
    without loss; its values are classes, 255 (IGNORE) is none. Names and colours of the classes are
    in classes.txt (one a line, in the order of the values) or classes.json (a list of names or of
    {"name", "color", "value"}); without either each value that occurs is a class, and 0 and 255
    alone are background and foreground. VOC's and Cityscapes' own names and values are known.

    Pictures without a map, damaged ones and such of another size than their map are left out and
    listed in `problems`, or refused when `strict`. Raises SigakError where nothing is left.
    """
    root = Path(os.path.abspath(path))
    findings = Findings(root)
    found = {
        name: _checked(list(_pairs(*places)), findings) for name, places in _splits(root).items()
    }
    pairs = [pair for part in found.values() for pair in part]
    if not pairs:
        reason = f": {findings.problems[0].reason}" if findings.problems else ""
        raise SigakError(f"expected pictures with class maps in {root}, received none{reason}")
    classes = _classes(root, [str(target) for _, target, _ in pairs], findings)
    if strict:
        findings.refuse()
    colors = None
    if classes.colored and classes.palette:
        colors = {color: value for value, color in enumerate(classes.palette)}
    splits = {}
    for name in SPLIT_ORDER:
        if found.get(name):
            records = [
                Record(source, size=size, class_map=ClassMap(target, classes.table, size, colors))
                for source, target, size in found[name]
                if target not in classes.unreadable
            ]
            if records:
                splits[name] = Split(name, records)
    return Dataset(
        root.name, classes.names, splits, problems=findings.problems, root=root,
        palette=classes.palette,
    )  # fmt: skip


# ------------------------------------------------------------------ which files


def _folders(root: Path) -> tuple[Path, Path] | None:
    """The folders of the pictures and of the maps, directly in `root` or in its first split."""
    for place in [root, *split_folders(root).values()]:
        pictures = next((place / name for name in _PICTURES if (place / name).is_dir()), None)
        maps = [place / name for name in _MAPS if (place / name).is_dir()]
        target = next((folder for folder in maps if _any_picture(folder)), None)
        if pictures is not None and target is not None:
            return pictures, target
    return None


def _any_picture(folder: Path) -> bool:
    return any(p.suffix.lower() in image.SUFFIXES for p in folder.rglob("*"))


def _splits(root: Path) -> dict[str, tuple[Path, Path, list[str] | None]]:
    """The folders of pictures and maps of each split, and the names that a list gives it."""
    lists = {SPLITS.get(p.stem, p.stem): p for p in root.glob("ImageSets/Segmentation/*.txt")}
    if "train" not in lists and "trainval" in lists:
        lists["train"] = lists["trainval"]
    places = _folders(root)
    if places is None:
        raise SigakError(f"expected the folders images and masks in {root}, received neither")
    if lists:
        return {
            name: (*places, lists[name].read_text("utf-8-sig").split())
            for name in SPLIT_ORDER
            if name in lists
        }
    pictures, maps = places
    if pictures.parent != root:  # root/train/images beside root/train/masks
        names = (pictures.name, maps.name)
        return {
            split: (folder / names[0], folder / names[1], None)
            for split, folder in split_folders(root).items()
        }
    inner = split_folders(pictures)
    if not inner:
        return {"train": (pictures, maps, None)}
    return {split: (folder, maps / folder.name, None) for split, folder in inner.items()}


def _pairs(
    pictures: Path, maps: Path, listed: Sequence[str] | None
) -> Iterator[tuple[str, str | None]]:
    """Each picture and its map, None where it has none."""
    targets = dict(_by_stem(maps))
    sources = list(_by_stem(pictures))
    if listed is not None:
        known = dict(sources)
        sources = [(stem, known.get(stem, str(pictures / stem))) for stem in listed]
    for stem, source in sources:
        city = stem.removesuffix("_leftImg8bit")
        names = [stem, *(f"{city}{ending}" for ending in _CITY_ENDINGS)]
        target = next((targets[name] for name in names if name in targets), None)
        yield source, target


def _by_stem(folder: Path) -> Iterator[tuple[str, str]]:
    """(path below the folder without its ending, path) of its pictures, sorted."""
    if not folder.is_dir():
        return
    for path in sorted(folder.rglob("*")):
        below = path.relative_to(folder)
        if path.suffix.lower() in image.SUFFIXES and not path.name.startswith("."):
            yield below.with_suffix("").as_posix(), str(path)


def _checked(
    pairs: Sequence[tuple[str, str | None]], findings: Findings
) -> list[tuple[str, str, tuple[int, int]]]:
    """(picture, map, (H, W)) of the pairs that are whole and of one size."""
    sources = measure([source for source, _ in pairs])
    maps = iter(measure([target for _, target in pairs if target is not None]))
    kept = []
    for (source, target), header in zip(pairs, sources, strict=True):
        other = next(maps) if target is not None else None
        if header.damage is not None:
            findings.add(source, header.damage, "picture skipped")
        elif target is None or other is None:
            findings.add(source, "has no class map of its name", "picture skipped")
        elif other.damage is not None:
            findings.add(target, other.damage, "picture skipped")
        elif other.size != header.size:
            reason = "the class map is {} x {} (height x width), its picture {} x {}"
            findings.add(target, reason.format(*other.size, *header.size), "picture skipped")
        else:
            kept.append((source, target, header.size))
    return kept


# ------------------------------------------------------------------ classes


def _classes(root: Path, maps: Sequence[str], findings: Findings) -> _Classes:
    file = class_file(root)
    if file is not None:
        return _from_file(file, maps)
    if (root / "gtFine").is_dir():
        names = list(CITYSCAPES)
        if any(path.endswith(f"{_CITY_ENDINGS[0]}.png") for path in maps):
            table = lookup({i: i for i in range(len(names))})
        else:
            others = dict.fromkeys(range(256), IGNORE)
            known = {value: i for i, (value, _) in enumerate(CITYSCAPES.values())}
            table = lookup(others | known)
        return _Classes(names, table, [color for _, color in CITYSCAPES.values()])
    palette = index_map.palette_of(maps[0])
    if (root / "SegmentationClass").is_dir():
        table = lookup({i: i for i in range(len(VOC))})
        return _Classes(list(VOC), table, palette[: len(VOC)] if palette else None)
    return _from_values(maps, palette, findings)


def _from_values(
    maps: Sequence[str], palette: list[tuple[int, int, int]] | None, findings: Findings
) -> _Classes:
    """Every value that occurs is a class."""
    found: set[int] = set()
    unreadable: dict[str, str] = {}
    with ThreadPoolExecutor(THREADS) as pool:
        read_all = pool.map(lambda path: values_of(path, index_map.read), maps)
        for path, held in zip(maps, read_all, strict=True):
            if isinstance(held, str):
                unreadable[path] = held
                findings.add(path, held.removeprefix(f"{path} "), "picture skipped")
            else:
                found.update(held)
    if len(unreadable) == len(maps):
        raise SigakError(unreadable[maps[0]])
    if found == {0, IGNORE}:
        findings.note(
            Path(maps[0]).parent, "the maps hold 0 and 255 alone", "taken as background, foreground"
        )
        binary = lookup({0: 0, IGNORE: 1})
        return _Classes([BACKGROUND, "foreground"], binary, unreadable=frozenset(unreadable))
    values = sorted(found - {IGNORE})
    if not values:
        raise SigakError(
            f"{Path(maps[0]).parent}: every pixel of every class map is {IGNORE}, which is no "
            "class; nothing could be learnt"
        )
    names = [str(value) for value in values]
    known = {value: label for label, value in enumerate(values)}
    colors = [palette[v] for v in values] if palette and values[-1] < len(palette) else None
    return _Classes(names, lookup(known), colors, unreadable=frozenset(unreadable))


def _from_file(file: Path, maps: Sequence[str]) -> _Classes:
    """Names, values and colours as classes.txt or classes.json gives them."""
    rows = class_rows(file)
    names = [name for name, _, _ in rows]
    known, palette = meanings(rows)
    if palette and any(map(index_map.in_color, maps)):  # their values are the places of the colours
        table = lookup({place: place for place in range(len(rows))})
        return _Classes(names, table, palette, colored=True)
    if known == {0: 0, 1: 1} and _binary(maps):
        known = {0: 0, IGNORE: 1}
    return _Classes(names, lookup(known), palette)


def _binary(maps: Sequence[str]) -> bool:
    """Whether the first maps hold 0 and 255 alone, and both: masks of one object as tools paint
    them.
    """
    found = {value for path in maps[:20] for value in np.unique(index_map.read(path)).tolist()}
    return found == {0, IGNORE}
