"""A run's folder: where it is, what stands in it, and its report.

best.safetensors (the checkpoint), resume.safetensors (everything a restart needs), recipe.json,
metrics.csv, evaluation.json, report.html.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from sigak import data, draw, models, tasks
from sigak.data import Dataset, domains
from sigak.data.patches import fitted
from sigak.io import image, volumes
from sigak.io import weights as files
from sigak.models._entry import Entry, count_parameters
from sigak.recipe import Options, Recipe
from sigak.runtime import environment
from sigak.structures import Batch, SigakError

if TYPE_CHECKING:
    from sigak.training import Training

__all__ = [
    "RESUME",
    "RunFolder",
    "choose_folder",
    "data_word",
    "described",
    "flags",
    "loaded",
    "preparation",
    "repeat_command",
    "resumed",
    "story",
]

RESUME = "resume.safetensors"
SHEETS = "samples"


def loaded(dataset: str | Path | Dataset, model: str, recipe: Recipe, options: Options) -> Dataset:
    """What `dataset` names, as the task of the network `model` takes it, with the pictures of
    --target where the network adapts to them.
    """
    row = models.entry(model)
    _check_target(row, model, recipe, options)
    needs = tasks.needs(row.task)
    how: dict[str, Any] = {"val": recipe.val, "seed": recipe.seed, "strict": options.strict}
    how |= {"download": options.download, "needs": needs}
    if not isinstance(dataset, Dataset):
        dataset = data.load(dataset, single_class=options.single_class, **how)
    dataset = data.provide(dataset, needs)
    if options.target:
        dataset = domains.joined(dataset, domains.read(options.target, **how))
    return dataset


def _check_target(row: Entry, model: str, recipe: Recipe, options: Options) -> None:
    """SigakError where the network and --target do not belong together."""
    adapts = getattr(row.build, "adapts", False)
    if adapts and not options.target:
        raise SigakError(
            f"{model} adapts to pictures of a second domain, and there are none; name their "
            f"folder with --target"
        )
    if options.target and not adapts:
        raise SigakError(
            f"--target is for networks that adapt to it, such as adaptsegnet, not for {model}; "
            f"leave it out"
        )
    if adapts and recipe.l2:
        raise SigakError("--l2 is not for networks with discriminators; use --weight-decay")


def preparation(model: str, dataset: Dataset, recipe: Recipe) -> image.Preparation:
    """How every picture or volume of a run becomes an input of the network `model`."""
    row = models.entry(model).input
    size = (recipe.size, recipe.size) if recipe.size else row.size
    if not row.depth:
        color = recipe.color or (dataset.color if row.color == "any" else row.color)
        return image.Preparation(size, color, recipe.fit or row.fit, resample=row.resample)
    for flag, said in (("--color", recipe.color), ("--fit", recipe.fit)):
        if said:
            raise SigakError(f"{flag} is for pictures, {dataset.name} holds volumes; leave it out")
    whole = image.Preparation(
        size, row.color, "native", depth=recipe.size or row.depth, intensity=volumes.INTENSITY
    )
    return fitted(whole, dataset.splits["train"])


def resumed(resume: str, model: str, said: Mapping[str, Any]) -> dict[str, Any] | None:
    """The saved run's header when --resume names one; refuses flags that contradict it."""
    if not resume:
        return None
    folder = Path(resume)
    if not folder.is_dir():
        raise SigakError(f"--resume expects the folder of a run, but {folder} does not exist")
    path = folder / RESUME
    if not path.exists():
        return None  # cut off before anything was saved: start over
    header = files.read(path)[1]
    if header["model"] != model:
        raise SigakError(f"{folder} holds a run of {header['model']}, not of {model}")
    changed = [k for k, v in said.items() if k != "epochs" and header["recipe"][k] != v]
    if changed:
        name = changed[0]
        raise SigakError(
            f"--{name.replace('_', '-')} was {header['recipe'][name]} when {folder} began and "
            f"cannot become "
            f"{said[name]}; leave it out, or train anew with another --out"
        )
    return header


def repeat_command(model: str, dataset: object, changes: Mapping[str, Any]) -> str:
    """The command line that repeats a run."""
    return " ".join(["sigak", "train", model, data_word(dataset), *flags(changes)])


def data_word(dataset: object) -> str:
    """A data set as the command line names it, for a POSIX shell."""
    return shlex.quote(str(getattr(dataset, "root", None) or getattr(dataset, "name", dataset)))


def flags(changes: Mapping[str, Any]) -> list[str]:
    """Changes of recipe and options as the command line's words, but for where the run lies."""
    words: list[str] = []
    for name, value in changes.items():
        if value is False or name in ("out", "resume", "quiet"):
            continue
        flag = "--" + name.replace("_", "-")
        words += [flag] if value is True else [flag, shlex.quote(str(value))]
    return words


def choose_folder(options: Options, model: str, dataset: str) -> Path:
    """The run's folder; an earlier run is never overwritten."""
    if options.resume:
        return Path(options.resume)
    if options.out:
        folder = Path(options.out)
        if folder.exists() and not folder.is_dir():
            raise SigakError(f"--out expects a folder for the run, but {folder} is a file")
        if (folder / files.BEST).exists() or (folder / RESUME).exists():
            raise SigakError(
                f"{folder} already holds a run; continue it with --resume {folder}, or give "
                f"another --out"
            )
        return folder
    plain = Path("runs") / f"{model}-{dataset}"
    folder, number = plain, 2
    while folder.exists():
        folder, number = plain.with_name(f"{plain.name}-{number}"), number + 1
    return folder


class RunFolder:
    """Reads and writes one run's files; every file is replaced whole or not at all."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write_text(self, name: str, text: str) -> None:
        """Replace a text file."""
        self.path.mkdir(parents=True, exist_ok=True)
        part = self.path / f"{name}.part"
        part.write_text(text, encoding="utf-8")
        part.replace(self.path / name)

    def write_json(self, name: str, value: Any) -> None:
        """Replace a JSON file."""
        self.write_text(name, json.dumps(value, indent=1, ensure_ascii=False, default=str) + "\n")

    def write_history(self, rows: Sequence[Mapping[str, float]]) -> None:
        """metrics.csv: one row an epoch, one column a figure."""
        names = list(dict.fromkeys(name for row in rows for name in row))
        lines = [",".join(names), *(",".join(_cell(row.get(n)) for n in names) for row in rows)]
        self.write_text("metrics.csv", "\n".join(lines) + "\n")

    def write_sheet(self, epoch: int, picture: np.ndarray | None) -> None:
        """samples/epoch-0001.png ...: what the task shows of an epoch, where it shows something."""
        if picture is not None:
            image.save(self.path / SHEETS / f"epoch-{epoch:04d}.png", picture)

    def save_state(self, state: dict[str, Any], header: dict[str, Any]) -> None:
        """Write the resume file: `state` nests tensors and plain values, `header` is plain."""
        tensors: dict[str, Tensor] = {}
        packed = files.pack(state, tensors)
        files.write(self.path / RESUME, tensors, {**header, "state": packed})

    def load_state(self) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """(state, header) as saved; None when the run was cut off before its first save."""
        path = self.path / RESUME
        if not path.exists():
            return None
        tensors, header = files.read(path)
        return files.unpack(header.pop("state"), tensors), header


def described(training: Training) -> dict[str, Any]:
    """What recipe.json says: how to repeat the run, and what it ran on."""
    return {
        "command": training.command,
        "model": training.name,
        "data": training.dataset.name,
        "recipe": training.recipe.asdict(),
        "options": asdict(training.options),
        "environment": environment(training.device),
    }


def story(
    training: Training,
    split: str,
    evaluation: dict[str, Any],
    history: dict[str, np.ndarray],
    wrong: list[dict[str, Any]],
) -> dict[str, Any]:
    """What the report tells of a finished training, as plain values and pictures."""
    total, trainable = count_parameters(training.network)
    splits = training.dataset.splits
    problems = training.dataset.problems + [
        p for pics in training.pictures.values() for p in pics.problems
    ]
    return {
        "command": training.command,
        "title": f"{training.name} on {training.dataset.name}",
        "model": {
            "name": training.name,
            "task": training.entry.task,
            "parameters": {"total": total, "trainable": trainable},
            "input": _input(training.preparation),
        },
        "data": {
            "name": training.dataset.name,
            "classes": training.dataset.classes,
            "counts": {name: len(s) for name, s in splits.items()},
            "problems": [asdict(p) for p in problems],
        },
        "history": {name: values.tolist() for name, values in history.items()},
        "best_epoch": training.keeper.best_epoch,
        "evaluation": evaluation,
        "evaluated_on": split,
        "mistakes": wrong,
        "samples": _examples(training),
        "sheets": _sheets(training.folder),
        "recipe": training.recipe.asdict(),
        "environment": environment(training.device),
        "seconds": float(history["seconds"].sum()),
        "images_per_second": float(np.median(history["images_per_second"])),
        "checkpoint": files.BEST,
    }


def _input(made: image.Preparation) -> list[int]:
    """[H, W, C], of volumes [D, H, W, C]."""
    return [*([made.depth] if made.depth else []), *made.size, made.channels]


def _sheets(folder: Path, most: int = 6) -> list[dict[str, Any]]:
    """What the epochs showed, evenly chosen from the first to the last; none for most tasks."""
    paths = sorted((folder / SHEETS).glob("epoch-*.png"))
    chosen = np.unique(np.linspace(0, len(paths) - 1, min(len(paths), most)).round().astype(int))
    return [
        {"epoch": int(paths[i].stem.removeprefix("epoch-")), "image": image.read(paths[i])}
        for i in chosen
    ]


def _examples(training: Training, classes: int = 20, each: int = 6) -> list[dict[str, Any]]:
    """The first training pictures of each class, as the network sees them."""
    pictures = training.pictures["train"]
    if training.dataset.kind == "objects":
        return _examples_with_boxes(training)
    if training.dataset.kind in ("class_map", "volume"):
        return _examples_with_maps(training)
    labels = pictures.split.labels[pictures.places]
    first = [np.flatnonzero(labels == k)[:each] for k in np.unique(labels)[:classes]]
    chosen = np.concatenate(first).astype(np.int64)
    batch = pictures.batch(chosen)
    views = batch.images.permute(0, 2, 3, 1).cpu().numpy()
    return [
        {"image": view, "label": training.dataset.classes[int(labels[i])], "source": source}
        for view, i, source in zip(views, chosen, batch.sources, strict=True)
    ]


def _examples_with_boxes(training: Training, most: int = 12) -> list[dict[str, Any]]:
    """Training pictures with their boxes, as the network sees them in the first epoch."""
    names, batch = training.dataset.classes, _first(training, most)
    views = batch.images.permute(0, 2, 3, 1).cpu().numpy()
    found = []
    for view, objects, source in zip(views, batch.instances or [], batch.sources):
        labels = objects.labels.tolist()
        drawn = draw.boxes(view, objects.boxes.numpy(), [names[k] for k in labels], labels)
        found.append({"image": drawn, "label": f"{len(labels)} objects", "source": source})
    return found


def _examples_with_maps(training: Training, most: int = 12) -> list[dict[str, Any]]:
    """Training pictures, or patches of volumes, with their class maps, as the network sees them in
    the first epoch.
    """
    names, batch = training.dataset.classes, _first(training, most)
    colors = training.dataset.palette or draw.palette(names)
    views = batch.images.movedim(1, -1).cpu().numpy()
    maps = np.zeros(0) if batch.class_maps is None else batch.class_maps.cpu().numpy()
    drawer = draw.volume if training.dataset.kind == "volume" else draw.class_map
    found = []
    for view, labels, source in zip(views, maps, batch.sources):
        drawn = drawer(view, labels, names, colors)
        count = np.count_nonzero(np.bincount(labels.ravel(), minlength=256)[: len(names)])
        found.append({"image": drawn, "label": f"{count} classes", "source": source})
    return found


def _first(training: Training, most: int) -> Batch:
    """The first training pictures as the first epoch sees them."""
    pictures = training.pictures["train"]
    batch = pictures.batch(np.arange(min(most, len(pictures))), (training.recipe.seed, 1))
    if training.feed.augment is not None:
        batch = training.feed.augment(batch, training.recipe.seed, 1)
    return batch


def _cell(value: float | None) -> str:
    return "" if value is None else repr(int(value) if float(value).is_integer() else value)
