"""Answers shown and written while they come: drawn pictures, annotated videos, a line of JSON a
frame.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from sigak.io import image
from sigak.io.video import Frame, Video, Writer
from sigak.progress import Progress
from sigak.structures import Sample, SigakError
from sigak.tasks import Result, Task, stem_of
from sigak.tasks.detect import Detections, yolo_lines

__all__ = ["Recorder", "line_of", "shown"]


def line_of(sample: Sample, result: Result) -> str:
    """One answer as one line of JSON; of a frame also its number and its time in seconds."""
    facts = result.asdict()
    if isinstance(frame := sample.origin, Frame):
        facts = {"frame": frame.index, "seconds": round(frame.seconds, 3)} | facts
    return json.dumps(facts, ensure_ascii=False, allow_nan=False)


def shown(
    answers: Iterator[tuple[Sample, Any]], *, moving: bool, as_json: bool
) -> Iterator[tuple[Sample, Any]]:
    """The same answers, each printed on standard output as it comes: in words, or as JSON, one
    document of all pictures or, where `moving` says that there is a video, one a line. A bar on the
    terminal counts a video's frames.
    """
    # Rich takes what is printed while its bar is there: to a terminal, above the bar, that is
    # right, but what is meant for a file or another program goes there directly.
    out = None if sys.stdout.isatty() else sys.stdout
    document, video = [], None
    with Progress(moving) as progress:
        for sample, result in answers:
            frame = sample.origin
            if isinstance(frame, Frame):
                if frame.video is not video:
                    video = frame.video
                    progress.begin(video.name, video.count or None)
                progress.reach(frame.index + 1)
            if as_json and not moving:
                document.append(result.asdict())
            else:
                text = line_of(sample, result) if as_json else f"{result.source}: {result}"
                print(text, file=out, flush=True)
            yield sample, result
    if as_json and not moving:
        print(json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False))


class Recorder:
    """Writes answers into `folder`; None: nowhere. Use as a context: leaving it, on whatever way,
    completes the files, so that what was answered until then is kept.

    Of pictures 0001-NAME.png each, and what `Task.save` writes, in `forms`, of all at the end. Of a
    video 0001-NAME.mp4 and 0001-NAME.jsonl, a line a frame, and with the form "txt" a detector's
    labels/0001-NAME-FRAME.txt; what is kept in memory does not grow.
    """

    def __init__(self, folder: Path | None, task: Task, forms: Sequence[str] = ()) -> None:
        self.folder = folder or Path()
        self.wanted = folder is not None
        self.task = task
        self.forms = forms
        self._count = 0
        self._results: list[Any] = []
        self._video: Video | None = None
        self._open = ExitStack()

    def __enter__(self) -> Recorder:
        if self.wanted:
            self.folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.close()
        if self._results:
            self.task.save(self._results, self.folder, self.forms)

    def add(self, sample: Sample, result: Result) -> None:
        """Write one answer of `Predictor.answers`."""
        if not self.wanted:
            return None
        if isinstance(sample.origin, Frame):
            return self._add_frame(sample, sample.origin, result)
        self._results.append(result)
        self._count += 1
        name = f"{self._count:04d}-{stem_of(result.source)}.png"
        image.save(self.folder / name, self._drawn(sample, result))
        return None

    def _drawn(self, sample: Sample, result: Result) -> np.ndarray:
        if not self.task.on_file:
            return self.task.draw(sample.image, result)
        origin = sample.origin
        pixels = origin.pixels if isinstance(origin, Frame) else image.read(origin)
        return self.task.draw(pixels, result)

    def _add_frame(self, sample: Sample, frame: Frame, result: Result) -> None:
        if frame.video is not self._video:
            self._begin(frame.video)
        self._writer.write(self._drawn(sample, result), frame.seconds)
        self._lines.write(line_of(sample, result) + "\n")
        self._lines.flush()
        if "txt" in self.forms and isinstance(result, Detections):
            labels = self.folder / "labels"
            labels.mkdir(exist_ok=True)
            name = f"{self._writer.path.stem}-{frame.index:06d}.txt"
            (labels / name).write_text(yolo_lines(result), encoding="utf-8")

    def _begin(self, video: Video) -> None:
        """Complete the files of the last video, and open those of this one."""
        if "coco" in self.forms:
            raise SigakError(
                "--coco is for pictures; the answers for a video are in its .jsonl, a line a frame"
            )
        self._open.close()
        self._video = video
        self._count += 1
        stem = Path(video.name).stem if not video.live else "live"
        path = self.folder / f"{self._count:04d}-{stem}.mp4"
        self._writer = self._open.enter_context(Writer(path, video.rate))
        self._lines = self._open.enter_context(
            path.with_suffix(".jsonl").open("w", encoding="utf-8")
        )
