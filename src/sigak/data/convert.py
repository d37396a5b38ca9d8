"""From one annotation format to another: a whole set, its pictures with it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path

from sigak.data import coco, voc, yolo
from sigak.data.headers import measure
from sigak.data.labels import annotation, one_class
from sigak.data.records import Dataset, Problem, Record, Split
from sigak.io import image
from sigak.structures import SigakError

__all__ = ["FORMATS", "Conversion", "convert", "recognize"]

FORMATS = {"yolo": yolo, "coco": coco, "voc": voc}


@dataclass(frozen=True)
class Conversion:
    """What was written, and what was not.

    pictures and objects: how many by split; lost: what the format has no place for, in words;
    problems: what was found wrong, and mended, in the source.
    """

    destination: Path
    pictures: dict[str, int]
    objects: dict[str, int]
    lost: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def convert(
    source: str | Path | Dataset,
    destination: str | Path,
    to: str,
    *,
    images: bool = True,
    link: bool = False,
    outlines: bool = True,
    strict: bool = False,
    single_class: bool = False,
) -> Conversion:
    """Write the set `source` into the new or empty folder `destination`, as one of `FORMATS`.

    source: a data.yaml, a COCO .json or a folder of either, a VOC folder, or a set whose records
    have objects. Pictures are copied, or hard-linked with `link` (one file under two names, on one
    disk); without `images` only the annotations are written. YOLO gets outlines instead of boxes
    where nothing is lost by it and `outlines` is true. What was wrong in the source is mended, or
    refused when `strict`. `single_class` makes all objects one class, "object".

    Raises SigakError for an unknown format, a destination that holds something or lies within the
    source, a source that cannot be read, a disk that is full; then nothing is left behind.
    """
    if to not in FORMATS:
        near = get_close_matches(str(to), FORMATS, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise SigakError(f"expected the format {', '.join(FORMATS)}, received {to!r}{hint}")
    folder = Path(destination).expanduser()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SigakError(f"{folder} holds something already; name a new or an empty folder")
    if not isinstance(source, Dataset):
        within = Path(source).expanduser().resolve()
        if within.is_dir() and folder.resolve().is_relative_to(within):
            raise SigakError(f"{folder} lies within {source}; name a folder outside of it")
    facts = None
    if isinstance(source, Dataset):
        dataset = _measured(source)
    else:
        dataset, facts = _read(Path(source).expanduser(), strict)
    if single_class:  # COCO's own list of categories no longer fits
        dataset.classes, facts = one_class(dataset.splits.values()), None
    names = _names(dataset)
    with _whole(folder):
        if to == "coco":
            lost = coco.write(dataset, folder, names, facts)
        elif to == "yolo":
            lost = yolo.write(dataset, folder, names, outlines=outlines)
        else:
            lost = voc.write(dataset, folder, names)
        if images:
            _place_pictures(dataset, folder, FORMATS[to].picture_folder, names, link)
    return Conversion(
        folder,
        {name: len(split) for name, split in dataset.splits.items()},
        {
            name: sum(len(annotation(record)[0]) for record in split.records)
            for name, split in dataset.splits.items()
        },
        lost,
        dataset.problems,
    )


@contextmanager
def _whole(folder: Path) -> Iterator[None]:
    """A new or empty folder that is filled, or removed again where that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, OSError):
            raise SigakError(f"{folder} cannot be written: {error}") from error
        raise


def recognize(path: Path) -> str:
    """Which of `FORMATS` the file or folder is in, by the names of its files; "" for none."""
    if path.suffix.lower() in (".yaml", ".yml") or any(path.glob("data.y*ml")):
        return "yolo"
    jsons = ("annotations/*.json", "*/_*.json", "*.json")
    if path.suffix.lower() == ".json" or any(found for p in jsons for found in path.glob(p)):
        return "coco"
    if path.is_dir() and any(found for p in ("*.xml", "*/*.xml") for found in path.glob(p)):
        return "voc"
    return "voc" if (path / "ImageSets").is_dir() else ""


def _read(path: Path, strict: bool) -> tuple[Dataset, coco.Facts | None]:
    """The set at `path`, and what COCO says besides."""
    form = recognize(path)
    if form == "coco":
        return coco.parse(path, strict)
    if form:
        return FORMATS[form].read(path, strict), None
    what = "holds none of these" if path.exists() else "does not exist"
    raise SigakError(
        f"expected a data.yaml, a COCO .json or a folder with VOC's XML files; {path} {what}"
    )


def _measured(dataset: Dataset) -> Dataset:
    """The same set with the size of every picture."""
    splits = {}
    for name, split in dataset.splits.items():
        if split.pixels is None:
            unknown = [record.source for record in split.records if record.size is None]
            sizes = {path: header.size for path, header in zip(unknown, measure(unknown))}
            records = [replace(r, size=r.size or sizes[r.source]) for r in split.records]
        else:
            records = [replace(r, size=split.pixels.shape[1:3]) for r in split.records]
        splits[name] = Split(name, records, split.pixels)
    return replace(dataset, splits=splits)


def _names(dataset: Dataset) -> dict[str, str]:
    """A file name for each picture, its own where no other has the same but for its ending."""
    names: dict[str, str] = {}
    taken: set[str] = set()
    for split in dataset.splits.values():
        for record in split.records:
            if record.source in names:
                continue
            stem, suffix = os.path.splitext(os.path.basename(record.source))
            if split.pixels is not None:
                stem, suffix = record.source.replace("/", "-").replace("#", "-"), ".png"
            unique, number = stem, 1
            while unique.lower() in taken:  # some file systems take "A" for "a"
                number += 1
                unique = f"{stem}-{number}"
            taken.add(unique.lower())
            names[record.source] = unique + suffix
    return names


def _place_pictures(
    dataset: Dataset,
    folder: Path,
    place: Callable[[str], str],
    names: Mapping[str, str],
    link: bool,
) -> None:
    for name, split in dataset.splits.items():
        (folder / place(name)).mkdir(parents=True, exist_ok=True)
        for number, record in enumerate(split.records):
            target = folder / place(name) / names[record.source]
            if split.pixels is not None:
                image.save(target, split.pixels[number])
            elif not target.exists():
                _place(record, target, link)


def _place(record: Record, target: Path, link: bool) -> None:
    try:
        if link:
            os.link(os.path.realpath(record.source), target)
        else:
            shutil.copyfile(record.source, target)
    except OSError as error:
        what = "linked" if link else "copied"
        raise SigakError(f"{record.source} cannot be {what} to {target}: {error}") from error
