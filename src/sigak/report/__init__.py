"""The report of a run: one HTML file that holds everything it shows and asks nothing of a network.

`write` takes a plain dict, so that the report knows no other room and any of them can feed it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sigak.report import _results, _setup
from sigak.report._diagnosis import diagnose
from sigak.report._markup import Markup, join, tag
from sigak.report._style import STYLE
from sigak.structures import SigakError

__all__ = ["diagnose", "write"]

_SECTIONS: tuple[tuple[str, Callable[[Mapping[str, Any]], Markup]], ...] = (
    ("Learning", _results.learning),
    ("Mistakes", _results.mistakes),
    ("Confusion", _results.confusion),
    ("Classes", _results.classes),
    ("Calibration", _results.calibration),
    ("Setup", _setup.model_and_data),
    ("Samples", _setup.samples),
    ("Problems", _setup.problems),
    ("Recipe", _setup.recipe),
    ("Environment", _setup.environment),
)
# The page may show its own styles and pictures and nothing else: no script, no network.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def write(path: str | Path, run: Mapping[str, Any]) -> Path:
    """Write the report of `run` to the HTML file `path`, whole or not at all; gives the path.

    Keys of `run`, of which any may be missing or None, and its section is then left out:

    title str; model {name, task, parameters {total, trainable}, input [H, W, C]};
    data {name, classes [str], counts {split: pictures}, problems [{source, reason, action}]};
    history {epoch, loss, val_loss, accuracy, val_accuracy, lr}, lists of equal length;
    best_epoch int; evaluation, what `sigak.metrics.Classification.compute` gives; evaluated_on
    "val" or "test"; mistakes [{source, truth, label, score, truth_score, image}] and samples
    [{source, label, image}], labels as names or class indices, images uint8 (H, W, C);
    recipe {field: value}; command str, what repeats the run (else put together from the recipe);
    environment {name: value}; seconds float; images_per_second float; checkpoint str.

    Raises SigakError where `path` is a folder or an image is no uint8 picture.
    """
    target = Path(path)
    if target.is_dir():
        raise SigakError(f"a report is one file, but {target} is a folder: add a name.html to it")
    target.parent.mkdir(parents=True, exist_ok=True)
    # Names of files may hold what UTF-8 cannot; those are shown as escapes.
    content = ("<!doctype html>\n" + _page(run) + "\n").encode("utf-8", "backslashreplace")
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        part.write_bytes(content)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    return target


def _page(run: Mapping[str, Any]) -> Markup:
    title = str(run.get("title") or "Report of a run")
    built = [(name, build(run)) for name, build in _SECTIONS]
    shown = [(name, content) for name, content in built if content]
    links = (tag("a", name, href=f"#{name.lower()}") for name, _ in shown)
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("title", title),
        tag("style", Markup(STYLE)),
    )
    body = tag(
        "body",
        tag("header", tag("h1", title), tag("nav", *links)),
        _results.headline(run),
        join(content for _, content in shown),
        tag("footer", "Written by sigak. This file holds everything it shows."),
    )
    return tag("html", head, body, lang="en")
