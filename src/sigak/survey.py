"""Survey: networks side by side, with what they cost, how fast they are here, and what their
publishers say they reach.

Size, depth and multiply-adds are counted at each network's own input size; speed is measured on
this machine in float32, as `predict` runs; accuracies are published figures, each with its source,
some of them at another picture size than the network's own.
"""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch

from sigak import models
from sigak.bubbles import Bubble, draw_bubbles
from sigak.complexity import measure
from sigak.models._published import CLASSICS, Score, scores
from sigak.runtime import TorchEngine, environment, pick_device
from sigak.structures import Failure, SigakError

__all__ = ["COLUMNS", "Row", "Survey", "check", "choose", "compare"]

_WARM = 2  # batches that are not timed
_ROUNDS = 3  # batches that are timed at least, unless one takes longer than the time there is
_SLACK = 2.5  # times the largest call's numbers that a network may need for all its maps together

# column -> whether the best, which stands first, is the highest
COLUMNS = {
    "name": False,
    "megabytes": False,
    "parameters": False,
    "depth": False,
    "multiply_adds": False,
    "top1": True,
    "top5": True,
    "images_per_second": True,
}
_TABLES = (".csv", ".json")
_DRAWINGS = (".png", ".svg", ".pdf")


@dataclass(frozen=True)
class Row:
    """One network.

    size (H, W) of its input; megabytes of 2**20 bytes, its parameters and statistics in float32;
    depth and multiply_adds as `complexity.measure` counts them; top1 and top5 in per cent, of the
    first of `published`; images_per_second: the median of `rounds` batches. None: not known, or not
    measured.
    """

    name: str
    size: tuple[int, int]
    megabytes: float
    parameters: int
    trainable: int
    depth: int
    multiply_adds: int
    top1: float | None
    top5: float | None
    source: str
    published: tuple[Score, ...]
    images_per_second: float | None = None
    rounds: int = 0


@dataclass
class Survey:
    """Networks side by side. failures: {name: reason} of those that were left out."""

    batch: int
    precision: str
    environment: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)

    def asdict(self) -> dict[str, Any]:
        """Everything as values JSON can hold."""
        return asdict(self)

    def sort(self, column: str) -> None:
        """Order the rows by one of `COLUMNS`, the best first and the unknown last."""
        known = [row for row in self.rows if getattr(row, column) is not None]
        known.sort(key=lambda row: getattr(row, column), reverse=COLUMNS[column])
        self.rows = known + [row for row in self.rows if getattr(row, column) is None]

    def table(self) -> list[tuple[str, ...]]:
        """A heading and a row per network, for people."""
        heading = ("name", "input", "MB", "parameters", "depth", "G mult-adds")
        return [
            (*heading, "top-1 %", "top-5 %", "images/s", "published by"),
            *(_cells(row) for row in self.rows),
        ]

    @property
    def notes(self) -> list[str]:
        """How the figures are to be read."""
        said = [
            "MB: 2**20 bytes in float32. depth: layers with weights on the longest path. "
            "Accuracies: published figures for ImageNet, not measured here."
        ]
        if any(row.images_per_second for row in self.rows):
            said.append(f"images/s: {self._conditions}.")
        return said

    @property
    def _conditions(self) -> str:
        where = self.environment
        threads = f", {where['threads']} threads" if where["device"] == "cpu" else ""
        return (
            f"inference in {self.precision}, batches of {self.batch} at each network's own input "
            f"size, {where['device']}{threads}, PyTorch {where['torch']}"
        )

    def save(self, path: str | Path) -> None:
        """Write a table (.csv, .json) or a chart of accuracy over speed (.png, .svg, .pdf)."""
        path = Path(path)
        _check_suffix(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".csv":
            path.write_text(self._csv(), encoding="utf-8", newline="")
        elif path.suffix == ".json":
            text = json.dumps(self.asdict(), indent=1, ensure_ascii=False)
            path.write_text(text + "\n", encoding="utf-8")
        else:
            self._draw(path)

    def _csv(self) -> str:
        text = io.StringIO()
        writer = csv.writer(text)
        names = (*COLUMNS, "source", "trainable", "height", "width", "rounds")
        writer.writerow(names)
        for row in self.rows:
            facts = asdict(row) | {"height": row.size[0], "width": row.size[1]}
            writer.writerow(["" if facts[n] is None else facts[n] for n in names])
        return text.getvalue()

    def _draw(self, path: Path) -> None:
        bubbles = [
            Bubble(row.name, row.images_per_second, row.top1, row.megabytes)
            for row in self.rows
            if row.top1 is not None and row.images_per_second is not None
        ]
        draw_bubbles(
            bubbles,
            path,
            title="Accuracy against speed; area: size in MB",
            across="images per second",
            up="published top-1 accuracy, %",
            note=f"{self._conditions}. Accuracy: its publisher's, at times at another size.",
        )


def _cells(row: Row) -> tuple[str, ...]:
    def one(value: float | None, digits: int) -> str:
        return "-" if value is None else f"{value:,.{digits}f}"

    speed = row.images_per_second
    return (
        row.name,
        f"{row.size[0]}x{row.size[1]}",
        one(row.megabytes, 1),
        f"{row.parameters:,}",
        str(row.depth),
        one(row.multiply_adds / 1e9, 2),
        one(row.top1, 1),
        one(row.top5, 1),
        one(speed, 1 if speed is not None and speed < 100 else 0),
        row.source or "-",
    )


def choose(patterns: Sequence[str] = ()) -> list[str]:
    """The classification networks that are called so, or match such a pattern; the classics where
    nothing is said.
    """
    known = set(models.names())
    found: dict[str, None] = {}
    for pattern in patterns:
        # A whole name means that network alone, although others may contain it.
        matched = [pattern] if pattern in known else models.matching([pattern])
        found |= dict.fromkeys(n for n in matched if models.entry(n).task == "classify")
    if patterns and not found:
        raise SigakError(
            f"{', '.join(patterns)}: these networks do not classify; only those that do can be "
            "compared"
        )
    return list(found or CLASSICS)


def compare(
    patterns: Sequence[str] = (),
    *,
    batch: int = 16,
    speed: bool = True,
    seconds: float = 2.0,
    device: str = "auto",
    progress: Callable[[str], None] = lambda sentence: None,
) -> Survey:
    """Look at the networks that `choose` finds.

    batch: pictures at a time; seconds: how long each is timed, beside two batches to warm up;
    speed: False measures none. A network that fails, or may not fit in memory, is named and left
    out; Failure where none is left.
    """
    if batch < 1 or not 0 < seconds < math.inf:
        raise SigakError(
            f"expected a batch of 1 or more and seconds above 0, received {batch} and {seconds}"
        )
    names = choose(patterns)
    place = pick_device(device)
    found = Survey(batch, "float32", environment(place))
    for number, name in enumerate(names, 1):
        progress(f"{number} of {len(names)}: {name}")
        try:
            found.rows.append(_look_at(name, place, batch, seconds if speed else 0))
        except (RuntimeError, ValueError, MemoryError, AssertionError, Failure) as error:
            found.failures[name] = str(error).splitlines()[0] if str(error) else repr(error)
            progress(f"left out {name}: {found.failures[name]}")
    if not found.rows:
        raise Failure("none of the networks could be measured; see the sentences above")
    return found


def _look_at(name: str, device: torch.device, batch: int, seconds: float) -> Row:
    entry = models.entry(name)
    total, trainable = entry.parameters
    cost = measure(name)
    published = scores(name)
    score = published[0] if published else None
    rounds = []
    if seconds:
        _check_memory(4 * (total + int(_SLACK * batch * cost.widest)), device)
        rounds = _time(name, device, batch, seconds)
    return Row(
        name=name,
        size=entry.input.size,
        megabytes=4 * total / 2**20,
        parameters=total,
        trainable=trainable,
        depth=cost.depth,
        multiply_adds=cost.multiply_adds,
        top1=score.top1 if score else None,
        top5=score.top5 if score else None,
        source=_source(score),
        published=published,
        images_per_second=batch / statistics.median(rounds) if rounds else None,
        rounds=len(rounds),
    )


def _source(score: Score | None) -> str:
    if score is None:
        return ""
    return score.source if score.side is None else f"{score.source}, {score.side} px"


def _check_memory(needed: int, device: torch.device) -> None:
    """A GPU says itself when it is full; a CPU's system would end us."""
    free = psutil.virtual_memory().available
    if device.type == "cpu" and needed > free:
        raise Failure(
            f"it may need {needed / 1e9:.1f} GB of memory and {free / 1e9:.1f} GB are free; a "
            "smaller --batch needs less"
        )


def _time(name: str, device: torch.device, batch: int, seconds: float) -> list[float]:
    """Seconds of each of several batches."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = models.create(name)
        images = torch.rand(batch, *models.input_shape(network, models.arguments(name)))
    engine = TorchEngine(network, device)
    images = images.to(device, memory_format=torch.channels_last)

    def once() -> float:
        begun = time.perf_counter()
        engine(images)[0, 0].item()  # reading a number back waits for the device
        return time.perf_counter() - begun

    for _ in range(_WARM):
        once()
    rounds: list[float] = []
    while sum(rounds) < seconds or (len(rounds) < _ROUNDS and rounds[-1] < seconds):
        rounds.append(once())
    return rounds


def check(sort: str, files: Sequence[str | Path]) -> None:
    """Raise SigakError, before minutes are spent, where a column or a kind of file is not known."""
    if sort and sort not in COLUMNS:
        raise SigakError(f"--sort must be one of {', '.join(COLUMNS)}, received {sort!r}")
    for file in files:
        _check_suffix(Path(file))


def _check_suffix(path: Path) -> None:
    if path.suffix not in (*_TABLES, *_DRAWINGS):
        raise SigakError(
            f"--out must end in {', '.join((*_TABLES, *_DRAWINGS))}, received {str(path)!r}"
        )
