"""Fetch a file over http(s): resumed after a cut, checked, put in place in one step.

The file grows as `NAME.part` beside its place and takes its own name only when it is whole and its
checksum is right, so a file under its own name is never half of one, whatever happens to the
process.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO
from urllib import request
from urllib.error import HTTPError
from urllib.parse import urlsplit

from sigak.structures import SigakError

__all__ = ["WAITS", "cache_folder", "download"]

# Seconds before each new try; the count starts again whenever bytes arrive.
WAITS = (0.5, 1.0, 2.0, 4.0)
_TIMEOUT = 30.0  # seconds without a byte before a connection counts as lost
_BLOCK = 1 << 18  # bytes read at a time
_SHORTEST_PREFIX = 8  # hex digits of a SHA-256 that publishers put into file names

_Show = Callable[[int, int | None], None]  # bytes so far, bytes in all where known


class _LostError(Exception):
    """The connection failed in a way that may pass; the message says how."""


def cache_folder() -> Path:
    """Where downloads are kept: $SIGAK_CACHE, else `sigak` in the platform's folder for caches."""
    if named := os.environ.get("SIGAK_CACHE"):
        return Path(named).expanduser()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    elif sys.platform == "darwin":
        base = "~/Library/Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "sigak"


def download(
    url: str,
    path: str | Path,
    *,
    sha256: str | None = None,
    md5: str | None = None,
    progress: bool = True,
) -> Path:
    """The file of `url` at `path`, fetched unless it is there already with the right checksum.

    sha256 is the whole digest or at least its first 8 hex digits; md5 the whole one. A part left by
    a killed process is continued when a checksum can tell whether the two halves belong together. A
    second process that wants the same file waits for the first. `progress` shows a bar on a
    terminal. Proxies are taken from HTTP_PROXY, HTTPS_PROXY and NO_PROXY.

    Raises SigakError when the address is refused or out of reach, the disk is full, or the checksum
    is wrong; in that last case what was received is removed.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise SigakError(
            f"expected an address that begins with https:// or http://, received {url!r}"
        )
    if sha256 is not None and len(sha256) < _SHORTEST_PREFIX:
        raise SigakError(
            f"expected at least {_SHORTEST_PREFIX} hex digits of a SHA-256, received {sha256!r}"
        )
    path = Path(path)
    if _is_right(path, sha256, md5):
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(path):
            if not _is_right(path, sha256, md5):
                _fetch(url, path, sha256, md5, progress)
    except OSError as error:
        raise SigakError(_disk_words(error, path)) from error
    return path


def _fetch(url: str, path: Path, sha256: str | None, md5: str | None, progress: bool) -> None:
    part = _part(path)
    with part.open("ab") as file:
        if not (sha256 or md5):
            file.truncate(0)  # nothing could tell whether an old part is of the same file
        with _bar(path.name, progress) as show:
            _fill(url, path, file, show)
        file.flush()
        os.fsync(file.fileno())
    if fault := _wrong_digest(part, sha256, md5):
        part.unlink()
        raise SigakError(
            f"{url}: {fault}; what was received has been removed. Try again; if it happens again, "
            "the file was changed by its publisher or on the way"
        )
    part.replace(path)


def _fill(url: str, path: Path, file: BinaryIO, show: _Show) -> None:
    """Bring the open part to its whole length, trying again while the connection fails."""
    failures = 0
    while True:
        before = _length(file)
        try:
            _receive(url, path, file, show)
            return
        except _LostError as error:
            failures = 1 if _length(file) > before else failures + 1
            if failures > len(WAITS):
                raise SigakError(
                    f"cannot fetch {url}: {error}; check the connection and the proxy "
                    f"(HTTPS_PROXY), or fetch the file by hand and put it at {path}"
                ) from error
            time.sleep(WAITS[failures - 1])


def _receive(url: str, path: Path, file: BinaryIO, show: _Show) -> None:
    """One connection: ask for what the part lacks and append it; _LostError when it is cut."""
    have = _length(file)
    headers = {"User-Agent": "sigak"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        response = _opener().open(request.Request(url, headers=headers), timeout=_TIMEOUT)
    except HTTPError as error:
        if not _is_whole(error, have):
            _refuse(url, path, file, error)
        return
    except (OSError, http.client.HTTPException) as error:
        raise _LostError(_words(error)) from error
    with response:
        if have and not _continues(response, have):
            file.truncate(0)
            have = 0
        announced = response.headers.get("Content-Length")
        whole = have + int(announced) if announced else None
        _check_space(path, whole, have)
        while block := _read(response):
            file.write(block)
            have += len(block)
            show(have, whole)
    if whole is not None and have < whole:
        raise _LostError(f"the connection ended after {have} of {whole} bytes")


def _read(response: Any) -> bytes:
    # Apart from the writing, so that trouble with the disk is not taken for trouble with the
    # network.
    try:
        return bytes(response.read(_BLOCK))
    except (OSError, http.client.HTTPException) as error:
        raise _LostError(_words(error)) from error


def _continues(response: Any, have: int) -> bool:
    """Whether the answer is the rest of the file; a server that knows no ranges sends all of it."""
    sent = str(response.headers.get("Content-Range", ""))
    return response.status == 206 and sent.startswith(f"bytes {have}-")


def _is_whole(error: HTTPError, have: int) -> bool:
    """Whether the server says that nothing lies beyond the bytes we have."""
    return error.code == 416 and error.headers.get("Content-Range") == f"bytes */{have}"


def _refuse(url: str, path: Path, file: BinaryIO, error: HTTPError) -> None:
    """Raise _LostError for an error status that may pass, SigakError for one that will not."""
    status = f"{error.code} {error.reason}"
    error.close()
    if error.code == 416:
        file.truncate(0)
        raise _LostError("the part of an earlier try does not belong to this file")
    if error.code in (408, 425, 429) or error.code >= 500:
        raise _LostError(f"the server answered {status}")
    raise SigakError(
        f"cannot fetch {url}: the server answered {status}; fetch the file by hand from its "
        f"publisher and put it at {path}"
    )


def _opener() -> request.OpenerDirector:
    """An opener for http and https alone: no redirection leads to a local file or to ftp."""
    opener = request.OpenerDirector()
    for handler in (
        request.ProxyHandler,
        request.HTTPHandler,
        request.HTTPSHandler,
        request.HTTPRedirectHandler,
        request.HTTPErrorProcessor,
        request.HTTPDefaultErrorHandler,
        request.UnknownHandler,
    ):
        opener.add_handler(handler())
    return opener


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold the only right to fetch `path`; the system gives it back when a process dies."""
    lock = path.with_name(path.name + ".lock")
    with lock.open("ab") as file:
        if sys.platform == "win32":
            import msvcrt

            while True:
                with suppress(OSError):  # it gives up after ten seconds, and we ask again
                    msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)
                    break
        else:
            import fcntl

            with suppress(OSError):  # some network file systems know no locks
                fcntl.flock(file, fcntl.LOCK_EX)
        yield
    # Whoever waits on the removed file finds the whole one when its turn comes.
    with suppress(OSError):
        lock.unlink()


def _part(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def _length(file: BinaryIO) -> int:
    return file.seek(0, os.SEEK_END)


def _check_space(path: Path, whole: int | None, have: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if whole is not None and whole - have > free:
        needed = f"{(whole - have) / 1e6:,.1f} MB are needed, {free / 1e6:,.1f} MB are free"
        raise OSError(errno.ENOSPC, needed)


def _disk_words(error: OSError, path: Path) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"no space on disk for {path} ({error.strerror}); make room, or name another folder in "
            "SIGAK_CACHE, and run it again"
        )
    return f"cannot write {path} ({_words(error)}); name another folder in SIGAK_CACHE"


def _words(error: Exception) -> str:
    """What an error says, or its kind where it says nothing."""
    return str(getattr(error, "reason", "") or error) or type(error).__name__


def _is_right(path: Path, sha256: str | None, md5: str | None) -> bool:
    return path.exists() and not _wrong_digest(path, sha256, md5)


def _wrong_digest(path: Path, sha256: str | None, md5: str | None) -> str:
    """What is wrong with the file's checksums, in words; empty when right or none is known."""
    for kind, expected in (("sha256", sha256), ("md5", md5)):
        if expected is None:
            continue
        with path.open("rb") as file:
            # MD5 is what some publishers give: it finds damage and is no defence against forgery.
            new = partial(hashlib.new, kind, usedforsecurity=False)
            received = hashlib.file_digest(file, new).hexdigest()
        length = len(expected) if kind == "sha256" else len(received)
        if received[:length] != expected.lower():
            return f"expected {kind} {expected}, received {received}"
    return ""


@contextmanager
def _bar(name: str, visible: bool) -> Iterator[_Show]:
    """Yields a function that draws how far the download is, on a terminal's standard error."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    with Progress(*columns, console=console, disable=not (visible and console.is_terminal)) as bar:
        task = bar.add_task(name, total=None)
        yield lambda done, whole: bar.update(task, completed=done, total=whole)
