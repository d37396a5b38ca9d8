"""Videos, streams and cameras: frames in, frames out, one at a time.

PyAV (the extra `video`) decodes and encodes; cameras are opened by OpenCV, by their number. A frame
is uint8 RGB (H, W, 3), turned as the video's rotation says. Memory does not grow with the length.
"""

from __future__ import annotations

import math
import re
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2
import numpy as np

from sigak.structures import SigakError

__all__ = ["SUFFIXES", "Frame", "Video", "Writer", "is_live_address"]

SUFFIXES = (
    ".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".m2ts", ".mts",
    ".wmv", ".flv", ".3gp", ".ogv", ".mjpeg", ".mjpg", ".h264", ".hevc",
)  # fmt: skip
"""File endings, in lower case, that folders and patterns are searched for."""

_ADDRESS = re.compile(r"(rtsps?|rtmps?|https?|udp|tcp|srt|rtp)://", re.IGNORECASE)
_PATIENCE = 10.0  # seconds a server may stay silent
_ENCODERS = ("libx264", "libopenh264", "mpeg4")  # the first that PyAV was built with

_Report = Callable[[str], None]


def is_live_address(source: str) -> bool:
    """Whether `source` is the address of a stream, or the number of a camera."""
    return bool(_ADDRESS.match(source)) or source.isdecimal()


@dataclass(frozen=True)
class Frame:
    """pixels (H, W, 3) uint8 RGB, upright; index counts the video's frames from 0; seconds since
    the first.
    """

    pixels: np.ndarray
    index: int
    seconds: float
    video: Video


class Video:
    """A video file, the address of a stream (rtsp://, http://, ...) or a camera's number as "0".

    `name` is what is shown of it, without a password; `rate` frames a second and `count` of frames
    are what the container says, 0 where it says nothing; `live` says that frames come whether they
    are read or not. Opening raises SigakError; the network is reached for addresses only.
    """

    def __init__(self, source: str | Path) -> None:
        self.source = str(source)
        address = bool(_ADDRESS.match(self.source))
        camera = not address and self.source.isdecimal() and not Path(source).exists()
        self.name = re.sub(r"(://)[^/@]*@", r"\1", self.source) if address else self.source
        self.count = 0
        self._camera: cv2.VideoCapture | None = None
        if camera:
            self._camera = _open_camera(int(self.source))
            self.rate = float(self._camera.get(cv2.CAP_PROP_FPS)) or 0.0
            self.live = True
        else:
            self._container = _open_container(self.source, address, self.name)
            stream = self._container.streams.video[0]
            stream.thread_type = "AUTO"
            self.rate = float(stream.average_rate or stream.guessed_rate or 0)
            self.count = stream.frames or self._estimate(stream)
            # A file on a web server has an end, and waits to be read.
            on_demand = self.source.lower().startswith("http") and self._container.duration
            self.live = address and not on_demand

    def _estimate(self, stream: Any) -> int:
        """Containers such as Matroska know their length in time alone."""
        if stream.duration is not None:
            seconds = float(stream.duration * stream.time_base)
        else:
            seconds = (self._container.duration or 0) / 1e6
        return max(0, round(seconds * self.rate))

    def frames(self, every: int = 1, report: _Report | None = None) -> Iterator[Frame]:
        """Frames 0, every, 2 every, ...; the video is closed when they end or are given up.

        report: is told of each damaged frame, which is left out; without it the first raises
        SigakError. Of a live video the newest frame comes, and those that nobody waited for do not.
        """
        if every < 1:
            raise SigakError(f"--every must be at least 1, received {every}")
        told = report or self._refuse
        frames = (
            self._from_camera(self._camera, every)
            if self._camera
            else self._from_container(every, told)
        )
        return _newest(frames) if self.live else frames

    def _refuse(self, reason: str) -> None:
        raise SigakError(f"{self.name}: {reason}")

    def _from_camera(self, camera: cv2.VideoCapture, every: int) -> Generator[Frame]:
        index, begun = 0, time.monotonic()
        try:
            while camera.grab():
                if index % every == 0:
                    _, pixels = camera.retrieve()
                    rgb = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
                    yield Frame(rgb, index, time.monotonic() - begun, self)
                index += 1
        finally:
            camera.release()

    def _from_container(self, every: int, report: _Report) -> Generator[Frame]:
        index, first = 0, None
        try:
            for decoded in self._decoded(report):
                if decoded is not None and index % every == 0:
                    seconds = decoded.time
                    if seconds is None:  # raw streams carry no times
                        seconds = index / (self.rate or 25.0)
                    first = seconds if first is None else first
                    yield Frame(_upright(decoded), index, seconds - first, self)
                index += 1
        finally:
            self._container.close()

    def _decoded(self, report: _Report) -> Iterator[Any]:
        """PyAV's frames in turn, None in place of a damaged one."""
        import av

        packets, place = self._container.demux(video=0), 0
        while True:
            try:
                packet = next(packets)
                for frame in packet.decode():
                    if frame.is_corrupt:
                        report(f"frame {place} is damaged")
                    yield None if frame.is_corrupt else frame
                    place += 1
            except (StopIteration, av.error.EOFError):
                return
            except av.error.InvalidDataError as error:
                report(f"frame {place} is damaged ({error.strerror})")
                place += 1
                yield None
            except av.error.FFmpegError as error:  # a server that fell silent, a disk that failed
                report(f"ends after frame {place - 1} ({error.strerror})")
                return


def _open_camera(number: int) -> cv2.VideoCapture:
    doors = {"linux": cv2.CAP_V4L2, "darwin": cv2.CAP_AVFOUNDATION, "win32": cv2.CAP_DSHOW}
    log = cv2.utils.logging
    level = log.setLogLevel(log.LOG_LEVEL_SILENT)  # OpenCV would print a warning of its own
    camera = cv2.VideoCapture(number, doors.get(sys.platform, cv2.CAP_ANY))
    log.setLogLevel(level)
    if not camera.isOpened():
        raise SigakError(
            f"no camera {number} can be opened; look whether it is plugged in, not in use, and "
            f"allowed to this program (for a picture of that name write ./{number})"
        )
    return camera


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise SigakError("videos need the package av: pip install 'sigak[video]'") from error
    return av


def _open_container(source: str, address: bool, name: str) -> Any:
    av = _av()
    if not address and not Path(source).is_file():
        raise SigakError(f"there is no video {source} (looked in {Path.cwd()})")
    # A file may name others inside itself; none of them leads to the network.
    options = {"rtsp_transport": "tcp"} if address else {"protocol_whitelist": "file"}
    try:
        container = av.open(
            source if address else f"file:{source}",
            options=options,
            timeout=_PATIENCE if address else None,
        )
    except (av.error.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise SigakError(f"{name} cannot be opened as a video ({reason})") from error
    if not container.streams.video or container.streams.video[0].codec_context is None:
        container.close()
        raise SigakError(f"{name} has no video that can be decoded, only sound or other data")
    return container


def _upright(decoded: Any) -> np.ndarray:
    """(H, W, 3) uint8; phones write frames as the sensor lies, and the turn beside them."""
    pixels = decoded.to_ndarray(format="rgb24")
    return np.ascontiguousarray(np.rot90(pixels, round(decoded.rotation / 90) % 4))


# ------------------------------------------------------------------ live


def _newest(frames: Generator[Frame]) -> Iterator[Frame]:
    """The newest of `frames` whenever one is asked for: a thread reads on, and keeps one alone."""
    slot = _Slot()

    def read() -> None:
        try:
            for frame in frames:
                if not slot.put(frame):
                    break
        except BaseException as error:  # travels to the reader
            slot.end(error)
        else:
            slot.end(None)
        finally:
            frames.close()

    thread = threading.Thread(target=read, name="sigak-video", daemon=True)
    thread.start()
    try:
        while (frame := slot.take()) is not None:
            yield frame
    finally:
        slot.leave()
        thread.join(_PATIENCE)


class _Slot:
    """Room for one frame between two threads."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.frame: Frame | None = None
        self.ended = self.left = False
        self.error: BaseException | None = None

    def put(self, frame: Frame) -> bool:
        """Replace what lies there; False once nobody takes any more."""
        with self.changed:
            self.frame = frame
            self.changed.notify()
            return not self.left

    def end(self, error: BaseException | None) -> None:
        with self.changed:
            self.ended, self.error = True, error
            self.changed.notify()

    def take(self) -> Frame | None:
        """Wait for a frame; None at the end."""
        with self.changed:
            # In steps, so that Ctrl-C is heard on Windows too.
            while self.frame is None and not self.ended:
                self.changed.wait(0.2)
            frame, self.frame = self.frame, None
        if frame is None and self.error is not None:
            raise self.error
        return frame

    def leave(self) -> None:
        with self.changed:
            self.left = True


# ------------------------------------------------------------------ writing


class Writer:
    """Writes frames into an .mp4: H.264 where PyAV brings an encoder for it, else MPEG-4.

    All frames take the first one's size; an odd side loses a row, as the codecs want even ones.
    Times are kept, so that a video whose frames come unevenly, or of which only some are shown,
    lasts as long as it did. Use as a context: leaving it, on whatever way, completes the file.
    """

    def __init__(self, path: str | Path, rate: float) -> None:
        self.path = Path(path)
        self.rate = rate if 0 < rate <= 240 and math.isfinite(rate) else 25.0
        self.size = (0, 0)
        self._container: Any = None
        self._stream: Any = None
        self._last = -1

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def write(self, pixels: np.ndarray, seconds: float) -> None:
        """Add a frame (H, W, 3) uint8 RGB that is shown at `seconds`."""
        if self._container is None:
            self._open(pixels.shape[0], pixels.shape[1])
        height, width = self.size
        if pixels.shape[0] - height not in (0, 1) or pixels.shape[1] - width not in (0, 1):
            pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
        frame = _av().VideoFrame.from_ndarray(
            np.ascontiguousarray(pixels[:height, :width]), format="rgb24"
        )
        self._last = max(self._last + 1, round(seconds * 1000))
        frame.pts, frame.time_base = self._last, Fraction(1, 1000)
        self._container.mux(self._stream.encode(frame))

    def _open(self, height: int, width: int) -> None:
        if min(height, width) < 2:
            raise SigakError(f"a video needs frames of at least 2x2 pixels, not {height}x{width}")
        av = _av()
        self.size = height // 2 * 2, width // 2 * 2
        self.path.parent.mkdir(parents=True, exist_ok=True)
        encoder = next(name for name in _ENCODERS if name in av.codecs_available)
        # The file: prefix keeps a colon in a name from being read as a protocol.
        self._container = av.open(f"file:{self.path}", "w", format="mp4")
        options = {"preset": "veryfast"} if encoder == "libx264" else {}
        rate = Fraction(self.rate).limit_denominator(1001)
        self._stream = self._container.add_stream(encoder, rate=rate, options=options)
        self._stream.height, self._stream.width = self.size
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.time_base = Fraction(1, 1000)
        if encoder != "libx264":  # the others have no constant quality: about 4 bits a pixel/second
            self._stream.bit_rate = max(500_000, 4 * height * width)

    def close(self) -> None:
        """Complete the file. Nothing was written where no frame came."""
        container, self._container = self._container, None
        if container is not None:
            container.mux(self._stream.encode(None))
            container.close()
