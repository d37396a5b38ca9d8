"""A bubble chart whose names stay readable: each is put where it covers the least."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sigak.structures import SigakError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.backend_bases import RendererBase
    from matplotlib.transforms import Bbox

__all__ = ["Bubble", "draw_bubbles"]

_INCHES, _DPI = (12.0, 8.0), 150
_LARGEST = 2200.0  # square points of the largest bubble
_GAP = 3.0  # pixels between a name and what stands beside it
_MIDDLE = 8.0  # pixels around a bubble's middle that no name may cover
_FAR = 14.0  # pixels from which on a line leads from the name to its bubble
_RINGS = (0, 10, 22, 38, 58, 82, 110, 150)  # pixels between bubble and name that are tried in turn
_ANGLES = tuple(2 * math.pi * i / 16 for i in range(16))


@dataclass(frozen=True)
class Bubble:
    """A named point; size is what its area stands for."""

    name: str
    x: float
    y: float
    size: float


def draw_bubbles(
    bubbles: Sequence[Bubble],
    path: str | Path,
    *,
    title: str,
    across: str,
    up: str,
    note: str = "",
) -> None:
    """Draw `bubbles` into a PNG, SVG or PDF file, x on a logarithmic scale.

    across and up: what the axes say; note: a line below the chart.
    """
    if not bubbles:
        raise SigakError(f"there is nothing to draw in {path}: no network has both figures")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=_INCHES, dpi=_DPI, layout="constrained")
    canvas = FigureCanvasAgg(figure)  # knows how wide words are, whatever is written in the end
    axes = figure.subplots()
    axes.set(title=title, xlabel=across, ylabel=up, xscale="log")
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.margins(0.08)
    largest = max(bubble.size for bubble in bubbles)
    areas = [_LARGEST * bubble.size / largest for bubble in bubbles]
    axes.scatter([b.x for b in bubbles], [b.y for b in bubbles], areas, alpha=0.45, linewidths=0)
    axes.scatter([b.x for b in bubbles], [b.y for b in bubbles], 6, color="0.2")
    if note:
        figure.supxlabel(note, fontsize=8, color="0.4", x=0.01, ha="left")
    canvas.draw()  # the layout is known from here on
    figure.set_layout_engine("none")
    radii = [math.sqrt(area / math.pi) * _DPI / 72 for area in areas]
    _write_names(axes, canvas.get_renderer(), bubbles, radii)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _write_names(
    axes: Axes, renderer: RendererBase, bubbles: Sequence[Bubble], radii: Sequence[float]
) -> None:
    """Small bubbles first: their names are tied to them most."""
    to_data = axes.transData.inverted()
    centres = [axes.transData.transform((b.x, b.y)) for b in bubbles]
    # A large bubble may lie under a name, but not its middle.
    taken = [_square(x, y, min(radius, _MIDDLE)) for (x, y), radius in zip(centres, radii)]
    frame = axes.get_window_extent()
    for place in sorted(range(len(bubbles)), key=lambda i: radii[i]):
        bubble, (x, y) = bubbles[place], centres[place]
        label = axes.text(bubble.x, bubble.y, bubble.name, fontsize=8, ha="center", va="center")
        size = label.get_window_extent(renderer)
        box, away = _free_place((x, y), radii[place], size, taken, frame)
        taken.append(box)
        middle = ((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2)
        label.set_position(tuple(to_data.transform(middle)))
        if away > _FAR:
            near = min(max(x, box.x0), box.x1), min(max(y, box.y0), box.y1)
            ends = to_data.transform(np.array([(x, y), near]))
            axes.plot(ends[:, 0], ends[:, 1], color="0.6", linewidth=0.6)


def _square(x: float, y: float, radius: float) -> Bbox:
    from matplotlib.transforms import Bbox

    return Bbox.from_bounds(x - radius, y - radius, 2 * radius, 2 * radius)


def _free_place(
    centre: tuple[float, float], radius: float, size: Bbox, taken: Sequence[Bbox], frame: Bbox
) -> tuple[Bbox, float]:
    """(box, distance from the bubble) of the nearest place that covers nothing, or the least."""
    from matplotlib.transforms import Bbox

    width, height = size.width + 2 * _GAP, size.height + 2 * _GAP
    best: tuple[float, Bbox, float] | None = None
    for ring, angle in itertools.product(_RINGS, _ANGLES):
        reach = min(radius, 2 * _MIDDLE) + ring
        # The box touches the circle of `reach` with the side that looks at the centre.
        x = centre[0] + math.cos(angle) * (reach + width / 2)
        y = centre[1] + math.sin(angle) * (reach + height / 2)
        box = Bbox.from_bounds(x - width / 2, y - height / 2, width, height)
        covered = sum(_overlap(box, other) for other in taken)
        covered += width * height - _overlap(box, frame)
        if best is None or covered < best[0]:
            best = covered, box, float(ring)
        if covered == 0:
            break
    if best is None:
        raise SigakError("no place was tried for a name")
    return best[1], best[2]


def _overlap(first: Bbox, second: Bbox) -> float:
    """The area that two boxes share, in square pixels."""
    width = min(first.x1, second.x1) - max(first.x0, second.x0)
    height = min(first.y1, second.y1) - max(first.y0, second.y0)
    return float(max(width, 0.0) * max(height, 0.0))
