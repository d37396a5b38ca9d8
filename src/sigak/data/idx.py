"""MNIST and Fashion-MNIST in their official form: four idx files, gzipped or plain.

Sources: Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, "Gradient-Based Learning Applied to Document
Recognition", 1998; H. Xiao, K. Rasul, R. Vollgraf, "Fashion-MNIST: a Novel Image Dataset for
Benchmarking Machine Learning Algorithms", 2017 (MIT licence).
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sigak.data import Dataset, Problem, Split, check_labels, decoded_split, find_file, locate
from sigak.io.download import download
from sigak.structures import SigakError

__all__ = ["SETS", "read", "read_idx"]

_UINT8 = 8  # the idx code of unsigned bytes, the only element type these sets use
_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
_COUNTS = {"train": 60_000, "test": 10_000}


@dataclass(frozen=True)
class _Published:
    """Where a set is published, and the MD5 of each of its .gz files in the order of `_FILES`."""

    url: str
    md5: tuple[str, str, str, str]
    classes: tuple[str, ...]


SETS = {
    "mnist": _Published(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        (
            "f68b3c2dcbeaaa9fbdd348bbdeb94873", "d53e105ee54ea40749a09fcbcd1e9432",
            "9fb629c4189551a2d022fa330f9573f3", "ec29112dd5afa0611ce80d1b7f02629c",
        ),
        tuple("0123456789"),
    ),
    "fashion-mnist": _Published(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        (
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d", "25c81989df183df01b3e8a0aad5dffbe",
            "bef4ecab320f06d8554ea6380940ec79", "bb300cfdad3c16e7a12a480ee83cd310",
        ),
        (
            "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
            "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
        ),
    ),
}  # fmt: skip


def read(name: str, fetch: bool = False) -> Dataset:
    """The set called `name`, "train" and "test"; `fetch` allows missing files to be fetched.

    Raises SigakError when the set is not found, or a file is cut, foreign or holds a label beyond
    the classes.
    """
    published = SETS[name]
    wanted = [file for pair in _FILES.values() for file in pair]

    def fetch_into(folder: Path) -> None:
        for file, md5 in zip(wanted, published.md5):
            download(f"{published.url}{file}.gz", folder / f"{file}.gz", md5=md5)

    folder = locate(name, name, wanted, fetch_into if fetch else None)
    splits: dict[str, Split] = {}
    problems: list[Problem] = []
    for split in _FILES:
        splits[split] = _read_split(name, split, folder, len(published.classes))
        if len(splits[split]) != _COUNTS[split]:
            reason = f"{len(splits[split])} pictures, officially {_COUNTS[split]}"
            problems.append(Problem(f"{name}/{split}", reason, "kept"))
    return Dataset(name, list(published.classes), splits, "gray", problems, folder)


def _read_split(name: str, split: str, folder: Path, classes: int) -> Split:
    image_path, label_path = (find_file(folder / file) for file in _FILES[split])
    images, labels = read_idx(image_path, 3), read_idx(label_path, 1)
    if len(images) != len(labels) or not len(images):
        raise SigakError(
            f"expected as many labels as pictures, at least one; received {len(images)} pictures "
            f"in {image_path} and {len(labels)} labels in {label_path}; delete both and fetch them "
            "again with --download"
        )
    check_labels(labels, classes, label_path)
    return decoded_split(name, split, images[..., None], labels)


def read_idx(path: Path, ndim: int) -> np.ndarray:
    """The uint8 array of `ndim` dimensions in an idx file, gzipped where its name says .gz.

    An idx file is two zero bytes, the element type, the number of dimensions, each dimension as a
    big-endian 32-bit integer, then the elements. Raises SigakError for anything else.
    """
    advice = "delete it and fetch it again with --download"
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise SigakError(f"{path}: expected a whole file, received {error}; {advice}") from error
    start = 4 + 4 * ndim
    if data[:4] != bytes([0, 0, _UINT8, ndim]) or len(data) < start:
        raise SigakError(
            f"{path}: expected an idx file of bytes in {ndim} dimensions, received a file "
            f"beginning with {data[:4].hex(' ') or 'nothing'}; {advice}"
        )
    shape = struct.unpack(f">{ndim}I", data[4:start])
    if len(data) - start != math.prod(shape):
        raise SigakError(
            f"{path}: expected {math.prod(shape)} bytes of data for its shape {shape}, received "
            f"{len(data) - start}; {advice}"
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape).copy()
