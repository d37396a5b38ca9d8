"""Data sets: records (paths and numbers), class names, splits, and what was found wrong.

`load(spec)` takes a name (digits, mnist, fashion-mnist, cifar10, cifar100, cifar100-coarse, scenes,
scenes-night, blobs3d), a folder, or an annotation file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from difflib import get_close_matches
from itertools import chain
from pathlib import Path

import numpy as np

from sigak.data.classmaps import BACKGROUND, MOST, ClassMap, lookup
from sigak.data.objects import Objects
from sigak.data.overview import describe_text, sheet, summary
from sigak.data.records import (
    Dataset,
    Problem,
    Record,
    Split,
    check_labels,
    decoded_split,
    digest,
    find_file,
    keys,
    locate,
    portable,
)
from sigak.data.splits import carve, group_files, group_pixels
from sigak.structures import UNKNOWN, SigakError

__all__ = [
    "NAMES",
    "ClassMap",
    "Dataset",
    "Objects",
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
    "provide",
    "sheet",
    "summary",
]

NAMES = ("digits", "mnist", "fashion-mnist", "cifar10", "cifar100", "cifar100-coarse", "scenes",
         "scenes-night", "blobs3d")  # fmt: skip


def load(
    spec: str | Path,
    *,
    val: float = 0.1,
    seed: int = 0,
    download: bool = False,
    strict: bool = False,
    color: str | None = None,
    needs: Sequence[str] = (),
    single_class: bool = False,
) -> Dataset:
    """The data set `spec` names, split into "train", "val" and, where there is one, "test".

    spec is one of `NAMES`; or a folder with one folder of pictures per class, with or without
    train, val and test folders above them; or pictures with boxes: a YOLO data.yaml, a COCO
    instances .json, a Pascal VOC folder; or pictures with class maps, see `sigak.data.pairs`; or
    volumes with masks, see `sigak.data.volumes`. A name always means the set: write ./digits for a
    folder so called.

    Where the data has no "val" split, the share `val` of each class is held out of "train"; 0 holds
    nothing out. The choice depends on the files' names, `val` and `seed` alone, and pictures that
    are identical stay on one side. `download` allows the network to be used for a named set that is
    not found in $SIGAK_DATA or the cache. `strict` refuses damaged files, which are skipped and
    listed in `problems` otherwise. color is what the pictures are to be read as: "gray", "rgb",
    "rgba", or None for what they are. needs: the fields of `Sample` that a task asks for; where a
    set has several kinds of truth they decide which is read. `single_class` makes all objects one
    class, "object".

    Raises SigakError for whatever the user can mend: no such name or folder, a layout that is not
    understood, a class without pictures, damaged official files, values out of range.
    """
    if not 0 <= val < 1:
        raise SigakError(
            f"expected val as a share of the pictures from 0 to below 1, received {val}"
        )
    if color not in (None, "gray", "rgb", "rgba"):
        raise SigakError(f"expected the color gray, rgb or rgba, received {color!r}")
    dataset = _read(spec, download, strict, "class_map" in needs)
    if single_class:
        _merge(dataset)
    groups = _identical(dataset)
    dataset.problems += _report_identical(dataset, groups)
    if val > 0 and "train" in dataset.splits and "val" not in dataset.splits:
        _hold_out(dataset, groups["train"], val, seed)
    dataset.color = color or dataset.color
    return dataset


def _merge(dataset: Dataset) -> None:
    """Make all objects one class, in place."""
    from sigak.data.labels import one_class

    if dataset.kind != "objects":
        raise SigakError(
            f"--single-class is for pictures with boxes, and {dataset.name} has none; leave it out"
        )
    dataset.classes = one_class(dataset.splits.values())


def provide(dataset: Dataset, needs: Sequence[str]) -> Dataset:
    """The set as a task takes it that needs these fields of `Sample`: where that is "class_map",
    outlined objects are painted into class maps, whose class 0 is the background. SigakError where
    it is made for pictures and these are volumes, or the other way round.
    """
    if (dataset.kind == "volume") != ("volume" in needs):
        told = ("volumes", "a network for pictures", "for volumes, such as unet3d-small")
        if "volume" in needs:
            told = ("pictures", "a network for volumes", "for pictures, such as unet")
        raise SigakError(
            f"{dataset.name} holds {told[0]}, and this is {told[1]}; take one {told[2]}"
        )
    if dataset.kind == "volume":
        return dataset
    if "class_map" not in needs or dataset.kind == "class_map":
        return dataset
    records = [record for split in dataset.splits.values() for record in split.records]
    if not any(any(r.objects.outlines or ()) for r in records if r.objects is not None):
        what = "boxes alone" if dataset.kind == "objects" else "a class for each whole picture"
        raise SigakError(
            f"segmentation learns from class maps or from the outlines of objects, and "
            f"{dataset.name} has {what}; give folders images and masks, a COCO .json or a "
            f"data.yaml with polygons"
        )
    if len(dataset.classes) + 1 > MOST:
        raise SigakError(
            f"class maps hold at most {MOST - 1} classes beside the background, {dataset.name} has "
            f"{len(dataset.classes)}"
        )
    splits = {
        name: Split(name, [_painted(r, split, len(dataset.classes)) for r in split.records],
                    split.pixels)
        for name, split in dataset.splits.items()
    }  # fmt: skip
    return replace(dataset, classes=[BACKGROUND, *dataset.classes], splits=splits)


def _painted(record: Record, split: Split, classes: int) -> Record:
    size = record.size if split.pixels is None else split.pixels.shape[1:3]
    table = lookup({value: value for value in range(classes + 1)})
    class_map = ClassMap(record.objects or Objects.empty(), table, size)
    return replace(record, objects=None, class_map=class_map)


def _read(spec: str | Path, download: bool, strict: bool, class_maps: bool) -> Dataset:
    # The formats stand on the classes above, so they are imported when they are used.
    from sigak.data import cifar, digits, folder, idx, pairs, volumes

    if spec == "digits":
        return digits.read()
    if isinstance(spec, str) and spec.partition(":")[0] in ("scenes", "scenes-night"):
        from sigak.data import scenes

        return scenes.read(spec)
    if isinstance(spec, str) and spec.partition(":")[0] == "blobs3d":
        from sigak.data import blobs3d

        return blobs3d.read(spec)
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
            "Otherwise name a folder with one folder of pictures per class, a data.yaml, a COCO "
            ".json or a folder in the layout of Pascal VOC"
        )
    if volumes.recognize(path):
        return volumes.read(path, strict)
    if pairs.recognize(path, wanted=class_maps):
        return pairs.read(path, strict)
    return _read_boxes(path, strict) or folder.read(path, strict=strict)


def _read_boxes(path: Path, strict: bool) -> Dataset | None:
    """A set with boxes, where `path` is one."""
    from sigak.data import convert

    form = convert.recognize(path)
    return convert.FORMATS[form].read(path, strict) if form else None


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
    several = dataset.kind != "label"  # a picture of several classes cannot be split by class
    labels = np.zeros(len(train), np.int64) if several else train.labels
    held = carve(labels, groups, keys(dataset, train), share, seed)
    chosen = train.subset(np.flatnonzero(held), "val")
    missing = set(train.object_labels.tolist()) - set(chosen.object_labels.tolist())
    for label in sorted(missing - {UNKNOWN}):
        reason = "too few different pictures to hold one out for validation"
        dataset.problems.append(Problem(dataset.classes[label], reason, "kept in train"))
    if held.any():
        rest = {name: split for name, split in dataset.splits.items() if name != "train"}
        dataset.splits = {
            "train": train.subset(np.flatnonzero(~held), "train"),
            "val": chosen,
        } | rest
