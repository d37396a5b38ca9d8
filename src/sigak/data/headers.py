"""Sizes of many picture files, from their headers: nothing is decoded.

Plain JPEG and PNG files are understood here, in microseconds; whatever is unusual about one (EXIF
or XMP, which may turn it; a damaged or cut end) and every other format is left to `sigak.io.image`.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import BinaryIO, NamedTuple

from sigak.data.splits import THREADS
from sigak.io import image

__all__ = ["Header", "measure"]

_PREFIX = 1 << 16
_PART = 256  # files a thread takes at a time
# Markers that start a frame (ITU T.81, table B.1): C0..CF without tables (C4, C8, CC).
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_TURNING = (b"eXIf", b"tEXt", b"zTXt", b"iTXt")  # chunks that may hold EXIF or XMP


class Header(NamedTuple):
    """size: (H, W) of the upright picture; orientation as EXIF has it, 1 to 8, 1 upright; damage:
    what is wrong with the file, in words, or None. A damaged file has size (0, 0).
    """

    size: tuple[int, int]
    orientation: int = 1
    damage: str | None = None


def measure(paths: Sequence[str | Path]) -> list[Header]:
    """The header of each file, in order; `damage` tells of missing files and cut ones."""
    parts = [paths[i : i + _PART] for i in range(0, len(paths), _PART)]
    with ThreadPoolExecutor(THREADS) as pool:
        return list(chain.from_iterable(pool.map(lambda part: [_read(p) for p in part], parts)))


def _read(path: str | Path) -> Header:
    try:
        with open(path, "rb") as file:
            start = file.read(_PREFIX)
            size = _jpeg(start, file) if start.startswith(b"\xff\xd8") else _png(start, file)
    except (OSError, ValueError):
        size = None  # `check` says it in words
    if size is not None and min(size) > 0:
        return Header(size)
    damage = image.check(path)
    if damage is not None:
        return Header((0, 0), damage=damage)
    facts = image.describe(path)
    return Header(tuple(facts["size"]), facts["orientation"])


def _jpeg(start: bytes, file: BinaryIO) -> tuple[int, int] | None:
    """(H, W) of a whole JPEG without EXIF and XMP; None for any other."""
    size, at = None, 2
    while at + 9 <= len(start) and start[at] == 0xFF:
        marker = start[at + 1]
        if marker == 0xE1:  # APP1
            return None
        if marker == 0xDA:  # the scan starts, so the headers are over
            file.seek(-min(64, file.seek(0, 2)), 2)
            return size if file.read().rstrip(b"\0").endswith(b"\xff\xd9") else None
        if marker in _FRAMES:
            size = _number(start, at + 5, 2), _number(start, at + 7, 2)
        at += 2 + _number(start, at + 2, 2)
    return None


def _png(start: bytes, file: BinaryIO) -> tuple[int, int] | None:
    """(H, W) of a whole PNG without EXIF and XMP; None for any other."""
    if not start.startswith(b"\x89PNG\r\n\x1a\n") or start[12:16] != b"IHDR":
        return None
    at = 8
    while True:
        file.seek(at)
        chunk = file.read(8)
        if len(chunk) < 8 or chunk[4:] in _TURNING:
            return None
        at += 12 + _number(chunk, 0, 4)
        if chunk[4:] == b"IEND":
            whole = file.seek(0, 2) >= at
            return (_number(start, 20, 4), _number(start, 16, 4)) if whole else None


def _number(data: bytes, at: int, count: int) -> int:
    return int.from_bytes(data[at : at + count], "big")
