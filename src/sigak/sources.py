"""What there is to answer for: pictures, folders, patterns, lists, videos, streams, cameras.

`find` looks once and reads no picture; `shots` then hands out one picture or frame after another,
so that a video of any length needs no more memory than a short one.
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sigak.data import Problem
from sigak.io import image, video, volumes
from sigak.io.video import Frame, Video
from sigak.structures import SigakError

__all__ = ["Shot", "Source", "find", "find_volumes", "shots"]

_ROUND = 8  # frames of a file that are answered together: they are kept whole, to be drawn on
_LISTS = ".txt"


@dataclass(frozen=True)
class Source:
    """A picture, or a video if `moving`: its name, and what `image.read` or `Video` takes."""

    name: str
    thing: object
    moving: bool = False


@dataclass(frozen=True)
class Shot:
    """One picture, or one frame of a video as "clip.mp4#12": what `image.read` takes, and how many
    may wait to be answered together.
    """

    name: str
    thing: object
    frame: Frame | None = None
    together: int = 1 << 30

    @property
    def origin(self) -> object:
        """The frame, else what the picture is read from."""
        return self.frame or self.thing


def find(given: object) -> list[Source]:
    """The pictures and videos that are meant, in order.

    Beside what `image.expand` takes: a video file; a folder or pattern with videos among the
    pictures; a .txt file with a path, a pattern or an address a line, relative paths from the
    working folder or else from the file's; rtsp://, http:// and other addresses; a camera's number
    such as "0", unless a file has that name. An animated GIF is a picture, its first frame.
    """
    if isinstance(given, Source):
        return [given]
    if isinstance(given, (str, Path)):
        return _from_words(given)
    if isinstance(given, (list, tuple)) and any(isinstance(g, (str, Path, Source)) for g in given):
        found = [source for one in given for source in find(one)]
        return [
            replace(one, name=f"image#{i}") if one.name.startswith("image#") else one
            for i, one in enumerate(found)
        ]
    return [Source(name, thing) for name, thing in image.expand(given)]


def find_volumes(given: object) -> list[Source]:
    """The volumes that are meant, in order: files, folders (searched in depth, sorted, hidden files
    left out), patterns, arrays (D, H, W), or lists of them.
    """
    if isinstance(given, Source):
        return [given]
    if isinstance(given, np.ndarray):
        return [Source("volume#0", given)]
    if isinstance(given, (list, tuple)):
        found = [source for one in given for source in find_volumes(one)]
        return [
            replace(one, name=f"volume#{i}") if one.name.startswith("volume#") else one
            for i, one in enumerate(found)
        ]
    if not isinstance(given, (str, Path)):
        raise SigakError(
            f"a volume is a file or an array (D, H, W), received {type(given).__name__}"
        )
    path = Path(given).expanduser()
    if path.is_file():
        return [Source(str(path), path)]
    if path.is_dir():
        inside = [p for p in path.rglob("*") if "/." not in f"/{p.relative_to(path).as_posix()}"]
    else:
        inside = [Path(name) for name in glob.iglob(str(path), recursive=True)]
    files = sorted(p for p in inside if volumes.is_volume(p) and p.is_file())
    if not files:
        raise SigakError(
            f"no volume found: {path} is no file, and as a folder or pattern it holds none of "
            f"{' '.join(volumes.SUFFIXES)}"
        )
    return [Source(str(p), p) for p in files]


def _from_words(words: str | Path) -> list[Source]:
    path = Path(words).expanduser()
    if path.is_file():
        return _from_list(path) if path.suffix.lower() == _LISTS else [_of_file(path)]
    if isinstance(words, str) and video.is_live_address(words):
        return [Source(words, words, moving=True)]
    if path.is_dir():
        # The root's own parts do not count: a folder may be reached through a hidden one.
        inside = [p for p in path.rglob("*") if "/." not in f"/{p.relative_to(path).as_posix()}"]
    else:
        inside = [Path(name) for name in glob.iglob(str(path), recursive=True)]
    known = (*image.SUFFIXES, *video.SUFFIXES)
    found = sorted(p for p in inside if p.suffix.lower() in known and p.is_file())
    if not found:
        raise SigakError(
            f"no picture found, and no video: {path} is no file, and as a folder or pattern it "
            f"holds none of {' '.join(known)}"
        )
    return [_of_file(p) for p in found]


def _of_file(path: Path) -> Source:
    return Source(str(path), path, moving=path.suffix.lower() in video.SUFFIXES)


def _from_list(path: Path) -> list[Source]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise SigakError(f"{path} should list one path a line, but it is no text") from error
    words = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not words:
        raise SigakError(f"{path} should list one path a line, but it is empty")
    found: list[Source] = []
    for line in words:
        if line.lower().endswith(_LISTS):
            raise SigakError(f"{path} names another list, {line}; name pictures and videos in it")
        if not _exists(Path(line)) and _exists(path.parent / line):
            found += _from_words(path.parent / line)
        elif Path(line).suffix.lower() in image.SUFFIXES and not glob.has_magic(line):
            # A picture that is nowhere keeps its place: it is told of when its turn comes.
            found.append(Source(line, Path(line)))
        else:
            found += _from_words(line)
    return found


def _exists(path: Path) -> bool:
    """Whether there is such a file or folder, or one that fits the pattern."""
    return path.exists() or any(glob.iglob(str(path), recursive=True))


def shots(
    sources: Sequence[Source], *, every: int = 1, problems: list[Problem] | None = None
) -> Iterator[Shot]:
    """Every picture, and of videos the frames 0, every, 2 every, ...

    problems: a list that takes up videos that cannot be opened and frames that are damaged; without
    it the first raises SigakError.
    """
    if every < 1:
        raise SigakError(f"--every must be at least 1, received {every}")
    for source in sources:
        if not source.moving:
            yield Shot(source.name, source.thing)
            continue
        try:
            opened = Video(str(source.thing))
        except SigakError as error:
            if problems is None:
                raise
            problems.append(Problem(source.name, str(error), "skipped"))
            continue
        together = 1 if opened.live else _ROUND
        for frame in opened.frames(every, _reporter(opened.name, problems)):
            yield Shot(f"{opened.name}#{frame.index}", frame.pixels, frame, together)


def _reporter(name: str, problems: list[Problem] | None) -> Callable[[str], None] | None:
    if problems is None:
        return None
    return lambda reason: problems.append(Problem(name, reason, "skipped"))
