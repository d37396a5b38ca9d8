"""Tune: the learning rate and the batch, found by trying a few steps.

`find_lr` is the range test of Smith 2015 (https://arxiv.org/abs/1506.01186), `find_batch` doubles
the batch until it no longer pays. Both train real steps in memory and leave no run folder.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor

from sigak import models, optimize
from sigak.data import Dataset
from sigak.data.feed import Step
from sigak.recipe import Options, Recipe
from sigak.runs import loaded
from sigak.structures import Failure, SigakError
from sigak.training import Training

__all__ = ["BatchTest", "RateTest", "draw_rates", "find_batch", "find_lr"]

_WORSE = 4.0  # times the best loss at which a range test stops
_LATE = 0.25  # share of what was gained that is lost again where a test counts as diverging
_GAIN = 1.1  # of two doublings one must be so many times faster
_TIMED = 3  # steps a batch size is timed for


# ------------------------------------------------------------------ the learning rate


@dataclass(frozen=True)
class RateTest:
    """A range test: `rates` tried in turn, their losses, and the losses smoothed.

    steepest: the rate at which the loss falls fastest; divergence: from which it is lost again,
    None if it never was; suggestion: the lower of the steepest and a tenth of the divergence.
    """

    rates: list[float]
    losses: list[float]
    smoothed: list[float]
    steepest: float
    divergence: float | None
    suggestion: float

    def asdict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def find_lr(
    model: str,
    dataset: str | Path | Dataset,
    *,
    low: float = 1e-6,
    high: float = 10.0,
    steps: int = 100,
    **changes: Any,
) -> RateTest:
    """Train `steps` steps while the learning rate climbs from `low` to `high`, and see where the
    loss falls.

    changes: any field of `Recipe` or `Options`, as for `train`; the schedule is left out. The test
    ends early once the loss is four times its best.
    """
    if not 0 < low < high or steps < 10:
        raise SigakError(
            f"--low must be above 0 and below --high, --steps at least 10; received {low}, {high} "
            f"and {steps}"
        )
    flat = {"lr": low, "schedule": "constant", "warmup": 0.0}
    with torch.random.fork_rng():
        training = _training(model, dataset, {**changes, **flat})
        losses = _climb(training, (high / low) ** (1 / (steps - 1)), steps)
    rates = [low * (high / low) ** (i / (steps - 1)) for i in range(len(losses))]
    return _judged(rates, losses)


def _training(model: str, dataset: str | Path | Dataset, changes: Mapping[str, Any]) -> Training:
    """The pieces of a training that writes nothing."""
    known = {f.name for f in fields(Options)}
    given = {k: v for k, v in changes.items() if k in known} | {"out": "", "resume": ""}
    options = Options(**given)
    said = {k: v for k, v in changes.items() if k not in known}
    recipe = Recipe.of(models.entry(model).recipe, said)
    optimize.check(recipe)
    return Training(model, loaded(dataset, model, recipe, options), recipe, options, ())


def _climb(training: Training, factor: float, steps: int) -> list[float]:
    """The loss of each step, the rate `factor` times higher each time."""
    losses: list[float] = []
    while len(losses) < steps:
        training.set_mode()
        for step in training.feed.epoch(training.epoch):
            loss = _loss(training, step)
            if not math.isfinite(loss):
                return losses
            losses.append(loss)
            training.lr_scale *= factor
            if len(losses) == steps or _lost(losses):
                return losses
        training.epoch += 1
    return losses


def _lost(losses: Sequence[float], window: int = 5) -> bool:
    """Whether the mean loss of the last steps is far above the best such mean."""
    if len(losses) < window:
        return False
    means = np.convolve(losses, np.ones(window) / window, "valid")
    return bool(means[-1] > _WORSE * means.min())


def _loss(training: Training, step: Step) -> float:
    """Train one step; its loss, infinite where it diverged."""
    training.sums = {}
    try:
        training.train_step(step)
    except Failure:  # the loss is no number
        return math.inf
    return float(training.sums["loss"] / training.sums["count"])


def _judged(rates: list[float], losses: list[float]) -> RateTest:
    """What a climb tells. The losses are smoothed from both sides, which shifts nothing."""
    if len(losses) < 5:
        raise Failure(
            f"the loss left the numbers after {len(losses)} steps; start lower with --low, or try "
            "--precision float32"
        )
    reach = max(2, len(losses) // 20)
    window = np.hanning(2 * reach + 3)[1:-1]
    padded = np.pad(losses, reach, mode="edge")
    smoothed = np.convolve(padded, window / window.sum(), "valid")
    lowest = int(smoothed.argmin())
    slope = np.gradient(smoothed, np.log(rates))
    steepest = rates[int(slope[: lowest + 1].argmin())]
    limit = smoothed[lowest] + _LATE * (smoothed[: lowest + 1].max() - smoothed[lowest])
    lost = np.flatnonzero(smoothed[lowest:] > limit)
    divergence = rates[lowest + int(lost[0])] if len(lost) else None
    suggestion = steepest if divergence is None else min(steepest, divergence / 10)
    return RateTest(rates, losses, smoothed.tolist(), steepest, divergence, suggestion)


def draw_rates(test: RateTest, path: str | Path) -> None:
    """Draw the losses over the rates, and the suggestion, into a PNG, SVG or PDF file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(test.rates, test.losses, color="0.75", label="loss")
    axes.plot(test.rates, test.smoothed, color="tab:blue", label="smoothed")
    axes.axvline(test.suggestion, color="tab:green", label=f"suggestion {test.suggestion:.2g}")
    if test.divergence is not None:
        axes.axvline(test.divergence, color="tab:red", label=f"divergence {test.divergence:.2g}")
    axes.set(xscale="log", xlabel="learning rate", ylabel="loss")
    axes.set_ylim(0, 1.2 * max(test.smoothed[: max(2, len(test.smoothed) // 2)]))
    axes.legend()
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


# ------------------------------------------------------------------ the batch


@dataclass(frozen=True)
class BatchTest:
    """Batch sizes that were tried and how many pictures a second each trained; `suggestion`: the
    smallest one within a tenth of the fastest; `stopped`: why no larger one was tried.
    """

    sizes: list[int]
    images_per_second: list[float]
    suggestion: int
    stopped: str

    def asdict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def find_batch(
    model: str, dataset: str | Path | Dataset, *, start: int = 8, **changes: Any
) -> BatchTest:
    """Double the batch from `start` until it is no longer faster, memory is short, or the training
    pictures are all in it.

    changes: any field of `Recipe` or `Options`, as for `train`. Speed is all this judges: a larger
    batch learns less from as many pictures, and asks for a higher learning rate.
    """
    if start < 1:
        raise SigakError(f"the first batch must be at least 1, received {start}")
    with torch.random.fork_rng():
        training = _training(model, dataset, {**changes, "batch": start, "lr": 0.0})
        training.set_mode()
        total = len(training.pictures["train"])
        needed = _saved_bytes(training, min(start, total))
        sizes: list[int] = []
        rates: list[float] = []
        size, stopped = min(start, total), "all training pictures are in the batch"
        while True:
            if size * needed > _free_bytes(training.device):
                stopped = f"a batch of {size} may not fit in memory"
                break
            try:
                rate = _speed(training, size)
            except torch.OutOfMemoryError:
                stopped = f"a batch of {size} does not fit in memory"
                break
            sizes.append(size)
            rates.append(rate)
            if len(rates) > 2 and max(rates[-2:]) < _GAIN * max(rates[:-2]):
                stopped = "a larger batch is hardly faster"
                break
            if 2 * size > total:
                break
            size *= 2
    if not sizes:
        raise Failure(f"{stopped}; give a smaller --size, or another network")
    enough = max(rates) / _GAIN
    chosen = next(s for s, rate in zip(sizes, rates, strict=True) if rate >= enough)
    return BatchTest(sizes, rates, chosen, stopped)


def _step(training: Training, size: int) -> Step:
    batch = training.pictures["train"].batch(np.arange(size))
    return Step(0, batch, size, size)


def _saved_bytes(training: Training, size: int) -> float:
    """Bytes a picture leaves behind for the backward pass."""
    total = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal total
        total += tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        _loss(training, _step(training, size))
    return total / size


def _free_bytes(device: torch.device) -> float:
    """What a batch may take. A GPU says itself when it is full; a CPU's system would end us."""
    return math.inf if device.type == "cuda" else 0.5 * psutil.virtual_memory().available


def _speed(training: Training, size: int) -> float:
    """Pictures a second, the median of a few steps after a first that warms up."""
    step = _step(training, size)
    seconds = []
    for _ in range(_TIMED + 1):
        begun = time.perf_counter()
        _loss(training, step)  # reads the loss back, so the device has finished
        seconds.append(time.perf_counter() - begun)
    return size / float(np.median(seconds[1:]))
