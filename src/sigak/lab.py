"""The lab: several networks on the same data, each in its own run folder, and one comparison.

The ten networks of `models/lab.py` answer what depth, dropout, an L2 penalty, augmentation and
batch norm do; any other networks can be compared as well. The folder is the memory: the same
command again skips what is finished and goes on exactly where it was cut off.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from sigak import data, optimize
from sigak.comparison import Comparison, Published, Row
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

__all__ = ["compare"]

# Beside a run's own files: the best weights measured on the pictures they learnt from. Written
# last, so it marks a run that is finished.
_TRAIN = "evaluation-train.json"
# Options that decide what is learnt; the others may change from one start to the next.
_LEARNT = (
    "pretrained", "monitor", "early_stop", "min_delta", "reduce_lr", "reduce_factor", "min_lr",
)  # fmt: skip

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
        _write(found)
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


# --- writing --------------------------------------------------------------------------------


def _write(found: Comparison) -> None:
    """Replace comparison.csv and comparison.html in the folder."""
    RunFolder(found.folder).write_text("comparison.csv", _csv(found))
    write_comparison(found.folder / "comparison.html", found.asdict())


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
