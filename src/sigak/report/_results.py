"""Sections on what came out: figures, curves, mistakes, confusion, classes, calibration.

Each takes the whole run and gives Markup, which is empty where the run has nothing to show.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sigak.report._charts import Line, curves, heat_map, reliability
from sigak.report._diagnosis import diagnose
from sigak.report._markup import Markup, tag
from sigak.report._parts import (
    DASH,
    bar,
    card,
    class_name,
    duration,
    facts,
    folded,
    interval,
    number,
    percent,
    section,
    table,
    unbroken,
)
from sigak.report._pictures import picture

__all__ = [
    "calibration", "classes", "confusion", "errors", "headline", "learning", "mistakes", "sheets",
]  # fmt: skip

Run = Mapping[str, Any]

_TABLE_CLASSES = 30  # a confusion matrix of more classes is drawn as a heat map
_NARROW = 11  # a confusion table of up to so many classes leaves room beside it
_MISTAKES = 24  # pictures shown
_PAIRS = 12  # most confused pairs shown
_ROWS = 40  # classes shown before the rest is folded away
_SERIES = {
    "loss": "train loss", "val_loss": "validation loss", "accuracy": "train accuracy",
    "val_accuracy": "validation accuracy", "val_top5": "validation top-5 accuracy",
    "pixel_accuracy": "train pixel accuracy", "val_pixel_accuracy": "validation pixel accuracy",
    "val_miou": "validation mean IoU", "val_dice": "validation Dice",
    "val_box_iou": "validation IoU by box", "val_point_iou": "validation IoU by point",
    "val_boundary_f": "validation boundary F",
    "lr": "learning rate", "images_per_second": "images per second",
}  # fmt: skip
_PERCENT = {
    "accuracy", "val_accuracy", "val_top5", "pixel_accuracy", "val_pixel_accuracy", "val_miou",
    "val_dice", "val_boundary_f", "val_box_iou", "val_point_iou",
}  # fmt: skip


def headline(run: Run) -> Markup:
    """The figures one looks for first."""
    found, history = run.get("evaluation") or {}, run.get("history") or {}
    where = {"train": "train", "val": "validation", "test": "test"}.get(
        run.get("evaluated_on", ""), ""
    )
    epochs = len(history.get("loss") or [])
    seconds, best = run.get("seconds"), run.get("best_epoch")
    cards = [
        card(
            percent(found.get("accuracy")),
            f"{where} accuracy",
            interval(found.get("accuracy"), found.get("count")),
        ),
        card(percent(found.get("top5")), f"{where} top-5 accuracy"),
        card(percent(found.get("map")), f"{where} AP", _between(found, "map")),
        card(percent(found.get("map50")), f"{where} AP at IoU .5", _between(found, "map50")),
        card(percent(found.get("mask_map")), f"{where} AP of masks"),
        card(percent(found.get("mask_map50")), f"{where} AP of masks at IoU .5"),
        card(percent(found.get("miou")), f"{where} mean IoU"),
        card(percent(found.get("box_iou")), f"{where} IoU of what boxes ask for"),
        card(percent(found.get("point_iou")), f"{where} IoU of what points ask for"),
        card(percent(found.get("pixel_accuracy")), f"{where} pixel accuracy"),
        card(percent(found.get("boundary_f")), f"{where} boundary F"),
        card(number(found.get("loss")), f"{where} loss"),
        card(number(found.get("kid")), f"{where} kernel distance", "KID, lower is nearer"),
        card(number(best), "best epoch", f"of {epochs}" if epochs else ""),
        card(DASH if seconds is None else duration(seconds), "training time"),
        card(number(run.get("images_per_second")), "images per second"),
    ]
    shown = [c for c in cards if c]
    return tag("div", *shown, class_="cards") if shown else Markup()


def learning(run: Run) -> Markup:
    """The diagnosis in words, and the curves it was read from."""
    history = run.get("history") or {}
    losses = history.get("loss") or []
    if not losses:
        return Markup()
    epochs = [int(epoch) for epoch in history.get("epoch") or range(1, len(losses) + 1)]
    best = run.get("best_epoch")
    best = int(best) if best in epochs else None

    def chart(title: str, key: str, share: bool = False) -> Markup:
        pair = [("train", key, "other"), ("validation", f"val_{key}", "main")]
        lines = [Line(name, history[k], style) for name, k, style in pair if history.get(k)]
        return curves(title, epochs, lines, best, share)

    charts = [chart("Loss", "loss"), chart("Accuracy", "accuracy", share=True)]
    for title, key in (("Average precision", "map"), ("Average precision of masks", "mask_map")):
        if history.get(f"val_{key}"):
            lines = [
                Line("at IoU .5", history[f"val_{key}50"], "other"),
                Line("COCO's mean", history[f"val_{key}"], "main"),
            ]
            charts.append(curves(title, epochs, lines, best, True))
    if history.get("val_miou"):
        pairs = (
            ("pixel accuracy", "val_pixel_accuracy", "other"),
            ("mean IoU", "val_miou", "main"),
        )
        lines = [Line(name, history[key], style) for name, key, style in pairs]
        charts.append(curves("Validation", epochs, lines, best, True))
    if history.get("val_box_iou"):
        kinds = (("by a point", "val_point_iou", "other"), ("by a box", "val_box_iou", "main"))
        lines = [Line(name, history[key], style) for name, key, style in kinds]
        charts.append(curves("IoU of what is asked for", epochs, lines, best, True))
    if history.get("val_kid"):  # of adversaries the sum of the losses says nothing
        sides = [("discriminator", "other"), ("generator", "main")]
        lines = [Line(n, history[f"{n}_loss"], s) for n, s in sides if history.get(f"{n}_loss")]
        charts = [chart("Kernel distance", "kid"), curves("Losses", epochs, lines, best)]
    rates = history.get("lr") or []
    if len(set(rates)) > 1:
        line = Line("learning rate", rates, "main")
        charts.append(curves("Learning rate", epochs, [line], best))
    return section(
        "learning",
        "Learning",
        tag("p", *unbroken(diagnose(history)), class_="verdict"),
        tag("div", *(c for c in charts if c), _best_epoch(history, epochs, best), class_="pair"),
    )


def _between(found: Mapping[str, Any], key: str) -> str:
    """The interval of a figure in words, where it was measured."""
    bounds = (found.get("interval") or {}).get(key)
    return f"{percent(bounds[0])} to {percent(bounds[1])} at 95 %" if bounds else ""


_ERRORS = {
    "cls": "right place, wrong class", "loc": "right class, badly placed",
    "both": "wrong class and badly placed", "dupe": "found twice",
    "bkg": "nothing is there", "miss": "not found",
}  # fmt: skip


def errors(run: Run) -> Markup:
    """What goes wrong with boxes, and how precise they are at each recall."""
    found = run.get("evaluation") or {}
    told, lines = found.get("errors") or {}, found.get("curves") or {}
    if not told and not lines:
        return Markup()
    rows = [
        [_ERRORS[kind], bar(row.get("gain")), row.get("count")]
        for kind, row in told.items()
        if kind in _ERRORS and isinstance(row, Mapping)
    ]
    shown = (
        table(("what goes wrong", "AP at .5 gained without it", "boxes"), rows) if rows else None
    )
    return section("errors", "Errors", tag("div", shown, class_="pair"))


def sheets(run: Run) -> Markup:
    """What the network made after some of the epochs."""
    made = run.get("sheets") or []
    if not made:
        return Markup()
    hint = "Made from the same random numbers every time, so that the sheets can be compared."
    figures = (
        tag(
            "figure",
            tag("figcaption", tag("b", f"epoch {sheet['epoch']}")),
            picture(sheet["image"], 560, f"pictures made after epoch {sheet['epoch']}", "sheet"),
        )
        for sheet in made
    )
    return section(
        "pictures", "Pictures", tag("p", hint, class_="soft"), tag("div", *figures, class_="pair")
    )


def mistakes(run: Run) -> Markup:
    """The pictures the network was surest of and wrong about."""
    worst = run.get("mistakes") or []
    if not worst:
        return Markup()
    hint = "The network was surest of these and wrong. Look for wrong labels among them first."
    cards = (_mistake(m, run) for m in worst[:_MISTAKES])
    return section(
        "mistakes",
        "Worst mistakes",
        tag("p", hint, class_="soft"),
        tag("div", *cards, class_="gallery"),
    )


def confusion(run: Run) -> Markup:
    """Which classes are taken for which."""
    found = run.get("evaluation") or {}
    counts = np.asarray(found.get("confusion") or [], np.int64)
    if not counts.any():
        return Markup()
    names = [row["name"] for row in found.get("per_class") or []]
    names = names or [class_name(i, run) for i in range(len(counts))]
    caption = "Rows are the truth, columns what the network said; shaded by share of the row."
    if len(counts) == len(names) + 1:
        names.append("background")
        least = number(found.get("confidence"))
        caption += f" Boxes with a score of {least} or more, matched at IoU .5."
    if len(names) <= _TABLE_CLASSES:
        matrix = tag("div", _matrix(counts, names), class_="scroll")
        layout = "pair" if len(names) <= _NARROW else "stack"
    else:
        caption += " One pixel per pair, classes in label order from the top left."
        matrix = heat_map(_shares(counts))
        layout = "pair"
    pairs = _pairs(counts, names)
    return section(
        "confusion",
        "Confusion",
        tag("p", caption, class_="soft"),
        tag("div", matrix, pairs, class_=layout),
    )


def classes(run: Run) -> Markup:
    """Precision, recall and F1 of each class, the worst first."""
    found = run.get("evaluation") or {}
    rows = found.get("per_class") or []
    if not rows:
        return Markup()
    # Classes without pictures come last: nothing is known of them.
    ordered = sorted(rows, key=lambda row: (row["f1"] is None, row["f1"] or 0))
    more = ("ap50", "ap", "mask_ap50", "mask_ap", "boundary_f", "iou")
    keys = ("precision", "recall", "f1", *(key for key in more if key in rows[0]))
    cells: list[list[object]] = [
        [row["name"], *(bar(row[key]) for key in keys), row["support"]] for row in ordered
    ]
    macro = found.get("macro")
    means = ", ".join(f"{k} {percent(macro[k])}" for k in keys if k in macro) if macro else ""
    named = {"f1": "F1", "ap50": "AP at .5", "ap": "AP", "boundary_f": "boundary F", "iou": "IoU"}
    named |= {"mask_ap50": "masks at .5", "mask_ap": "masks"}
    things = "objects" if "ap" in rows[0] else "pixels" if "iou" in rows[0] else "pictures"
    headers = ("class", *(named.get(key, key) for key in keys), things)
    return section(
        "classes",
        "Classes, the weakest first",
        tag("p", f"Mean over classes: {means.replace('f1', 'F1')}.", class_="soft")
        if means
        else None,
        *folded(headers, cells, _ROWS),
    )


def calibration(run: Run) -> Markup:
    """Whether the network is right as often as it says."""
    found = (run.get("evaluation") or {}).get("calibration") or {}
    filled = [b for b in found.get("bins") or [] if b["count"]]
    if not filled:
        return Markup()
    if "mce" not in found:  # boxes: what a score means is another question
        bins = [{**b, "accuracy": b["precision"]} for b in filled]
        return section("calibration", "Calibration", tag("div", reliability(bins), class_="pair"))
    count = sum(b["count"] for b in filled)
    confidence = math.fsum(b["confidence"] * b["count"] for b in filled) / count
    accuracy = math.fsum(b["accuracy"] * b["count"] for b in filled) / count
    words = (
        f"The network is {percent(confidence)} sure on average and {percent(accuracy)} right: "
        f"{_trust(confidence - accuracy)}"
    )
    errors = (
        f"Expected calibration error {percent(found.get('ece'))}, the largest of a bin "
        f"{percent(found.get('mce'))}, Brier score {number(found.get('brier'))}."
    )
    return section(
        "calibration",
        "Calibration",
        tag(
            "div",
            reliability(filled),
            tag("div", tag("p", *unbroken(words)), tag("p", errors, class_="soft")),
            class_="pair",
        ),
    )


def _best_epoch(
    history: Mapping[str, Any], epochs: Sequence[int], best: int | None
) -> Markup | None:
    """Every measured value of the best epoch."""
    if best is None:
        return None
    place = epochs.index(best)
    values = {
        _SERIES.get(key, key): (percent if key in _PERCENT else number)(series[place])
        for key, series in history.items()
        if key != "epoch" and series and len(series) > place
    }
    return tag("div", tag("h3", f"Epoch {best}, the best"), facts(values), class_="rest")


def _mistake(mistake: Mapping[str, Any], run: Run) -> Markup:
    said, truth = (class_name(mistake.get(key), run) for key in ("label", "truth"))
    image, source = mistake.get("image"), str(mistake.get("source", ""))
    return tag(
        "figure",
        None if image is None else picture(image, 160, f"{truth} taken for {said}"),
        tag(
            "figcaption",
            tag("div", tag("b", said), f" · {percent(mistake.get('score'))}"),
            tag("div", "truth ", tag("b", truth), f" · {percent(mistake.get('truth_score'))}"),
            tag("small", source),
        ),
    )


def _shares(counts: np.ndarray) -> np.ndarray:
    """Each (K, K) count as a share of its row; rows without pictures are 0."""
    part: np.ndarray = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    return part


def _matrix(counts: np.ndarray, names: Sequence[str]) -> Markup:
    """The confusion matrix as a table whose cells name themselves under the pointer."""
    part = _shares(counts)
    rows: list[Markup] = []
    for truth, name in enumerate(names):
        cells = (
            _cell(int(counts[truth, said]), float(part[truth, said]), name, other)
            for said, other in enumerate(names)
        )
        rows.append(tag("tr", tag("th", name, scope="row", title=name), *cells))
    head = tag("tr", tag("td"), *(tag("th", tag("span", n), scope="col", title=n) for n in names))
    return tag("table", tag("thead", head), tag("tbody", *rows), class_="confusion")


def _cell(count: int, share: float, truth: str, said: str) -> Markup:
    # The root keeps a few per cent visible beside the diagonal.
    shade = math.sqrt(share)
    hint = f"{truth}, taken for {said}: {count:,} ({percent(share)})"
    return tag(
        "td",
        f"{count:,}" if count else "",
        title=hint,
        class_="strong" if shade > 0.6 else None,
        style=f"background:rgb(var(--accent)/{shade:.2f})" if count else None,
    )


def _pairs(counts: np.ndarray, names: Sequence[str]) -> Markup | None:
    """The largest counts beside the diagonal, as a table."""
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:_PAIRS]
    part = _shares(counts)
    rows: list[list[object]] = [
        [names[truth], names[said], bar(float(part[truth, said])), int(wrong[truth, said])]
        for truth, said in zip(*np.unravel_index(order, wrong.shape))
        if wrong[truth, said]
    ]
    headers = ("truth", "taken for", "share of the class", "count")
    return tag("div", tag("h3", "Most confused"), table(headers, rows)) if rows else None


def _trust(excess: float) -> str:
    if abs(excess) < 0.02:
        return "its confidence can be taken at its word."
    if excess > 0:
        return "it is overconfident. Label smoothing (--label-smoothing 0.1) or fewer epochs help."
    return "it is underconfident. Less label smoothing or more epochs help."
