"""Tasks: what joins pictures, loss, metric, post-processing, drawing and saving.

One task is one file with one final class; `create(name, classes, recipe)` builds it. A task never
imports a network: they meet in the verbs through `Entry.task`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from sigak.recipe import Recipe
from sigak.structures import Batch, Sample, SigakError

__all__ = ["Metric", "Result", "Task", "create", "needs", "stem_of", "unique_stems"]

TASKS = (
    "classify",
    "detect",
    "instances",
    "segment",
    "segment_volume",
    "generate",
    "prompt",
)


class Result(Protocol):
    """What a task says of one picture: where it came from, and itself as plain values for JSON."""

    source: str

    def asdict(self) -> dict[str, Any]: ...


class Metric(Protocol):
    """The measure of a task, fed batch by batch."""

    def update(self, results: Sequence[Any], batch: Batch) -> None: ...

    def merge(self, other: Any) -> None: ...

    def compute(self, detail: bool = True) -> dict[str, Any]:
        """All figures, or without `detail` those that are followed from epoch to epoch."""


class Task(ABC):
    """Eight small methods; `steps` is the whole training protocol.

    classes: names in label order. recipe: the training choices that concern the task.
    """

    name: ClassVar[str]
    needs: ClassVar[tuple[str, ...]]
    generative: ClassVar[bool] = (
        False  # makes pictures out of nothing instead of answering for some
    )
    on_file: ClassVar[bool] = False  # answers lie in the file's frame and are drawn on the file
    agnostic: ClassVar[bool] = False  # answers what is asked about a picture, whatever its classes
    tile: int = 0  # side of the windows that a picture is cut into as it is; 0: it is made to fit
    palette: Sequence[tuple[int, int, int]] | None = None  # colours of the classes, of some sets

    def __init__(self, classes: Sequence[str], recipe: Recipe) -> None:
        self.classes = list(classes)
        self.recipe = recipe

    @property
    @abstractmethod
    def outputs(self) -> int:
        """How many classes the network is built with."""

    def answering(self, **choices: Any) -> Task:
        """The task with the choices of predict that concern it, such as a detector's conf;
        SigakError for one that does not.
        """
        chosen = [name for name, value in choices.items() if value]
        if chosen:
            raise SigakError(
                f"--{chosen[0].replace('_', '-')} says nothing to a checkpoint of the task "
                f"{self.name}; leave it out"
            )
        return self

    def monitor(self, validated: bool) -> str:
        """The figure that tells the best epoch, with held-out pictures and without."""
        return "val_loss" if validated else "loss"

    @abstractmethod
    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Samples on one canvas, their knowledge as tensors."""

    @abstractmethod
    def augment(self, size: tuple[int, int]) -> Callable[[Batch, int, int], Batch] | None:
        """The augmentation of training batches of `size` (H, W): what takes a batch, the seed and
        the epoch and gives the batch to learn from, such as a `Pipeline`.
        """

    @abstractmethod
    def steps(
        self, network: Callable[[Tensor], Any], batch: Batch
    ) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """(optimiser name, scalars) in turn; "loss" is minimised, the others are shown; means over
        the batch.
        """

    @abstractmethod
    def predict(self, network: Callable[[Tensor], Any], batch: Batch) -> list[Any]:
        """One Result a picture, in the frame of its file."""

    @abstractmethod
    def metric(self) -> Metric:
        """A fresh metric."""

    def mistakes(
        self, results: Sequence[Any], labels: Sequence[int]
    ) -> list[tuple[int, dict[str, Any]]]:
        """(place in `results`, facts for the report), the worst answer first; none by default."""
        return []

    def generate(
        self,
        network: Callable[[Tensor], Any],
        places: Sequence[int],
        seed: int,
        device: torch.device | str,
    ) -> list[Any]:
        """One Result a place, made out of nothing and the same for the same seed and place;
        SigakError where the task makes none.
        """
        raise SigakError(
            f"a checkpoint of the task {self.name} makes no pictures, it answers for some: name "
            f"them, and leave out --samples"
        )

    def sheet(
        self, network: Callable[[Tensor], Any], device: torch.device | str
    ) -> np.ndarray | None:
        """A picture (H, W, C) uint8 that shows how far the network is, kept for every epoch; none
        by default.
        """
        return None

    def refuse_forms(self, forms: Sequence[str]) -> None:
        """SigakError where `forms` names any: for tasks that have none."""
        if forms:
            raise SigakError(f"--{forms[0]} is for detectors; leave it out")

    @abstractmethod
    def draw(self, image: np.ndarray, result: Any) -> np.ndarray:
        """`image` (H, W, 3) uint8 with the result drawn on it."""

    @abstractmethod
    def save(self, results: Sequence[Any], folder: Path, forms: Sequence[str] = ()) -> list[Path]:
        """Write the results in the usual format of the field, and in other `forms` by name where
        the task has some; returns the files.
        """


def stem_of(source: str) -> str:
    """The file name of a source without its ending, that of a compressed file included."""
    return Path(source.removesuffix(".gz")).stem


def unique_stems(sources: Sequence[str]) -> list[str]:
    """A file name without ending for each source, its own where no earlier source has it."""
    taken: dict[str, None] = {}
    for source in sources:
        stem = stem_of(source).replace("#", "-")
        name, number = stem, 1
        while name in taken:
            number += 1
            name = f"{stem}-{number}"
        taken[name] = None
    return list(taken)


def create(
    name: str,
    classes: Sequence[str],
    recipe: Recipe,
    palette: Sequence[Sequence[int]] | None = None,
) -> Task:
    """The task called `name`; palette: the colours of the classes, where the data has some."""
    if recipe.loss and name not in ("segment", "segment_volume"):
        raise SigakError(f"--loss is for segmentation, this task is {name}; leave it out")
    task = _class(name)(classes, recipe)
    if palette:
        task.palette = [(red, green, blue) for red, green, blue in palette]
    return task


def needs(name: str) -> tuple[str, ...]:
    """The fields of `Sample` that the task called `name` must know."""
    return _class(name).needs


def _class(name: str) -> type[Task]:
    if name not in TASKS:
        raise SigakError(f"there is no task called {name!r}; the tasks are {', '.join(TASKS)}")
    found: type[Task] = import_module(f"sigak.tasks.{name}").TASK
    return found
