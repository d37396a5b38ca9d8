"""Reports: one HTML file that holds everything it shows and asks nothing of a network.

`write` tells of one run, `write_comparison` of several. Both take a plain dict, so that the report
knows no other room and any of them can feed it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sigak.report import _comparison, _results, _setup
from sigak.report._diagnosis import diagnose
from sigak.report._markup import Markup, join, tag
from sigak.report._style import STYLE
from sigak.structures import SigakError

__all__ = ["diagnose", "write", "write_comparison"]

# (name in the navigation, what builds it); the first stands above the others, without a name.
_Sections = Sequence[tuple[str, Callable[[Mapping[str, Any]], Markup]]]

_RUN: _Sections = (
    ("", _results.headline),
    ("Learning", _results.learning),
    ("Pictures", _results.sheets),
    ("Mistakes", _results.mistakes),
    ("Errors", _results.errors),
    ("Confusion", _results.confusion),
    ("Classes", _results.classes),
    ("Calibration", _results.calibration),
    ("Setup", _setup.model_and_data),
    ("Samples", _setup.samples),
    ("Problems", _setup.problems),
    ("Recipe", _setup.recipe),
    ("Environment", _setup.environment),
)
_COMPARISON: _Sections = (
    ("", _comparison.headline),
    ("Networks", _comparison.networks),
    ("Failures", _comparison.failures),
    ("Learning", _comparison.learning),
    ("Effects", _comparison.effects),
    ("Diagnosis", _comparison.diagnosis),
    ("Setup", _comparison.setup),
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
    best_epoch int; evaluation, what the `compute` of `sigak.metrics` gives; evaluated_on
    "val" or "test"; mistakes [{source, truth, label, score, truth_score, image}] and samples
    [{source, label, image}], labels as names or class indices, images uint8 (H, W, C); sheets
    [{epoch, image}], what a generator made;
    recipe {field: value}; command str, what repeats the run (else put together from the recipe);
    environment {name: value}; seconds float; images_per_second float; checkpoint str.

    Raises SigakError where `path` is a folder or an image is no uint8 picture.
    """
    return _save(path, _page(run, _RUN, "Report of a run"))


def write_comparison(path: str | Path, comparison: Mapping[str, Any]) -> Path:
    """Write several runs on the same data side by side to the HTML file `path`; gives the path.

    Keys of `comparison`, of which any but models may be missing or None: title str; models, one
    dict a network {model, parameters, epochs, best_epoch, train_accuracy, val_accuracy,
    test_accuracy, gap, seconds, images_per_second, history, diagnosis, published {accuracy,
    epochs, note}, report (a link)}; chosen, the model to take, and advice, why; effects [{what,
    model, against, before, after, change, margin, verdict,
    published}], measured_on the split they were
    measured on, and findings [str], what they say; failures [{model, reason}]; data {name,
    classes, counts}; command str; environment {name: value}.

    Accuracies are shares; history is what `diagnose` takes. Raises SigakError where `path` is a
    folder.
    """
    return _save(path, _page(comparison, _COMPARISON, "Comparison"))


def _save(path: str | Path, page: Markup) -> Path:
    """Replace the file whole, or not at all."""
    target = Path(path)
    if target.is_dir():
        raise SigakError(f"a report is one file, but {target} is a folder: add a name.html to it")
    target.parent.mkdir(parents=True, exist_ok=True)
    # Names of files may hold what UTF-8 cannot; those are shown as escapes.
    content = ("<!doctype html>\n" + page + "\n").encode("utf-8", "backslashreplace")
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        part.write_bytes(content)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    return target


def _page(told: Mapping[str, Any], sections: _Sections, untitled: str) -> Markup:
    title = str(told.get("title") or untitled)
    built = [(name, build(told)) for name, build in sections]
    links = (tag("a", name, href=f"#{name.lower()}") for name, part in built if name and part)
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
        join(part for _, part in built),
        tag("footer", "Written by sigak. This file holds everything it shows."),
    )
    return tag("html", head, body, lang="en")
