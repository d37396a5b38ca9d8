"""Sections that set several runs on the same data side by side.

Each takes the whole comparison and gives Markup, which is empty where there is nothing to show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

from sigak.report._charts import Line, curves, legend
from sigak.report._markup import Markup, join, tag
from sigak.report._parts import (
    DASH,
    NBSP,
    bar,
    card,
    duration,
    facts,
    interval,
    number,
    percent,
    section,
    table,
    unbroken,
)
from sigak.report._style import HUES

__all__ = ["diagnosis", "effects", "failures", "headline", "learning", "networks", "setup"]

Comparison = Mapping[str, Any]

_CHARTS = (
    ("Validation accuracy", "val_accuracy"),
    ("Train accuracy", "accuracy"),
    ("Validation loss", "val_loss"),
    ("Train loss", "loss"),
)
_SPLITS = {"train": "training", "val": "validation"}


def headline(comparison: Comparison) -> Markup:
    """The network to take, its figures, and why it is the one."""
    rows = comparison["models"]
    chosen = next((r for r in rows if r["model"] == comparison.get("chosen")), None)
    cards = []
    if chosen:
        counts = (comparison.get("data") or {}).get("counts") or {}
        cards = [card(chosen["model"], "to take")]
        cards += [
            card(
                percent(chosen[f"{split}_accuracy"]),
                f"its {name} accuracy",
                interval(chosen[f"{split}_accuracy"], counts.get(split)),
            )
            for split, name in (("val", "validation"), ("test", "test"))
        ]
    lost = len(comparison.get("failures") or [])
    cards += [
        card(number(len(rows)), "networks", f"{lost} more failed" if lost else ""),
        card(duration(sum(row["seconds"] for row in rows)), "training time"),
    ]
    return join(
        [
            tag("div", *(c for c in cards if c), class_="cards"),
            tag("p", *unbroken(comparison.get("advice") or ""), class_="verdict below"),
        ]
    )


def networks(comparison: Comparison) -> Markup:
    """One row a network, in the order they were trained, and what others published of them."""
    rows = comparison["models"]
    if not rows:
        return Markup()
    headers = ("network", "parameters", "best epoch", "train", "validation", "test", "gap")
    cells = [[_name(row, place), *_figures(row)] for place, row in enumerate(rows)]
    right = [False, True, True, False, False, False, True, True, True]
    note = (
        "Accuracies are those of the best epoch's weights, on the training pictures too: without "
        "dropout and augmentation. The gap is train less validation, in points."
    )
    return section(
        "networks",
        "Networks",
        table((*headers, "training", "images/s"), cells, right),
        tag("p", note, class_="soft after"),
        _published(rows),
    )


def failures(comparison: Comparison) -> Markup:
    """Networks that could not be trained, and why."""
    lost = comparison.get("failures") or []
    rows = [[row["model"], join(unbroken(row["reason"]))] for row in lost]
    return section("failures", "Failures", table(("network", "reason"), rows)) if rows else Markup()


def learning(comparison: Comparison) -> Markup:
    """Every network's curves on one sheet, in the colours of the table."""
    rows = comparison["models"]
    longest = max((len(row["history"]["loss"]) for row in rows), default=0)
    epochs = range(1, longest + 1)

    def chart(title: str, key: str) -> Markup:
        lines = [
            Line(
                row["model"],
                [v for v, _ in zip_longest(row["history"].get(key) or [], epochs)],
                _style(i),
            )
            for i, row in enumerate(rows)
        ]
        return curves(title, epochs, lines, share="accuracy" in key, named=False)

    charts = [c for c in (chart(*each) for each in _CHARTS) if c]
    if not charts:
        return Markup()
    names = (legend(row["model"], _style(i)) for i, row in enumerate(rows))
    return section(
        "learning",
        "Learning",
        tag("p", *names, class_="legends"),
        tag("div", *charts, class_="pair"),
    )


def effects(comparison: Comparison) -> Markup:
    """What each change of the network did to its accuracy."""
    found = comparison.get("effects") or []
    if not found:
        return Markup()
    published = any(effect.get("published") is not None for effect in found)
    headers = ["change", "network", "against", "accuracy", "difference", "chance", "verdict"]
    if published:
        headers.append("published")
    cells: list[list[object]] = []
    for effect in found:
        line: list[object] = [
            effect["what"],
            effect["model"],
            f"{effect['against']}, {percent(effect['before'])}",
            percent(effect["after"]),
            tag("b", _points(effect["change"])),
            f"±{100 * effect['margin']:.1f}",
            effect["verdict"],
        ]
        cells.append(line + ([_points(effect.get("published"))] if published else []))
    split = _SPLITS.get(comparison["measured_on"], comparison["measured_on"])
    note = (
        f"Accuracy on {split} and its difference in points. Chance is how far two equal networks "
        f"may lie apart on so many pictures (95{NBSP}%); another seed moves them further."
    )
    right = [False, False, False, True, True, True, False, True][: len(headers)]
    return section(
        "effects",
        "What helped",
        *(tag("p", *unbroken(words)) for words in comparison.get("findings") or []),
        table(headers, cells, right),
        tag("p", note, class_="soft after"),
    )


def diagnosis(comparison: Comparison) -> Markup:
    """What each network's curves say, in words."""
    rows = comparison["models"]
    if not rows:
        return Markup()
    cells = [[_name(row, i), join(unbroken(row["diagnosis"]))] for i, row in enumerate(rows)]
    note = (
        "Read from the curves up to the last epoch, where the train accuracy is that of training "
        "itself, with dropout and augmentation at work; both lower it."
    )
    return section(
        "diagnosis",
        "Over- and underfitting",
        table(("network", "diagnosis"), cells),
        tag("p", note, class_="soft after"),
    )


def setup(comparison: Comparison) -> Markup:
    """The data, and the command that does all of it again."""
    data, command = comparison.get("data") or {}, comparison.get("command")
    shown = {"data": data.get("name"), "classes": len(data.get("classes") or []) or None}
    counts = data.get("counts") or {}
    shown |= {f"{_SPLITS.get(name, name)} pictures": count for name, count in counts.items()}
    if not data and not command:
        return Markup()
    return section(
        "setup", "Setup", facts(shown), tag("pre", *unbroken(command)) if command else None
    )


def _points(share: float | None) -> str:
    """A difference of two shares in points, with its sign."""
    return DASH if share is None else f"{100 * share:+.1f}".replace("-", "−")


def _style(place: int) -> str:
    """The stroke of the network at `place`: no two of thirty are alike, nor told by hue alone."""
    strokes = ("", " broken", " dotted")
    return f"hue{place % HUES}{strokes[(place + place // HUES) % 3]}"


def _name(row: Mapping[str, Any], place: int) -> Markup:
    link = row.get("report")
    name = tag("a", row["model"], href=link) if link else row["model"]
    return tag("span", tag("i", class_=f"key {_style(place)}"), name, class_="legend name")


def _figures(row: Mapping[str, Any]) -> list[object]:
    return [
        row["parameters"],
        f"{row['best_epoch']} of {row['epochs']}",
        *(bar(row[f"{split}_accuracy"]) for split in ("train", "val", "test")),
        _points(row["gap"]),
        duration(row["seconds"]),
        round(row["images_per_second"]),
    ]


def _published(rows: Sequence[Mapping[str, Any]]) -> Markup | None:
    """The published test accuracies beside ours."""
    cells: list[list[object]] = []
    for place, row in enumerate(rows):
        if known := row.get("published"):
            theirs = [percent(known["accuracy"]), known["epochs"]]
            ours = [percent(row["test_accuracy"]), row["epochs"]]
            cells.append([_name(row, place), *theirs, *ours, known.get("note") or ""])
    if not cells:
        return None
    headers = ("network", "published", "epochs", "ours", "epochs", "published network differs")
    note = (
        "Accuracy on test. The published figures are single runs that were watched on the test "
        "pictures themselves and read in the last epoch; ours are those of the best epoch on "
        "validation pictures, which training did not see."
    )
    right = [False, True, True, True, True, False]
    return tag(
        "div",
        tag("h3", "Beside the published figures"),
        table(headers, cells, right),
        tag("p", note, class_="soft after"),
        class_="apart",
    )
