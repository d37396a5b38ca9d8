"""Comparison: what several networks trained on the same data have to say, in figures and words.

The network to take is chosen on the validation pictures, so that the test figures stay honest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sigak.data import Dataset

__all__ = ["Comparison", "Effect", "Published", "Row"]

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
class Published:
    """What others measured on the test pictures of CIFAR-10 after `epochs`; note: how their
    network differs from ours.
    """

    accuracy: float
    epochs: int
    note: str = ""


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
