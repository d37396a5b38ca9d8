"""Search: a sweep over fields of a recipe with Optuna (extra `sigak[sweep]`).

Candidates come from the tree-structured Parzen estimator (Bergstra et al. 2011,
https://papers.nips.cc/paper/4443), each a function of the seed and the trials before it, so that a
sweep that was cut off goes on as if it had not been. Its memory is plain: sweep.json and one run
folder a trial.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sigak import data, models, optimize
from sigak.callbacks import Callback, ModelCheckpoint, RunState
from sigak.data import Dataset
from sigak.progress import Progress
from sigak.recipe import Options, Recipe
from sigak.runs import RESUME, RunFolder, loaded, repeat_command
from sigak.structures import Failure, SigakError
from sigak.training import train

__all__ = ["Sweep", "Trial", "sweep"]

_FILE = "sweep.json"
_RANDOM = 8  # trials drawn at random before the estimator has something to go by
_COMPARED = 4  # trials that must have ended before one is given up


@dataclass
class Trial:
    """One trial: what it tried, how it ended ("complete", "pruned" or "failed"), the best value of
    the monitored figure, its values by epoch, and why it failed.
    """

    number: int
    params: dict[str, Any]
    state: str
    value: float | None
    values: list[float]
    seconds: float
    reason: str = ""


@dataclass
class Sweep:
    """A search. trials in order; command: the command line that trains the best one again."""

    folder: Path
    monitor: str
    rising: bool
    trials: list[Trial]
    command: str = ""

    @property
    def best(self) -> Trial | None:
        """The complete trial with the best value."""
        done = [trial for trial in self.trials if trial.state == "complete"]
        return min(done, key=self.rank, default=None)

    def rank(self, trial: Trial) -> tuple[int, float]:
        """Sorts trials: complete ones first, the best value first."""
        value = 0.0 if trial.value is None else trial.value
        state = ("complete", "pruned", "failed").index(trial.state)
        return state, -value if self.rising else value

    def asdict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        best = self.best
        return {
            "folder": str(self.folder),
            "monitor": self.monitor,
            "rising": self.rising,
            "trials": [asdict(trial) for trial in self.trials],
            "best": None if best is None else asdict(best),
            "command": self.command,
        }


def sweep(
    model: str,
    dataset: str | Path | Dataset,
    over: Mapping[str, str] | Sequence[str],
    *,
    trials: int = 20,
    seconds: float = 0.0,
    **changes: Any,
) -> Sweep:
    """Search the fields `over` of the recipe for the best `monitor` (by default val_loss).

    over: {"lr": "1e-4..1e-2", "batch": "32,64"} or ["lr=1e-4..1e-2", ...]: a range of numbers,
    searched by magnitude where it spans a factor of ten or more, or a list of values. changes: any
    field of `Recipe` or `Options`, for all trials alike. trials: how many there shall be in all;
    seconds: start no other after so many, 0 means no limit.

    Candidates come from Optuna's TPE, each a function of the seed and the trials before it; a trial
    worse than the median of the others at the same epoch is given up. `out` is the folder (by
    default runs/sweep-MODEL-DATA): trials in it are taken up, and one that was cut off goes on.
    """
    options, recipe = _sorted_out(model, changes)
    space = _space(_words(over), recipe)
    if trials < 1:
        raise SigakError(f"--trials must be at least 1, received {trials}")
    _optuna()  # refused before any work where it is missing
    dataset = loaded(dataset, model, recipe, options)
    if "val" not in dataset.splits and not options.monitor:
        raise SigakError("a sweep is judged on validation pictures: leave out --val 0")
    monitor = options.monitor or "val_loss"
    asked = {
        "model": model,
        "data": data.digest(dataset),
        "over": _words(over),
        "monitor": monitor,
        "recipe": recipe.asdict(),
    }
    folder = Path(options.out or Path("runs") / f"sweep-{model}-{dataset.name}")
    rising = ModelCheckpoint(monitor=monitor).sign > 0
    found = Sweep(folder, monitor, rising, _earlier(folder, asked))
    search = _Search(model, dataset, changes, space, recipe, found)
    progress, begun = Progress(visible=not options.quiet), time.perf_counter()
    while len(found.trials) < trials:
        if seconds and time.perf_counter() - begun > seconds:
            break
        found.trials.append(search.next_trial())
        RunFolder(folder).write_json(_FILE, asked | {"trials": found.asdict()["trials"]})
        progress.say(_line(found.trials[-1], monitor))
    best = found.best
    if best is None:
        first = next((t.reason for t in found.trials if t.reason), "no time was left for one")
        raise Failure(f"none of the {len(found.trials)} trials was completed: {first}")
    found.command = repeat_command(model, dataset, {**changes, **best.params})
    return found


def _sorted_out(model: str, changes: Mapping[str, Any]) -> tuple[Options, Recipe]:
    known = {f.name for f in fields(Options)}
    options = Options(**{k: v for k, v in changes.items() if k in known})
    said = {k: v for k, v in changes.items() if k not in known}
    recipe = Recipe.of(models.entry(model).recipe, said)
    optimize.check(recipe)
    if options.resume:
        raise SigakError(
            "a sweep goes on by itself: leave out --resume and give its folder with --out"
        )
    return options, recipe


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise SigakError("a sweep needs optuna: `pip install sigak[sweep]`") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


# ------------------------------------------------------------------ what is searched


@dataclass(frozen=True)
class _Span:
    """Values of a field of the recipe: `choices`, or numbers from `low` to `high`, ends included,
    whole ones, or spread by magnitude (`log`).
    """

    low: float = 0.0
    high: float = 0.0
    whole: bool = False
    log: bool = False
    choices: tuple[Any, ...] = ()

    def rounded(self, value: Any) -> Any:
        """A number with three digits, which is what its line and the command say; choices as they
        are.
        """
        if not isinstance(value, float) or self.choices:
            return value
        return min(max(float(f"{value:.3g}"), self.low), self.high)

    def distribution(self) -> Any:
        """The same for Optuna."""
        kinds = _optuna().distributions
        if self.choices:
            return kinds.CategoricalDistribution(self.choices)
        if self.whole:
            return kinds.IntDistribution(int(self.low), int(self.high), log=self.log)
        return kinds.FloatDistribution(self.low, self.high, log=self.log)


def _words(over: Mapping[str, str] | Sequence[str]) -> dict[str, str]:
    """Field names and what is said of them; the command line writes label-smoothing."""
    if isinstance(over, Mapping):
        pairs = [(name, str(value)) for name, value in over.items()]
    else:
        listed = [over] if isinstance(over, str) else over
        pairs = [(name, value) for name, _, value in (word.partition("=") for word in listed)]
    if not pairs or not all(name and value for name, value in pairs):
        raise SigakError(
            "--over expects a field of the recipe and its values, such as lr=1e-4..1e-2 or "
            f"batch=32,64; received {', '.join(f'{n}={v}' for n, v in pairs) or 'nothing'}"
        )
    return {name.strip().replace("-", "_"): value.strip() for name, value in pairs}


def _space(words: Mapping[str, str], recipe: Recipe) -> dict[str, _Span]:
    """What to search; every end and choice is tried on the recipe, so mistakes show at once."""
    space = {}
    for name, word in words.items():
        Recipe.of(recipe.asdict(), {name: getattr(recipe, name, None)})  # is it a field at all?
        kind = type(getattr(recipe, name))
        ends = word.split("..")
        if len(ends) == 2 and kind in (int, float):
            low, high = (_value(name, end, kind) for end in ends)
            if not low < high:
                raise SigakError(f"--over {name}={word}: the first end must be below the second")
            space[name] = _Span(low, high, kind is int, low > 0 and high / low >= 10)
            tried: Sequence[Any] = (low, high)
        else:
            tried = tuple(_value(name, part.strip(), kind) for part in word.split(","))
            space[name] = _Span(choices=tuple(tried))
        for value in tried:
            optimize.check(replace(recipe, **{name: value}))
    return space


def _value(name: str, word: str, kind: type) -> Any:
    try:
        return kind(word)
    except ValueError:
        raise SigakError(
            f"--over {name} expects {'whole ' if kind is int else ''}numbers, such as "
            f"{name}=LOW..HIGH or {name}=A,B,C; received {word!r}"
        ) from None


# ------------------------------------------------------------------ the trials


def _earlier(folder: Path, asked: Mapping[str, Any]) -> list[Trial]:
    """The trials that `folder` holds of this very sweep."""
    path = folder / _FILE
    if not path.exists():
        return []
    saved = json.loads(path.read_text(encoding="utf-8"))
    for key, value in asked.items():
        if saved.get(key) != value:
            raise SigakError(
                f"{folder} holds another sweep (its {key} differs); give the flags it began with, "
                "or another --out"
            )
    return [Trial(**trial) for trial in saved["trials"]]


class _GivenUp(Exception):  # noqa: N818 - an outcome, not an error
    """Raised through a training whose trial is worse than most."""


class _Watch(Callback):
    """Tells Optuna of every epoch, and ends a trial that Optuna gives up."""

    state = ("values",)  # a trial that was cut off reports its earlier epochs again

    def __init__(self, trial: Any, monitor: str, epochs: int) -> None:
        self.trial, self.monitor, self.epochs = trial, monitor, epochs
        self.values: list[float] = []

    def on_train_begin(self, run: RunState) -> None:
        for step, value in enumerate(self.values):
            self.trial.report(value, step)

    def on_epoch_end(self, run: RunState, epoch: int, logs: Mapping[str, float]) -> None:
        self.values.append(float(logs[self.monitor]))
        self.trial.report(self.values[-1], epoch - 1)  # Optuna counts from 0
        if epoch < self.epochs and self.trial.should_prune():
            raise _GivenUp


@dataclass
class _Search:
    """What all trials share."""

    model: str
    dataset: Dataset
    changes: Mapping[str, Any]
    space: Mapping[str, _Span]
    recipe: Recipe
    found: Sweep

    def next_trial(self) -> Trial:
        """Choose, train, and say how it went."""
        number = len(self.found.trials)
        candidate = self._study(number).ask(self._distributions())
        params = {name: span.rounded(candidate.params[name]) for name, span in self.space.items()}
        folder = self.found.folder / f"trial-{number:03d}"
        where = {"resume": str(folder)} if (folder / RESUME).exists() else {"out": str(folder)}
        epochs = params.get("epochs", self.recipe.epochs)
        watch = _Watch(candidate, self.found.monitor, epochs)
        begun, state, reason = time.perf_counter(), "complete", ""
        changes = {**self.changes, **params, "out": "", "quiet": True, **where}
        try:
            train(self.model, self.dataset, callbacks=[watch], **changes)
        except _GivenUp:
            state = "pruned"
        except (SigakError, Failure, torch.OutOfMemoryError) as error:
            if isinstance(error.__cause__, KeyboardInterrupt):
                raise Failure(
                    f"interrupted in trial {number}; the same command goes on where it stopped"
                ) from error
            state, reason = "failed", str(error)
        pick = np.nanmax if self.found.rising else np.nanmin
        value = float(pick(watch.values)) if watch.values and state != "failed" else None
        seconds = time.perf_counter() - begun
        return Trial(number, params, state, value, watch.values, seconds, reason)

    def _distributions(self) -> dict[str, Any]:
        return {name: span.distribution() for name, span in self.space.items()}

    def _study(self, number: int) -> Any:
        """A study that knows the trials so far, with a sampler of this trial's own."""
        optuna = _optuna()
        seed = int(np.random.SeedSequence((self.recipe.seed, number)).generate_state(1)[0])
        study = optuna.create_study(
            direction="maximize" if self.found.rising else "minimize",
            sampler=optuna.samplers.TPESampler(n_startup_trials=_RANDOM, seed=seed),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=_COMPARED, n_warmup_steps=1),
        )
        states = optuna.trial.TrialState
        kinds = {"complete": states.COMPLETE, "pruned": states.PRUNED, "failed": states.FAIL}
        for trial in self.found.trials:
            study.add_trial(
                optuna.trial.create_trial(
                    state=kinds[trial.state],
                    value=trial.value if trial.state == "complete" else None,
                    params=trial.params,
                    distributions=self._distributions(),
                    intermediate_values=dict(enumerate(trial.values)),
                )
            )
        return study


def _line(trial: Trial, monitor: str) -> str:
    params = "  ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}"
                       for k, v in trial.params.items())  # fmt: skip
    shown = trial.reason if trial.value is None else f"{monitor} {trial.value:.4f}"
    state = "" if trial.state == "complete" else f" ({trial.state})"
    return f"trial {trial.number}  {params}  {shown}{state}"
