"""CIFAR-10 and CIFAR-100 in their official binary form: a label or two, then 3,072 pixel bytes.

Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009. The version
the authors publish for Python is a pickle, which may run code when it is opened; it is not read.
"""

from __future__ import annotations

import shutil
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sigak.data import Dataset, Problem, Split, check_labels, decoded_split, locate
from sigak.io.download import download
from sigak.structures import SigakError

__all__ = ["SETS", "read"]

_HOME = "https://www.cs.toronto.edu/~kriz/"
_PIXELS = 3 * 32 * 32  # the red plane, the green one, the blue one, each row by row


@dataclass(frozen=True)
class _Published:
    """One labelling of an archive: its files by split, and which of the label bytes counts."""

    archive: str
    md5: str
    folder: str
    files: dict[str, tuple[str, ...]]
    counts: dict[str, int]
    label_bytes: int
    label_at: int
    names: str
    classes: tuple[str, ...]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_FINE = _words("""
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
    camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile
    cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp
    lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom
    oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
    possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake
    spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor
    train trout tulip turtle
    wardrobe whale willow_tree wolf woman worm""")
_COARSE = _words("""
    aquatic_mammals fish flowers food_containers fruit_and_vegetables household_electrical_devices
    household_furniture insects large_carnivores large_man-made_outdoor_things
    large_natural_outdoor_scenes large_omnivores_and_herbivores
    medium_mammals non-insect_invertebrates people reptiles small_mammals trees vehicles_1
    vehicles_2""")


def _cifar100(label_at: int, names: str, classes: tuple[str, ...]) -> _Published:
    return _Published(
        "cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8", "cifar-100-binary",
        {"train": ("train.bin",), "test": ("test.bin",)}, {"train": 50_000, "test": 10_000},
        2, label_at, names, classes,
    )  # fmt: skip


SETS = {
    "cifar10": _Published(
        "cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530", "cifar-10-batches-bin",
        {"train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test": ("test_batch.bin",)},
        {"train": 50_000, "test": 10_000}, 1, 0, "batches.meta.txt",
        _words("airplane automobile bird cat deer dog frog horse ship truck"),
    ),
    "cifar100": _cifar100(1, "fine_label_names.txt", _FINE),
    "cifar100-coarse": _cifar100(0, "coarse_label_names.txt", _COARSE),
}  # fmt: skip


def read(name: str, fetch: bool = False) -> Dataset:
    """The set called `name`, "train" and "test"; `fetch` allows a missing archive to be fetched.

    Class names are read from the set's own text file where it is there. Raises SigakError when the
    set is not found, or a file is cut or holds a label beyond the classes.
    """
    published = SETS[name]
    wanted = [file for files in published.files.values() for file in files]

    def fetch_into(folder: Path) -> None:
        archive = download(_HOME + published.archive, folder / published.archive, md5=published.md5)
        _unpack(archive, [*wanted, published.names])
        archive.unlink()

    folder = locate(name, published.folder, wanted, fetch_into if fetch else None)
    classes = _class_names(folder / published.names, published.classes)
    splits: dict[str, Split] = {}
    problems: list[Problem] = []
    for split, files in published.files.items():
        pixels, labels = _read_files([folder / file for file in files], published, len(classes))
        splits[split] = decoded_split(name, split, pixels, labels)
        if len(pixels) != published.counts[split]:
            reason = f"{len(pixels)} pictures, officially {published.counts[split]}"
            problems.append(Problem(f"{name}/{split}", reason, "kept"))
    return Dataset(name, classes, splits, "rgb", problems, folder)


def _read_files(
    paths: list[Path], published: _Published, classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (N, 32, 32, 3) uint8 and labels (N,) uint8 of the records in `paths`."""
    length = published.label_bytes + _PIXELS
    counts = [_record_count(path, length) for path in paths]
    pixels = np.empty((sum(counts), 32, 32, 3), np.uint8)
    labels = np.empty(sum(counts), np.uint8)
    start = 0
    for path, count in zip(paths, counts):
        records = np.fromfile(path, np.uint8, count * length).reshape(count, length)
        part = slice(start, start + count)
        labels[part] = records[:, published.label_at]
        check_labels(labels[part], classes, path)
        planes = records[:, published.label_bytes :].reshape(count, 3, 32, 32)
        for channel in range(3):
            pixels[part, :, :, channel] = planes[:, channel]
        start += count
    return pixels, labels


def _record_count(path: Path, length: int) -> int:
    size = path.stat().st_size
    if size == 0 or size % length:
        raise SigakError(
            f"{path}: expected whole records of {length} bytes, received {size} bytes; the file is "
            "cut or foreign, delete it and fetch it again with --download"
        )
    return size // length


def _class_names(path: Path, known: tuple[str, ...]) -> list[str]:
    if not path.exists():
        return list(known)
    names = path.read_text("utf-8", "replace").split()
    if len(set(names)) != len(known):
        raise SigakError(
            f"{path}: expected {len(known)} different class names, received {len(set(names))}; "
            "delete the file to use the official names"
        )
    return names


def _unpack(archive: Path, wanted: list[str]) -> None:
    """Put the files called `wanted`, from any folder of the archive, beside it; nothing else."""
    missing = set(wanted)
    with tarfile.open(archive) as tar:
        for member in tar:
            name = member.name.rpartition("/")[2]
            source = tar.extractfile(member) if name in missing and member.isfile() else None
            if source is None:
                continue
            part = archive.with_name(name + ".part")
            with source, part.open("wb") as target:
                shutil.copyfileobj(source, target)
            part.replace(archive.with_name(name))
            missing.discard(name)
    if missing:
        raise SigakError(
            f"{archive}: expected it to hold {', '.join(sorted(missing))}, which it does not"
        )
