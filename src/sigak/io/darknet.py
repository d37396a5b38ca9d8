"""Files of Darknet: networks as .cfg text, and their weights as .weights.

A .cfg is a list of sections such as [convolutional], each with lines "key=value"; the first, [net],
says the input. A .weights file is a header (three int32 of the version, then how many pictures were
seen in training: 8 bytes since version 0.2, 4 before) and float32 numbers, nothing else: which
layer they belong to follows from the .cfg alone. Everything is little-endian.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from sigak.structures import Failure, SigakError

__all__ = [
    "Section", "StoredWeights", "format_cfg", "parse_cfg", "read_cfg", "read_weights",
    "write_weights",
]  # fmt: skip

_VERSION = (0, 2, 5)  # what is written: `seen` has 8 bytes
_T = TypeVar("_T")


@dataclass(frozen=True)
class Section:
    """One section of a .cfg: its kind (the word in brackets), its options, where it stands."""

    kind: str
    options: dict[str, str] = field(default_factory=dict)
    where: str = ""

    def whole(self, key: str, default: int | None = None) -> int:
        """The whole number `key`; SigakError where it is none, or missing without a default."""
        return self._as(key, default, int, "a whole number")

    def real(self, key: str, default: float | None = None) -> float:
        """The number `key`."""
        return self._as(key, default, float, "a number")

    def word(self, key: str, default: str | None = None) -> str:
        """The text of `key`."""
        return self._as(key, default, str, "a word")

    def wholes(self, key: str, default: Sequence[int] | None = None) -> tuple[int, ...]:
        """The whole numbers of `key`, divided by commas."""
        return tuple(self._as(key, default, _list_of(int), "whole numbers divided by commas"))

    def reals(self, key: str, default: Sequence[float] | None = None) -> tuple[float, ...]:
        """The numbers of `key`, divided by commas."""
        return tuple(self._as(key, default, _list_of(float), "numbers divided by commas"))

    def _as(self, key: str, default: _T | None, read: Callable[[str], _T], form: str) -> _T:
        text = self.options.get(key)
        if text is None and default is not None:
            return default
        try:
            return read(text or "")
        except ValueError:
            got = "nothing" if text is None else repr(text)
            raise SigakError(
                f"[{self.kind}]{self.where}: expected {form} for {key}, received {got}"
            ) from None


def _list_of(kind: Callable[[str], _T]) -> Callable[[str], Sequence[_T]]:
    return lambda text: [kind(part) for part in text.strip(" ,").split(",")]


def parse_cfg(text: str) -> list[Section]:
    """The sections of a .cfg's text; "#" and ";" begin comments. The first must be [net]."""
    sections: list[Section] = []
    for number, line in enumerate(text.splitlines(), 1):
        line = line.split("#")[0].split(";")[0].strip()
        if line.startswith("[") and line.endswith("]"):
            sections.append(Section(line[1:-1].strip().lower(), {}, f" of line {number}"))
        elif "=" in line and sections:
            key, value = line.split("=", 1)
            sections[-1].options[key.strip()] = value.strip()
        elif line:
            raise SigakError(
                f"line {number} of the .cfg: expected [section] or key=value, received {line!r}"
            )
    if not sections or sections[0].kind not in ("net", "network"):
        first = f"[{sections[0].kind}]" if sections else "no section"
        raise SigakError(f"a .cfg begins with [net], received {first}; give a whole file")
    return sections


def read_cfg(path: str | Path) -> str:
    """The text of a .cfg file, which `parse_cfg` reads."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SigakError(f"{path} cannot be read as a .cfg file ({error})") from error


def format_cfg(sections: Iterable[Section]) -> str:
    """Sections as the text of a .cfg file."""
    return "\n".join(
        "".join([f"[{s.kind}]\n", *(f"{key}={value}\n" for key, value in s.options.items())])
        for s in sections
    )


class StoredWeights(NamedTuple):
    """What a .weights file holds: numbers (N,) float32, version, pictures seen in training."""

    numbers: np.ndarray
    version: tuple[int, int, int]
    seen: int


def read_weights(path: str | Path) -> StoredWeights:
    """The numbers of a .weights file, in the order of its .cfg; SigakError where it is cut."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise SigakError(f"{path} cannot be read ({error})") from error
    major, minor, revision = struct.unpack_from("<3i", data) if len(data) >= 12 else (-1, -1, -1)
    if not (0 <= major < 1000 and 0 <= minor < 1000):
        raise SigakError(
            f"{path} is not a .weights file of Darknet: expected a version such as 0.2.5 in its "
            f"first 12 bytes, received {len(data)} bytes that begin with {data[:12]!r}"
        )
    form = "<Q" if major * 10 + minor >= 2 else "<I"
    start = 12 + struct.calcsize(form)
    if len(data) < start or (len(data) - start) % 4:
        raise SigakError(
            f"{path} is cut: expected a header of {start} bytes and whole numbers of 4 bytes, "
            f"received {len(data)} bytes; copy it again"
        )
    (seen,) = struct.unpack_from(form, data, 12)
    numbers = np.frombuffer(data, "<f4", offset=start).astype(np.float32)
    return StoredWeights(numbers, (major, minor, revision), seen)


def write_weights(path: str | Path, numbers: np.ndarray, seen: int = 0) -> None:
    """Write a .weights file of version 0.2.5; it appears whole or not at all."""
    path = Path(path)
    part = path.with_name(path.name + ".part")
    header = struct.pack("<3iQ", *_VERSION, seen)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(header + np.ascontiguousarray(numbers, "<f4").tobytes())
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise Failure(f"{path} could not be written ({error}); free some space") from error
