"""Predict: a checkpoint and pictures in, results out. Evaluation and validation go through here."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from sigak import models, tasks
from sigak.data import Problem
from sigak.data.feed import Feed
from sigak.io import image, volumes
from sigak.io import weights as files
from sigak.recipe import Recipe
from sigak.runtime import Engine, TorchEngine, choice, pick_device
from sigak.runtime.files import SUFFIXES, open_file
from sigak.sources import Shot, Source, find, find_volumes, shots
from sigak.structures import Batch, Sample, SigakError
from sigak.tasks import Metric, Result, Task
from sigak.tracking import LOW, START, followed

__all__ = ["Assessment", "Predictor", "assess", "load", "pixels_of", "predict"]


@dataclass
class Predictor:
    """A network ready to answer: built and prepared from its checkpoint's header alone."""

    engine: Engine
    network: nn.Module
    task: Task
    preparation: image.Preparation
    header: dict[str, Any]
    path: Path | None = None

    @property
    def classes(self) -> list[str]:
        """Class names in label order."""
        return self.task.classes

    def predict(
        self,
        source: Any,
        *,
        prepare: str = "",
        batch: int = 64,
        problems: list[Problem] | None = None,
        **choices: Any,
    ) -> list[Any]:
        """Results for `source`, in its order; see `stream`."""
        how = {"prepare": prepare, "batch": batch, "problems": problems}
        return list(self.stream(source, **how, **choices))  # type: ignore[arg-type]

    def stream(
        self,
        source: Any,
        *,
        prepare: str = "",
        batch: int = 64,
        problems: list[Problem] | None = None,
        **choices: Any,
    ) -> Iterator[Result]:
        """Answer a path, folder, glob, video, stream, camera, bytes, PIL picture, array, tensor, or
        a list or batch of them, in turn; see `sigak.sources.find`.

        prepare: a chain of picture steps done first, such as "crop=100,400,600,900 mirror invert".
        problems: a list that takes up what could not be read; without it the first such picture
        raises. size: the canvas of networks that take any. every: of videos each so many-th frame.
        track: objects keep a number from frame to frame (`sigak.tracking`). choices: what the task
        knows of, such as conf=.25, iou=.7 and classes=["dog"] of detection.
        """
        how = {"prepare": prepare, "batch": batch, "problems": problems}
        for _, result in self.answers(source, **how, **choices):  # type: ignore[arg-type]
            yield result

    def answers(
        self,
        source: Any,
        *,
        prepare: str = "",
        batch: int = 64,
        problems: list[Problem] | None = None,
        size: int = 0,
        every: int = 1,
        track: bool = False,
        **choices: Any,
    ) -> Iterator[tuple[Sample, Result]]:
        """As `stream`, with the prepared picture beside each result. A sample's origin is what it
        was read from, or the `Frame`.
        """
        if batch < 1:
            raise SigakError(f"--batch must be at least 1, received {batch}")
        self.refuse_generative()
        start = START if choices.get("conf") is None else choices["conf"]
        if track:
            if self.task.name not in ("detect", "instances"):
                raise SigakError("--track is for detectors; leave it out")
            choices["conf"] = min(LOW, start)
        task = self.task.answering(**choices)
        preparation = self.preparation_at(size)
        if task.tile:  # windows are cut from the picture as it is, one picture at a time
            preparation, batch = replace(preparation, fit="native"), 1
        batch = 1 if preparation.depth else batch  # as of volumes
        if prepare:  # a mistyped step is refused here, before any work
            preparation = replace(preparation, steps=tuple(prepare.split()))
        coming = shots(self.find(source), every=every, problems=problems)
        answers = self._rounds(task, coming, preparation, batch, problems)
        yield from followed(answers, start) if track else answers

    def _rounds(
        self,
        task: Task,
        coming: Iterator[Shot],
        preparation: image.Preparation,
        batch: int,
        problems: list[Problem] | None,
    ) -> Iterator[tuple[Sample, Result]]:
        waiting: list[Sample] = []
        for place, shot in enumerate(coming):
            try:
                waiting.append(_sample(shot, place, preparation))
            except SigakError as error:
                if problems is None:
                    raise
                problems.append(Problem(shot.name, str(error), "skipped"))
            if len(waiting) >= min(batch, shot.together):
                yield from self._answer(task, waiting)
                waiting = []
        if waiting:
            yield from self._answer(task, waiting)

    def find(self, source: Any) -> list[Source]:
        """What is meant by `source`, pictures and videos or volumes, whichever the checkpoint
        answers for; see `sigak.sources`.
        """
        return find_volumes(source) if self.preparation.depth else find(source)

    def refuse_volumes(self, verb: str) -> None:
        """SigakError where the checkpoint answers for volumes, which `verb` does not do."""
        if self.preparation.depth:
            raise SigakError(
                f"{verb} is for networks that take pictures, {self.header['name']} takes volumes; "
                f"it answers by predict and evaluate"
            )

    def refuse_generative(self) -> None:
        """SigakError where the checkpoint makes pictures instead of answering for some."""
        if self.task.generative:
            raise SigakError(
                f"a checkpoint of the task {self.task.name} makes pictures instead of answering "
                f"for some; give --samples 64 (in Python: generate(64)) in place of pictures"
            )

    def preparation_at(self, size: int = 0) -> image.Preparation:
        """The preparation, with a canvas of another `size` where the network takes any."""
        if not size:
            return self.preparation
        self.refuse_volumes("--size")
        stride = getattr(self.network, "stride", 0)
        if not stride or size < stride or size % stride:
            expected = f"a multiple of {stride}" if stride else "no --size, which it has built in"
            raise SigakError(
                f"{self.header['name']} expects {expected}, received --size {size}; leave it out "
                f"for {self.preparation.size[0]}"
            )
        return replace(self.preparation, size=(size, size))

    def generate(self, samples: int, *, seed: int = 0, batch: int = 64) -> list[Any]:
        """`samples` results made out of nothing, for checkpoints that make pictures. The first of
        them are the same whatever `samples` and `batch` are.
        """
        if min(samples, batch) < 1:
            raise SigakError(
                f"--samples and --batch must be at least 1, received {samples} and {batch}"
            )
        starts = range(0, samples, batch)
        rounds = (range(start, min(start + batch, samples)) for start in starts)
        device = self.engine.device
        return [
            result
            for places in rounds
            for result in self.task.generate(self.engine, places, seed, device)
        ]

    def _answer(self, task: Task, samples: list[Sample]) -> Iterator[tuple[Sample, Result]]:
        """Neighbours of one size go through the network together."""
        for _, group in groupby(samples, key=lambda sample: sample.image.shape):
            together = list(group)
            batch = Batch.of(together).to(self.engine.device)
            batch = batch if task.tile else batch.floating()
            yield from zip(together, task.predict(self.engine, batch), strict=True)


def _sample(shot: Shot, place: int, preparation: image.Preparation) -> Sample:
    reader = volumes.load if preparation.depth else image.load
    ready, matrix, size = reader(shot.thing, preparation)  # type: ignore[operator,arg-type]
    return Sample(ready, shot.name, place, matrix=matrix, size=size, origin=shot.origin)


# What a checkpoint must say of itself to be used.
_HEADER = ("version", "name", "task", "arguments", "classes", "preparation", "recipe", "data")


def load(
    checkpoint: str | Path | Predictor, *, device: str = "auto", engine: str = ""
) -> Predictor:
    """A predictor from a checkpoint, a run folder or an exported file (a predictor is returned as
    it is).

    engine: what computes a checkpoint, one of `sigak.runtime.choice.ENGINES`, or "auto", the
    fastest that gives the same answers; empty for PyTorch. An exported file has an engine of its
    own.
    """
    if isinstance(checkpoint, Predictor):
        return checkpoint
    _refuse_name(checkpoint)
    path = files.find_checkpoint(checkpoint)
    if path.suffix.lower() in SUFFIXES:
        return _load_exported(path, device, engine)
    tensors, header = files.read(path)
    _check_header(header, path)
    network = models.entry(header["name"]).build(**header["arguments"])
    expected = network.state_dict()
    missing = set(expected) ^ set(tensors)
    missing |= {k for k in set(expected) & set(tensors) if expected[k].shape != tensors[k].shape}
    if missing:
        raise SigakError(
            f"{path} says it is a {header['name']}, but {len(missing)} tensors differ from that "
            f"network "
            f"(first: {min(missing)}); it was made by another version ({header['version']})"
        )
    network.load_state_dict(tensors)
    task, preparation = _task_of(header)
    where = pick_device(device)
    if engine in ("", "torch") or preparation.depth:
        if engine not in ("", "torch", choice.AUTO):
            raise SigakError(f"volumes are answered for by torch, received --engine {engine}")
        runner: Engine = TorchEngine(network, where)
    else:
        if device == "auto" and not engine.startswith("torch"):
            where = pick_device("cpu" if engine != choice.AUTO else "auto")
        one = choice.Candidate(network, task, preparation, header, _digest(path), where)
        runner = choice.pick(one) if engine == choice.AUTO else choice.build(engine, one)
    return Predictor(runner, network, task, preparation, header, path)


def _refuse_name(checkpoint: str | Path) -> None:
    """SigakError that says where weights come from, for a network's name in place of a file."""
    name = str(checkpoint)
    if not Path(checkpoint).exists() and name in models.names(name):
        raise SigakError(
            f"{name} is a network, and this needs its weights too: make a checkpoint with `sigak "
            f"import WEIGHTS --as {name} --out {name}.safetensors`, or train one, and give that"
        )


def _load_exported(path: Path, device: str, engine: str) -> Predictor:
    own = SUFFIXES[path.suffix.lower()]
    if engine not in ("", choice.AUTO, own) or device not in ("auto", "cpu"):
        raise SigakError(
            f"{path.name} runs on {own} and the CPU, received --engine {engine or own} and "
            f"--device {device}; leave them out, or give the checkpoint it was exported from"
        )
    runner = open_file(path)
    _check_header(runner.header, path)
    task, preparation = _task_of(runner.header)
    return Predictor(runner, runner.network, task, preparation, runner.header, path)


def _check_header(header: dict[str, Any], path: Path) -> None:
    lacking = [key for key in _HEADER if key not in header]
    if lacking:
        raise SigakError(
            f"{path} is no checkpoint to predict with (its header lacks {', '.join(lacking)}); "
            f"give the run's folder or its {files.BEST}"
        )


def _task_of(header: dict[str, Any]) -> tuple[Task, image.Preparation]:
    recipe, palette = Recipe.of(header["recipe"]), header["data"].get("palette")
    task = tasks.create(header["task"], header["classes"], recipe, palette)
    return task, image.Preparation.of(header["preparation"])


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def predict(
    checkpoint: str | Path | Predictor,
    source: Any,
    *,
    prepare: str = "",
    device: str = "auto",
    engine: str = "",
    **choices: Any,
) -> list[Any]:
    """Results of `checkpoint` for `source`; see `load` for the engine, and `Predictor.stream` for
    what a source may be, and for the choices.
    """
    return load(checkpoint, device=device, engine=engine).predict(
        source, prepare=prepare, **choices
    )


@dataclass
class Assessment:
    """What one pass over labelled pictures found: the metric, and each result with its truth and
    position.
    """

    metric: Metric
    results: list[Any]
    labels: list[int]
    positions: list[int]

    def add(self, other: Assessment) -> None:
        """Take in what another process found."""
        self.metric.merge(other.metric)
        self.results += other.results
        self.labels += other.labels
        self.positions += other.positions


def assess(engine: Engine, task: Task, feed: Feed) -> Assessment:
    """Run a feed without shuffling through the engine and measure it."""
    found = Assessment(task.metric(), [], [], [])
    for step in feed.epoch():
        batch = step.batch.floating()
        results = task.predict(engine, batch)
        found.metric.update(results, batch)
        found.results += results
        if batch.labels is not None:
            truth = batch.labels if batch.labels.ndim == 1 else batch.labels.argmax(1)
            found.labels += truth.tolist()
        found.positions += batch.indices.tolist()
    return found


def pixels_of(feed: Feed, positions: Sequence[int]) -> list[np.ndarray]:
    """The prepared pictures (H, W, C) uint8 of the split's records at `positions`."""
    place = {int(p): i for i, p in enumerate(feed.pictures.places)}
    chosen = np.array([place[p] for p in positions], dtype=np.int64)
    found = {
        index: picture
        for batch in feed.pictures.batches(chosen)
        for index, picture in zip(
            batch.indices.tolist(), batch.images.permute(0, 2, 3, 1).cpu().numpy(), strict=True
        )
    }
    return [found[int(p)] for p in positions]
