"""The lab: several networks on the same data, each in its own run folder, and one comparison.

The ten networks of `models/lab.py` answer what depth, dropout, an L2 penalty, augmentation and
batch norm do; any other networks can be compared as well. The folder is the memory: the same
command again skips what is finished and goes on exactly where it was cut off.

The network to take is chosen on the validation pictures, so that the test figures stay honest.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from sigak import data, optimize
from sigak.data import Dataset
from sigak.evaluation import evaluate
from sigak.models import entry
from sigak.models._entry import count_parameters
from sigak.models.lab import MODELS
from sigak.prediction import load
from sigak.progress import Progress
from sigak.recipe import Options, Recipe
from sigak.report import diagnose, write_comparison
from sigak.runs import RunFolder, data_word, flags
from sigak.runtime import environment, pick_device
from sigak.structures import Failure, SigakError
from sigak.training import train

__all__ = ["Comparison", "Effect", "Published", "Row", "compare"]

# Beside a run's own files: the best weights measured on the pictures they learnt from. Written
# last, so it marks a run that is finished.
_TRAIN = "evaluation-train.json"
# Options that decide what is learnt; the others may change from one start to the next.
_LEARNT = (
    "pretrained", "monitor", "early_stop", "min_delta", "reduce_lr", "reduce_factor", "min_lr",
)  # fmt: skip


@dataclass(frozen=True)
class Published:
    """What others measured on the test pictures of CIFAR-10 after `epochs`; note: how their
    network differs from ours.
    """

    accuracy: float
    epochs: int
    note: str = ""


# Brownlee 2019, https://machinelearningmastery.com/
# how-to-develop-a-cnn-from-scratch-for-cifar-10-photo-classification/
_PUBLISHED_ON = "cifar10"
_PUBLISHED = {
    "vgg1": Published(0.6707, 100),
    "vgg2": Published(0.7108, 100),
    "vgg3": Published(0.7350, 100),
    "vgg3-dropout": Published(0.8345, 100),
    "vgg3-l2": Published(0.7255, 100),
    "vgg3-aug": Published(0.8447, 100),
    "vgg3-dropout-l2-aug": Published(0.8588, 200, "without L2"),
    "vgg3-dropout-bn": Published(0.8862, 400, "with augmentation"),
}

# (what was changed, the network with it, the network without it)
_CHANGES = (
    ("a second block", "vgg2", "vgg1"),
    ("a third block", "vgg3", "vgg2"),
    ("dropout", "vgg3-dropout", "vgg3"),
    ("L2", "vgg3-l2", "vgg3"),
    ("augmentation", "vgg3-aug", "vgg3"),
    ("dropout and L2", "vgg3-dropout-l2", "vgg3"),
    ("dropout, L2 and augmentation", "vgg3-dropout-l2-aug", "vgg3"),
    ("dropout and batch norm", "vgg3-dropout-bn", "vgg3"),
    ("dropout, L2 and batch norm", "vgg3-dropout-l2-bn", "vgg3"),
    ("batch norm, with stronger dropout", "vgg3-dropout-bn", "vgg3-dropout"),
)


@dataclass(frozen=True)
class Row:
    """One trained network.

    Accuracies are shares, of the best epoch's weights in evaluation mode, None where the data has
    no such split; gap is train less validation (less test without one). seconds: training alone.
    history: one list a figure, by epoch; its accuracy is that of training itself.
    """

    model: str
    parameters: int
    trainable: int
    epochs: int
    best_epoch: int
    train_accuracy: float | None
    val_accuracy: float | None
    test_accuracy: float | None
    gap: float | None
    seconds: float
    images_per_second: float
    history: dict[str, list[float | None]]
    diagnosis: str
    published: Published | None
    report: str


@dataclass(frozen=True)
class Effect:
    """What one change did: the accuracy of `model` less that of `against`, as a share.

    margin: how far two equal networks may lie apart on so many pictures (95 %). published: the
    same difference in the published figures.
    """

    what: str
    model: str
    against: str
    before: float
    after: float
    change: float
    margin: float
    verdict: str
    published: float | None


@dataclass
class Comparison:
    """Networks trained on the same data. failures: {model: reason} of those that were not.

    measured_on: the split of `effects`, test where there is one. advice: which network to take, in
    words; chosen: its name, empty where nothing was held out to choose it by.
    """

    folder: Path
    dataset: Dataset
    command: str
    environment: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)

    @property
    def counts(self) -> dict[str, int]:
        """Pictures per split."""
        return {name: len(split) for name, split in self.dataset.splits.items()}

    @property
    def measured_on(self) -> str:
        """The split that effects are measured on."""
        return "test" if "test" in self.dataset.splits else "val"

    @property
    def effects(self) -> list[Effect]:
        """What each change did, of those whose two networks are both here."""
        return _effects(self.rows, self.measured_on, self.counts.get(self.measured_on, 0))

    @property
    def findings(self) -> list[str]:
        """The effects in words."""
        return [*_unfinished(self.rows), *_findings(self.effects, self.measured_on)]

    @property
    def chosen(self) -> str:
        """The network to take."""
        best = _best(self.rows)
        return best.model if best else ""

    @property
    def advice(self) -> str:
        """Which network to take, and which others are as good as far as can be told."""
        return _advice(self.rows, self.counts)

    def asdict(self) -> dict[str, Any]:
        """Everything as values JSON can hold."""
        return {
            "title": f"{len(self.rows)} networks on {self.dataset.name}",
            "folder": str(self.folder),
            "chosen": self.chosen,
            "advice": self.advice,
            "models": [asdict(row) for row in self.rows],
            "measured_on": self.measured_on,
            "effects": [asdict(effect) for effect in self.effects],
            "findings": self.findings,
            "failures": [{"model": k, "reason": v} for k, v in self.failures.items()],
            "data": {
                "name": self.dataset.name,
                "classes": self.dataset.classes,
                "counts": self.counts,
            },
            "command": self.command,
            "environment": self.environment,
        }

    def write(self) -> None:
        """Replace comparison.csv and comparison.html in the folder."""
        RunFolder(self.folder).write_text("comparison.csv", _csv(self))
        write_comparison(self.folder / "comparison.html", self.asdict())


def compare(
    dataset: str | Path | Dataset, models: str | Sequence[str] = (), **changes: Any
) -> Comparison:
    """Train `models` (default: the ten lab networks) on `dataset`, one after the other, and compare
    them.

    changes: any field of `Recipe` or `Options`, for all of them alike; each network's own recipe
    stands where nothing is said. `out` is the folder of the comparison, by default runs/lab-DATA:
    each run lies in it under its network's name. What is finished there is not trained again, a
    run that was cut off goes on; `epochs` may be raised, other changes are refused.

    A network that fails is named in `failures` and the others go on. The comparison is written
    anew after every network.
    """
    names = [models] if isinstance(models, str) else list(dict.fromkeys(models)) or list(MODELS)
    options, said = _sorted_out(changes)
    recipes = {name: _recipe(name, said) for name in names}
    if not isinstance(dataset, Dataset):
        first = recipes[names[0]]  # all see the same split
        how = {"val": first.val, "seed": first.seed, "strict": options.strict}
        dataset = data.load(dataset, download=options.download, **how)  # type: ignore[arg-type]
    folder = Path(options.out or Path("runs") / f"lab-{dataset.name}")
    if folder.exists() and not folder.is_dir():
        raise SigakError(f"--out expects a folder for the comparison, but {folder} is a file")
    digest = data.digest(dataset)
    for name, recipe in recipes.items():
        _refuse_another(folder / name, name, recipe, options, digest)
    given = names if names != list(MODELS) else []
    command = " ".join(["sigak", "lab", data_word(dataset), *given, *flags(changes)])
    found = Comparison(folder, dataset, command, environment(pick_device(options.device)))
    progress = Progress(visible=not options.quiet)
    for place, (name, recipe) in enumerate(recipes.items(), 1):
        progress.say(f"{name} ({place} of {len(names)})")
        try:
            found.rows.append(_run(name, folder, dataset, recipe, changes))
        except Exception as error:  # whatever it was, the other networks shall not be lost
            if isinstance(error.__cause__, KeyboardInterrupt):
                raise Failure(
                    f"interrupted at {name}; the same command goes on where it stopped"
                ) from error
            found.failures[name] = _reason(error)
            progress.say(f"{name} failed: {found.failures[name]}")
        found.write()
    return found


# --- training -------------------------------------------------------------------------------


def _sorted_out(changes: Mapping[str, Any]) -> tuple[Options, dict[str, Any]]:
    """Changes as options and what is said of the recipe."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise SigakError(
            "a comparison runs in one process; start `sigak lab` without torchrun, or train each "
            "network with `sigak train`"
        )
    known = {f.name for f in fields(Options)}
    options = Options(**{k: v for k, v in changes.items() if k in known})
    if options.resume:
        raise SigakError(
            "a comparison goes on by itself: leave out --resume and give its folder with --out"
        )
    return options, {k: v for k, v in changes.items() if k not in known}


def _recipe(name: str, said: dict[str, Any]) -> Recipe:
    recipe = Recipe.of(entry(name).recipe, said)
    optimize.check(recipe)
    return recipe


def _refuse_another(folder: Path, name: str, recipe: Recipe, options: Options, digest: str) -> None:
    """Raise SigakError where `folder` holds a run that is not the one asked for."""
    saved = RunFolder(folder).load_state()
    if saved is None:
        return
    header = saved[1]
    if header["model"] != name:
        raise SigakError(f"{folder} holds a run of {header['model']}, not of {name}")
    if header["data"] != digest:
        raise SigakError(
            f"the data is not what {folder} was trained on (pictures were added, removed or "
            "changed); give another --out"
        )
    before = header["recipe"] | {k: header["options"][k] for k in _LEARNT}
    now = recipe.asdict() | {k: getattr(options, k) for k in _LEARNT}
    if header["epoch"] - 1 <= recipe.epochs:
        before["epochs"] = recipe.epochs
    for key, value in now.items():
        if before[key] != value:
            raise SigakError(
                f"--{key.replace('_', '-')} was {before[key]!r} when {folder} was trained, and is "
                f"{value!r} now; give the flags of that time, or another --out"
            )


def _run(
    name: str, place: Path, dataset: Dataset, recipe: Recipe, changes: Mapping[str, Any]
) -> Row:
    """Train one network, or what is left of its training, and read what came out."""
    folder = place / name
    files = RunFolder(folder)
    if not _finished(files, recipe):
        (folder / _TRAIN).unlink(missing_ok=True)
        where = (
            {"resume": str(folder), "epochs": recipe.epochs}
            if folder.is_dir()
            else {"out": str(folder)}
        )
        train(name, dataset, **{**changes, "out": "", **where})
        device = changes.get("device", "auto")
        files.write_json(_TRAIN, evaluate(folder, dataset, split="train", device=device))
    return _row(files, _PUBLISHED.get(name) if dataset.name == _PUBLISHED_ON else None)


def _finished(files: RunFolder, recipe: Recipe) -> bool:
    saved = files.load_state()
    if saved is None or not (files.path / _TRAIN).exists():
        return False
    return bool(saved[1]["stop"]) or saved[1]["epoch"] > recipe.epochs


def _reason(error: Exception) -> str:
    plain = isinstance(error, SigakError | Failure | OSError)
    return str(error) if plain else f"{type(error).__name__}: {error}"


# --- reading --------------------------------------------------------------------------------


def _row(files: RunFolder, published: Published | None) -> Row:
    """The row of a finished run, from its folder alone."""
    saved = files.load_state()
    if saved is None:
        raise Failure(f"{files.path} has lost its resume file; train it anew with another --out")
    state, header = saved
    epochs: list[dict[str, float]] = header["history"]
    history = {key: [_finite(epoch.get(key)) for epoch in epochs] for key in epochs[-1]}
    predictor = load(files.path, device="cpu")
    total, trainable = count_parameters(predictor.network)
    measured = _read(files.path / "evaluation.json")
    accuracies = {
        "train": _read(files.path / _TRAIN).get("accuracy"),
        "val": _finite(predictor.header["scores"].get("val_accuracy")),
        "test": measured.get("accuracy") if measured["split"] == "test" else None,
    }
    rates = sorted(epoch["images_per_second"] for epoch in epochs)
    return Row(
        model=header["model"],
        parameters=total,
        trainable=trainable,
        epochs=len(epochs),
        best_epoch=state["callbacks"][0][1]["best_epoch"],
        **{f"{split}_accuracy": value for split, value in accuracies.items()},
        gap=_gap(accuracies),
        seconds=sum(epoch["seconds"] for epoch in epochs),
        images_per_second=rates[len(rates) // 2],
        history=history,
        diagnosis=diagnose(history),
        published=published,
        report=f"{files.path.name}/report.html",
    )


def _gap(accuracies: Mapping[str, float | None]) -> float | None:
    train, val, test = (accuracies[split] for split in ("train", "val", "test"))
    held_out = test if val is None else val
    return None if train is None or held_out is None else train - held_out


def _read(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


# --- comparing ------------------------------------------------------------------------------


def _margin(first: float, second: float, count: int) -> float:
    """The 95 % margin of the difference of two accuracies on `count` pictures each.

    Taken as independent; on the same pictures two networks often err together, so it is wide
    rather than narrow.
    """
    return 1.96 * math.sqrt((first * (1 - first) + second * (1 - second)) / max(count, 1))


def _effects(rows: Sequence[Row], split: str, count: int) -> list[Effect]:
    known = {row.model: row for row in rows}
    found = []
    for what, model, against in _CHANGES:
        if model not in known or against not in known:
            continue
        new, old = known[model], known[against]
        after, before = getattr(new, f"{split}_accuracy"), getattr(old, f"{split}_accuracy")
        if after is None or before is None:
            continue
        change, margin = after - before, _margin(after, before, count)
        verdict = "within chance" if abs(change) <= margin else "helps" if change > 0 else "hurts"
        same = new.published and old.published and not new.published.note
        theirs = new.published.accuracy - old.published.accuracy if same else None  # type: ignore[union-attr]
        found.append(Effect(what, model, against, before, after, change, margin, verdict, theirs))
    return found


def _unfinished(rows: Sequence[Row]) -> list[str]:
    """A warning where most networks were still learning when their training ended."""
    late = sum(row.best_epoch == row.epochs for row in rows)
    if len(rows) < 2 or 2 * late <= len(rows):
        return []
    longer = 2 * max(row.epochs for row in rows)
    return [
        f"{late} of {len(rows)} networks were at their best in their last epoch: they had not "
        "finished learning. Regularisers slow learning down before they pay, so train longer "
        f"(--epochs {longer}) before you judge them."
    ]


def _findings(effects: Sequence[Effect], split: str) -> list[str]:
    """One sentence for each network that others were measured against."""
    sentences = []
    where = {"val": "validation"}.get(split, split)
    for against in dict.fromkeys(effect.against for effect in effects):
        group = [effect for effect in effects if effect.against == against]
        ordered = sorted(group, key=lambda effect: -effect.change)
        parts = (
            f"{effect.what} {_points(effect.change)} points"
            f"{' (within chance)' if effect.verdict == 'within chance' else ''}"
            for effect in ordered
        )
        before = _percent(group[0].before)
        sentences.append(f"Against {against} ({before} on {where}): {', '.join(parts)}.")
    return sentences


def _best(rows: Sequence[Row]) -> Row | None:
    """The highest validation accuracy; of equals the smallest."""
    known = [row for row in rows if row.val_accuracy is not None]
    return max(known, key=lambda row: (row.val_accuracy, -row.parameters), default=None)


def _advice(rows: Sequence[Row], counts: Mapping[str, int]) -> str:
    best = _best(rows)
    if not rows:
        return "No network was trained."
    if best is None or best.val_accuracy is None:
        return (
            "Nothing was held out for validation, and choosing on the test pictures would make "
            "their figures worthless: hold some out (--val 0.1)."
        )
    words = f"Take {best.model}: {_percent(best.val_accuracy)} on validation"
    if best.test_accuracy is not None:
        words += f", {_percent(best.test_accuracy)} on test"
    words += "."
    equals = [
        row
        for row in rows
        if row is not best
        and row.val_accuracy is not None
        and best.val_accuracy - row.val_accuracy
        <= _margin(best.val_accuracy, row.val_accuracy, counts["val"])
    ]
    if equals:
        names = ", ".join(f"{row.model} ({_percent(row.val_accuracy)})" for row in equals)
        words += f" {counts['val']:,} validation pictures cannot tell it from {names}."
        smallest = min(equals, key=lambda row: row.parameters)
        if smallest.parameters < 0.9 * best.parameters:
            words += (
                f" Of these {smallest.model} is the smallest, with {smallest.parameters:,} "
                f"parameters instead of {best.parameters:,}."
            )
    return words


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}".replace("%", " %")


def _points(share: float) -> str:
    return f"{100 * share:+.1f}".replace("-", "−")


def _csv(found: Comparison) -> str:
    """comparison.csv: one row a network, the failed ones with their reason."""
    left_out = ("history", "published")
    names = [f.name for f in fields(Row) if f.name not in left_out]
    text = io.StringIO()
    table = csv.DictWriter(
        text,
        [*names, "published_accuracy", "published_epochs", "published_note", "failure"],
        lineterminator="\n",
    )
    table.writeheader()
    for row in found.rows:
        cells = {name: getattr(row, name) for name in names}
        if row.published:
            cells |= {f"published_{k}": v for k, v in asdict(row.published).items()}
        table.writerow(cells)
    for model, reason in found.failures.items():
        table.writerow({"model": model, "failure": reason})
    return text.getvalue()
