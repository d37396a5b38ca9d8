"""Sections on what went in: model and data, samples, problems, recipe, environment.

Each takes the whole run and gives Markup, which is empty where the run has nothing to show.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping
from typing import Any

from sigak.report._markup import Markup, tag
from sigak.report._parts import class_name, facts, folded, section, unbroken
from sigak.report._pictures import picture

__all__ = ["environment", "model_and_data", "problems", "recipe", "samples"]

Run = Mapping[str, Any]

_SPLITS = {"train": "training", "val": "validation"}
_SAMPLES = 240  # sample pictures on the whole page
_PER_CLASS = 12
_ROWS = 20  # problems shown before the rest is folded away


def model_and_data(run: Run) -> Markup:
    model, data = run.get("model") or {}, run.get("data") or {}
    parameters, classes = model.get("parameters") or {}, data.get("classes") or []
    shape = " × ".join(str(n) for n in model.get("input") or []) or None
    shown: dict[str, object] = {
        "network": model.get("name"),
        "task": model.get("task"),
        "input": shape,
        "parameters": parameters.get("total"),
        "of them trainable": parameters.get("trainable"),
        "data": data.get("name"),
        "classes": len(classes) or None,
    }
    shown |= {
        f"{_SPLITS.get(split, split)} pictures": count
        for split, count in (data.get("counts") or {}).items()
    }
    shown["checkpoint"] = run.get("checkpoint")
    if all(value is None for value in shown.values()):
        return Markup()
    return section("setup", "Model and data", facts(shown))


def samples(run: Run) -> Markup:
    """Pictures of each class, in label order."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for sample in run.get("samples") or []:
        groups.setdefault(class_name(sample.get("label"), run), []).append(sample)
    if not groups:
        return Markup()
    order = {str(name): i for i, name in enumerate((run.get("data") or {}).get("classes") or [])}
    names = sorted(groups, key=lambda name: order.get(name, len(order)))
    each = max(1, min(_PER_CLASS, _SAMPLES // len(names)))
    rows = (
        tag(
            "div",
            tag("h3", name),
            tag("div", *map(_thumbnail, groups[name][:each])),
            class_="sample",
        )
        for name in names[:_SAMPLES]
    )
    return section("samples", "Samples", *rows)


def problems(run: Run) -> Markup:
    """What was found wrong in the data, and what was done about it."""
    found = (run.get("data") or {}).get("problems") or []
    if not found:
        return Markup()
    actions = Counter(str(p.get("action", "")) for p in found)
    total = f"{len(found):,} problem{'s' if len(found) > 1 else ''}: "
    words = total + ", ".join(f"{count:,} {action}" for action, count in actions.most_common())
    rows = [[str(p.get(key, "")) for key in ("source", "reason", "action")] for p in found]
    return section(
        "problems",
        "Data problems",
        tag("p", words + ".", class_="soft"),
        *folded(("source", "reason", "action"), rows, _ROWS),
    )


def recipe(run: Run) -> Markup:
    """How the network was trained, and the command that does it again."""
    values = run.get("recipe") or {}
    if not values:
        return Markup()
    return section(
        "recipe",
        "Recipe",
        facts(values),
        tag("pre", *unbroken(run.get("command") or _command(run))),
    )


def environment(run: Run) -> Markup:
    values = run.get("environment") or {}
    return section("environment", "Environment", facts(values)) if values else Markup()


def _command(run: Run) -> str:
    """`sigak train` with every field of the recipe as a flag, for a POSIX shell."""
    names = [str((run.get(key) or {}).get("name") or key.upper()) for key in ("model", "data")]
    flags = [
        f"--{key.replace('_', '-')} {shlex.quote(str(value))}"
        for key, value in run["recipe"].items()
    ]
    return " ".join(["sigak train", *map(shlex.quote, names), *flags])


def _thumbnail(sample: Mapping[str, Any]) -> Markup:
    return tag("span", picture(sample["image"], 96, ""), title=str(sample.get("source", "")))
