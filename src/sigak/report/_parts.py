"""What several sections are made of: tables, fact lists, and numbers as people write them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

from sigak.report._markup import Markup, tag
from sigak.structures import UNKNOWN

__all__ = [
    "DASH",
    "NBSP",
    "bar",
    "card",
    "class_name",
    "duration",
    "facts",
    "folded",
    "interval",
    "number",
    "percent",
    "plain",
    "section",
    "table",
    "unbroken",
]


DASH = "–"  # where there is no figure
NBSP = "\N{NO-BREAK SPACE}"  # between a figure and its unit


def section(name: str, title: str, *content: object) -> Markup:
    """A headed part of the page; `name` is its anchor."""
    return tag("section", tag("h2", title), *content, id=name)


def table(
    headers: Sequence[object],
    rows: Sequence[Sequence[object]],
    numeric: Sequence[bool] | None = None,
) -> Markup:
    """A table that fills its column and scrolls sideways where it must.

    numeric: which columns stand to the right; by default those whose first value is a number.
    """
    if numeric is None:
        numeric = [isinstance(value, int | float) for value in rows[0]] if rows else []
    style = ["number" if n else None for n in numeric] or [None] * len(headers)
    head = tag("tr", *(tag("th", h, scope="col", class_=s) for h, s in zip(headers, style)))
    body = (
        tag("tr", *(tag("td", plain(v), class_=s or _text(v)) for v, s in zip(row, style)))
        for row in rows
    )
    return tag(
        "div",
        tag("table", tag("thead", head), tag("tbody", *body), class_="wide"),
        class_="scroll",
    )


def _text(value: object) -> str | None:
    return None if isinstance(value, Markup) else "text"


def folded(headers: Sequence[str], rows: Sequence[Sequence[object]], shown: int) -> list[Markup]:
    """A table of the first rows, and the others in one that opens on demand."""
    parts = [table(headers, rows[:shown])]
    if rest := rows[shown:]:
        parts.append(tag("details", tag("summary", f"{len(rest):,} more"), table(headers, rest)))
    return parts


def facts(values: Mapping[str, object]) -> Markup:
    """Names and values in as many columns as fit; those that are None are left out."""
    return tag(
        "dl",
        *(
            tag("div", tag("dt", name), tag("dd", plain(value)))
            for name, value in values.items()
            if value is not None
        ),
        class_="facts",
    )


def card(value: str, name: str, note: str = "") -> Markup | None:
    """One figure; none where the value is a dash."""
    if value == DASH:
        return None
    return tag(
        "div",
        tag("b", value),
        tag("span", name.strip()),
        tag("span", note) if note else None,
        class_="card",
    )


def interval(share: float | None, count: int | None) -> str:
    """The 95 % interval of a share that so many pictures allow (Wilson 1927), in per cent."""
    if share is None or not count:
        return ""
    z = 1.96
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    spread = z / (1 + z * z / count)
    spread *= math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return f"{100 * (middle - spread):.1f}–{100 * (middle + spread):.1f} (95{NBSP}%)"


def bar(share: float | None) -> Markup:
    """A percentage with a bar of that length below it; a dash where there is none."""
    if share is None:
        return tag("span", DASH, class_="soft")
    width = tag("i", style=f"width:{100 * min(max(share, 0), 1):.1f}%")
    return tag("div", percent(share), tag("i", width), class_="share")


def class_name(label: object, run: Mapping[str, Any]) -> str:
    """A label as a name: class indices are looked up among the run's classes."""
    names = (run.get("data") or {}).get("classes") or []
    if isinstance(label, Integral):
        label = int(label)
        if 0 <= label < len(names):
            return str(names[label])
    return "unknown" if label is None or label == UNKNOWN else str(label)


def unbroken(text: str) -> list[str]:
    """`text` with its flags as code, so that no line ends within one, nor before a %."""
    parts = re.split(r"(--[a-z0-9-]+(?: [\d.]+)?)", text.replace(" %", f"{NBSP}%"))
    return [tag("code", part) if i % 2 else part for i, part in enumerate(parts)]


def percent(share: float | None) -> str:
    return DASH if share is None or not math.isfinite(share) else f"{100 * share:.1f}{NBSP}%"


def number(value: float | None) -> str:
    """A figure in four digits: 0.3127, 12.5, 1,250."""
    if value is None or not math.isfinite(value):
        return DASH
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def duration(seconds: float) -> str:
    """Seconds as 12.3 s, 4 min 05 s or 2 h 07 min."""
    if seconds < 59.95:
        return f"{seconds:.1f}{NBSP}s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}{NBSP}min {whole % 60:02d}{NBSP}s"
    return f"{whole // 3600}{NBSP}h {whole % 3600 // 60:02d}{NBSP}min"


def plain(value: Any) -> object:
    """A value as text: integers with separators, sequences with commas, nothing as a dash."""
    if isinstance(value, Markup | str):
        return value or DASH
    if value is None or isinstance(value, bool):
        return DASH if value is None else str(value).lower()
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return ", ".join(str(plain(v)) for v in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{k}: {plain(v)}" for k, v in value.items())
    return str(value)
