"""Volumes with masks: two folders of the same names, NIfTI files (.nii.gz) or arrays (.npy, .npz).

https://nifti.nimh.nih.gov/nifti-1
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
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
from sigak.data.labels import SPLIT_ORDER, SPLITS, Findings, split_folders
from sigak.data.records import Dataset, Record, Split
from sigak.data.splits import THREADS
from sigak.io import volumes
from sigak.io.volumes import Header
from sigak.structures import IGNORE, SigakError

__all__ = ["VolumeMap", "read", "recognize"]

_VOLUMES = ("images", "imagesTr")
_MASKS = ("masks", "labels", "labelsTr")

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class VolumeMap(ClassMap):
    """Where the classes of a volume's voxels are found: in a file, or in `labels` (D, H, W) uint8
    that are held in memory. shape (D, H, W) is the volume's.
    """

    shape: Shape = (0, 0, 0)
    labels: np.ndarray | None = field(default=None, repr=False, compare=False)

    def _values(self) -> np.ndarray:
        if self.labels is not None:
            return self.labels
        values = volumes.read_labels(str(self.source))
        if values.shape != self.shape:
            raise SigakError(_unlike(str(self.source), values.shape, self.shape))
        return values

    def fingerprint(self) -> bytes:
        """Bytes that change when the mask does; see `ClassMap`."""
        if self.labels is None:
            return super().fingerprint()
        return hashlib.sha256(self.labels.tobytes()).digest()


def _unlike(name: str, mask: tuple[int, ...], volume: tuple[int, ...]) -> str:
    sides = (" x ".join(map(str, shape)) for shape in (mask, volume))
    return "{} is {} (depth x height x width), its volume {}".format(name, *sides)


def recognize(path: Path) -> bool:
    """Whether the folder holds volumes in a folder called images, at its top or in a split."""
    return path.is_dir() and any(
        volumes.is_volume(file)
        for place in [path, *split_folders(path).values()]
        for name in _VOLUMES
        for file in (place / name).rglob("*")
    )


def read(path: str | Path, strict: bool = False) -> Dataset:
    """The set of a folder with volumes in images and masks of the same names in masks.

    The splits are folders train, val and test above or below these two; without them all is
    "train". The values of a mask are classes, 255 (IGNORE) is none. Their names are in classes.txt
    or classes.json as for pictures (see `sigak.data.pairs`); without either each value that occurs
    is a class, and 0 and 255 alone are background and foreground.

    Volumes without a mask, damaged ones, and such of another shape than their mask or turned
    otherwise are left out and listed in `problems`, or refused when `strict`. Raises SigakError
    where nothing is left.
    """
    root = Path(os.path.abspath(path))
    findings = Findings(root)
    found = {name: _checked(list(_pairs(*places)), findings) for name, places in _splits(root)}
    _tell_turned([row for rows in found.values() for row in rows], findings)
    masks = [mask for rows in found.values() for _, mask, _ in rows]
    classes, table, palette, bad = _classes(root, masks, findings)
    kept = {name: [row for row in rows if row[1] not in bad] for name, rows in found.items()}
    if not any(kept.values()):
        reason = f": {findings.problems[0].reason}" if findings.problems else ""
        raise SigakError(f"expected volumes with masks in {root}, received none{reason}")
    if strict:
        findings.refuse()
    splits = {
        name: Split(name, [_record(*row, table) for row in kept[name]])
        for name in SPLIT_ORDER
        if kept.get(name)
    }
    return Dataset(
        root.name, classes, splits, "gray", problems=findings.problems, root=root, palette=palette
    )


_Row = tuple[str, str, Header]


def _record(source: str, mask: str, header: Header, table: np.ndarray) -> Record:
    depth, height, width = header.shape
    class_map = VolumeMap(mask, table, shape=header.shape)
    return Record(source, size=(height, width), class_map=class_map, depth=depth)


# ------------------------------------------------------------------ which files


def _splits(root: Path) -> Iterator[tuple[str, tuple[Path, Path]]]:
    """The folders of volumes and of masks of each split."""
    for place in [root, *split_folders(root).values()]:
        images = next((place / name for name in _VOLUMES if (place / name).is_dir()), None)
        masks = next((place / name for name in _MASKS if (place / name).is_dir()), None)
        if images is None:
            continue
        if masks is None:
            raise SigakError(
                f"{images} holds volumes, and there is no folder masks beside it; put the mask of "
                f"each there under the same name"
            )
        inner = split_folders(images)
        if place != root:
            yield SPLITS[place.name.lower()], (images, masks)
        elif inner:
            yield from ((split, (folder, masks / folder.name)) for split, folder in inner.items())
        else:
            yield "train", (images, masks)


def _pairs(images: Path, masks: Path) -> Iterator[tuple[str, str | None]]:
    """Each volume and its mask, None where it has none."""
    targets = dict(_by_stem(masks))
    for stem, source in _by_stem(images):
        yield source, targets.get(stem)


def _by_stem(folder: Path) -> Iterator[tuple[str, str]]:
    """(path below the folder without its ending, path) of its volumes, sorted."""
    for path in sorted(folder.rglob("*")):
        if volumes.is_volume(path) and path.is_file() and not path.name.startswith("."):
            yield volumes.stem(path.relative_to(folder).as_posix()), str(path)


def _checked(pairs: Sequence[tuple[str, str | None]], findings: Findings) -> list[_Row]:
    """(volume, mask, header) of the pairs that are whole and fit together."""
    with ThreadPoolExecutor(THREADS) as pool:
        headers = list(pool.map(_header, [path for pair in pairs for path in pair]))
    kept = []
    for (source, mask), one, other in zip(pairs, headers[::2], headers[1::2], strict=True):
        if isinstance(one, str):
            findings.add(source, one, "volume skipped")
        elif mask is None:
            findings.add(source, "has no mask of its name", "volume skipped")
        elif isinstance(other, str):
            findings.add(mask, other, "volume skipped")
        elif other.shape != one.shape:
            findings.add(mask, _unlike("it", other.shape, one.shape), "volume skipped")
        elif other.orientation and one.orientation not in ("", other.orientation):
            reason = f"its axes lead {other.orientation}, those of its volume {one.orientation}"
            findings.add(mask, reason, "volume skipped")
        else:
            kept.append((source, mask, one))
    return kept


def _header(path: str | None) -> Header | str:
    """What a file is, or what is wrong with it."""
    try:
        return Header((0, 0, 0)) if path is None else volumes.describe(path)
    except SigakError as error:
        return str(error).removeprefix(f"{path} ")


def _tell_turned(rows: Sequence[_Row], findings: Findings) -> None:
    """Name volumes that are stored in another orientation than most."""
    seen = Counter(header.orientation for _, _, header in rows)
    for source, _, header in rows:
        usual = seen.most_common(1)[0][0]
        if header.orientation != usual:
            reason = f"its axes lead {header.orientation or 'anywhere'}, those of most volumes "
            findings.note(source, f"{reason}{usual or 'anywhere'}", "kept as it is stored")


# ------------------------------------------------------------------ classes

_Classes = tuple[list[str], np.ndarray, list[tuple[int, int, int]] | None, set[str]]


def _classes(root: Path, masks: Sequence[str], findings: Findings) -> _Classes:
    """Names, the class of each value, colours, and the masks that cannot be used."""
    file = class_file(root)
    if file is None:
        return _from_values(masks, findings)
    rows = class_rows(file)
    known, palette = meanings(rows)
    if known == {0: 0, 1: 1} and _binary(masks):
        known = {0: 0, IGNORE: 1}
    return [name for name, _, _ in rows], lookup(known), palette, set()


def _binary(masks: Sequence[str]) -> bool:
    """Whether the first masks that can be read hold 0 and 255 alone, and both."""
    found = [values for values in map(_values, masks[:20]) if not isinstance(values, str)]
    return set().union(*found) == {0, IGNORE}


def _from_values(masks: Sequence[str], findings: Findings) -> _Classes:
    """Every value that occurs is a class."""
    with ThreadPoolExecutor(THREADS) as pool:
        seen = dict(zip(masks, pool.map(_values, masks)))
    bad = {m: said.removeprefix(f"{m} ") for m, said in seen.items() if isinstance(said, str)}
    for mask, reason in bad.items():
        findings.add(mask, reason, "volume skipped")
    found = set().union(*(values for values in seen.values() if not isinstance(values, str)))
    if found == {0, IGNORE}:
        reason = "the masks hold 0 and 255 alone"
        findings.note(Path(masks[0]).parent, reason, "taken as background, foreground")
        return [BACKGROUND, "foreground"], lookup({0: 0, IGNORE: 1}), None, set(bad)
    values = sorted(found - {IGNORE})
    if masks and not values:
        raise SigakError(
            f"{Path(masks[0]).parent}: no mask has a class, nothing could be learnt from them"
            + (f"; the first: {next(iter(bad.values()))}" if bad else "")
        )
    known = {value: label for label, value in enumerate(values)}
    return [str(value) for value in values], lookup(known), None, set(bad)


def _values(mask: str) -> set[int] | str:
    return values_of(mask, volumes.read_labels)
