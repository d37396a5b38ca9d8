"""Diagrams as inline SVG. Colours are CSS classes of the page, so they follow light and dark."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sigak.report._markup import Markup, join, tag
from sigak.report._parts import NBSP, percent
from sigak.report._pictures import picture
from sigak.report._style import ACCENT

__all__ = ["Line", "curves", "heat_map", "legend", "reliability"]

_WIDTH, _HEIGHT = 440, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 18, 20, 40  # margins around the axes


@dataclass(frozen=True)
class Line:
    """One curve: its name in the legend, a value per epoch (None or NaN: a hole), its CSS class."""

    name: str
    values: Sequence[float | None]
    style: str


@dataclass(frozen=True)
class _Axes:
    """Data ranges (low, high) of x and y, laid out on the canvas."""

    x: tuple[float, float]
    y: tuple[float, float]
    height: int = _HEIGHT

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Canvas coordinates of a data point, to a tenth."""
        right = (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        return (
            round(_LEFT + right * (_WIDTH - _LEFT - _RIGHT), 1),
            round(self.height - _BOTTOM - up * (self.height - _TOP - _BOTTOM), 1),
        )


def curves(
    title: str,
    epochs: Sequence[int],
    lines: Sequence[Line],
    best: int | None = None,
    share: bool = False,
    named: bool = True,
) -> Markup:
    """Lines over epochs, the best one marked; `share` writes values in per cent, `named` puts the
    names of several lines above them.

    Empty where no value is known, or one epoch only.
    """
    known = [v for line in lines for v in line.values if v is not None and math.isfinite(v)]
    if not known or len(epochs) < 2:
        return Markup()
    low, high = min(known), max(known)
    ticks = _ticks(low, high if high > low else low + (abs(low) or 1))
    form = _share if share else "{:.4g}".format
    axes = _Axes((epochs[0], epochs[-1]), (ticks[0], ticks[-1]))
    clear = epochs[0] + (epochs[-1] - epochs[0]) / 20  # of the text of the first epoch
    steps = [t for t in _ticks(*axes.x, least=1) if clear < t <= epochs[-1]]
    keys = [legend(line.name, line.style) for line in lines] if named and len(lines) > 1 else []
    return tag(
        "figure",
        tag("figcaption", tag("b", title), *keys),
        _canvas(
            f"{title} over epochs",
            _grid(
                axes, [(x, f"{x:g}") for x in (epochs[0], *steps)], [(y, form(y)) for y in ticks]
            ),
            tag("text", "epoch", x=_WIDTH - _RIGHT, y=_HEIGHT - 6, class_="end"),
            None if best is None else _marker(axes, best),
            *(_line(axes, epochs, line, form) for line in lines),
        ),
    )


def reliability(bins: Sequence[Mapping[str, Any]]) -> Markup:
    """Accuracy over confidence beside the perfect diagonal, and below it where the pictures lie."""
    axes = _Axes((0, 1), (0, 1), 340)
    fifths = [(i / 5, _share(i / 5)) for i in range(6)]
    most = max(b["count"] for b in bins)
    strip = axes.height + 44  # the lower edge of the columns that count pictures
    columns: list[Markup] = []
    for b in bins:
        hint = (
            f"confidence {b['low']:.0%} to {b['high']:.0%}: {b['count']:,} pictures, "
            f"mean confidence {percent(b['confidence'])}, accuracy {percent(b['accuracy'])}"
        )
        left, top = axes.place(b["low"], b["accuracy"])
        right, floor = axes.place(b["high"], 0)
        tall = round(34 * b["count"] / most, 1)
        place = {"x": round(left + 1, 1), "width": round(right - left - 2, 1)}
        accuracy = tag("rect", y=top, height=round(floor - top, 1), class_="bar", **place)
        count = tag("rect", y=round(strip - tall, 1), height=tall, class_="count", **place)
        columns.append(tag("g", tag("title", hint), accuracy, count))
    (x1, y1), (x2, y2) = axes.place(0, 0), axes.place(1, 1)
    diagram = _canvas(
        "accuracy over confidence",
        _grid(axes, fifths, fifths),
        *columns,
        tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_="ideal"),
        tag("text", "confidence", x=_WIDTH - _RIGHT, y=axes.height - 6, class_="end"),
        tag("text", "pictures", x=_LEFT - 8, y=strip, class_="end"),
        height=strip + 4,
    )
    keys = (legend("accuracy", "main"), legend("perfect calibration", "dashed"))
    return tag("figure", tag("figcaption", *keys), diagram)


def heat_map(shares: np.ndarray) -> Markup:
    """A (K, K) array of shares, 0 to 1, as one picture, a pixel per cell."""
    pixels = np.zeros((*shares.shape, 4), np.uint8)
    pixels[..., :3] = ACCENT
    pixels[..., 3] = np.round(255 * np.sqrt(shares))  # the root keeps a few per cent visible
    return picture(pixels, len(shares), "confusion, rows truth, columns prediction", "heat sharp")


def _share(value: float) -> str:
    return f"{100 * value:.4g}{NBSP}%"


def _ticks(low: float, high: float, least: float = 0) -> list[float]:
    """Round numbers, `least` or more apart, the first not above low, the last not below high."""
    raw = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    # The slack keeps 0.1 + 0.2 from looking larger than 0.3.
    step = max(least, next(power * m for m in (1, 2, 5, 10) if power * m >= raw * (1 - 1e-9)))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def _canvas(label: str, *parts: Markup | None, height: int = _HEIGHT) -> Markup:
    return tag("svg", *parts, viewBox=f"0 0 {_WIDTH} {height}", role="img", aria_label=label)


def _grid(axes: _Axes, xs: Sequence[tuple[float, str]], ys: Sequence[tuple[float, str]]) -> Markup:
    """A line across for each (value, text) of y, and the texts along both axes."""
    parts: list[Markup] = []
    for value, text in ys:
        left, y = axes.place(axes.x[0], value)
        right, _ = axes.place(axes.x[1], value)
        parts.append(tag("line", x1=left, x2=right, y1=y, y2=y, class_="grid"))
        parts.append(tag("text", text, x=left - 8, y=y + 4, class_="end"))
    for value, text in xs:
        x, floor = axes.place(value, axes.y[0])
        parts.append(tag("text", text, x=x, y=floor + 18, class_="middle"))
    return join(parts)


def legend(name: str, style: str) -> Markup:
    """A line's stroke in small, and its name."""
    return tag("span", tag("i", class_=f"key {style}"), name, class_="legend")


def _marker(axes: _Axes, best: int) -> Markup:
    x, floor = axes.place(best, axes.y[0])
    _, top = axes.place(best, axes.y[1])
    # The words go to the side that has room.
    late = x > (_WIDTH + _LEFT) / 2
    words = tag(
        "text",
        f"best: {best}",
        x=x - 6 if late else x + 6,
        y=top - 4,
        class_="end" if late else None,
    )
    return tag("g", tag("line", x1=x, x2=x, y1=floor, y2=top - 12, class_="best"), words)


def _line(axes: _Axes, epochs: Sequence[int], line: Line, form: Callable[[float], str]) -> Markup:
    """The path of a curve, with holes, and dots that name their values under the pointer."""
    path: list[str] = []
    dots: list[Markup] = []
    pen_up = True
    every = math.ceil(len(epochs) / 120)
    for i, (epoch, value) in enumerate(zip(epochs, line.values)):
        if value is None or not math.isfinite(value):
            pen_up = True
            continue
        x, y = axes.place(epoch, value)
        path.append(f"{'M' if pen_up else 'L'}{x} {y}")
        pen_up = False
        if i % every == 0 or i == len(epochs) - 1:
            hint = tag("title", f"epoch {epoch}: {line.name} {form(value)}")
            dots.append(tag("circle", hint, cx=x, cy=y, r=3.5))
    shown = "dots few" if len(epochs) <= 12 else "dots"
    return tag(
        "g",
        tag("path", d="".join(path)),
        tag("g", *dots, class_=shown),
        class_=f"line {line.style}",
    )
