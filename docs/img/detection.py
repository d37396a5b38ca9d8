"""Draws the pictures of boxes.md and average-precision.md: python docs/img/detection.py"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("agg")

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from sigak.metrics import average_precision, precision_recall
from sigak.metrics.curves import RECALLS, interpolated
from sigak.ops.boxes import aligned_iou
from sigak.ops.nms import nms, soft_nms

HERE = Path(__file__).parent
TRUTH, GUESS, HULL, COMMON = "#1a7f5a", "#c2410c", "#8a94a6", "#f2c14e"
Box = tuple[float, float, float, float]


def outline(axes: Axes, box: Box, color: str, **style: object) -> None:
    x1, y1, x2, y2 = box
    fill = {"fill": False, "lw": 2, "ec": color} | style
    axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, **fill))


def canvas(axes: Axes, title: str, size: tuple[float, float] = (16, 12)) -> None:
    axes.set(xlim=(-0.5, size[0]), ylim=(size[1], -0.5), aspect="equal")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(title, fontsize=10, loc="left")


def agreement() -> None:
    """Five pairs of boxes and what the four measures say."""
    truth: Box = (1, 2, 8, 9)
    guesses: list[tuple[str, Box]] = [
        ("overlapping", (4, 4, 11, 11)),
        ("apart", (9, 2, 15, 9)),
        ("inside", (3, 4, 6, 7)),
        ("in a corner", (1.3, 2.3, 4.3, 5.3)),
        ("of another shape", (1.5, 4.75, 7.5, 6.25)),
    ]
    figure, rows = plt.subplots(1, 5, figsize=(12, 2.8), layout="constrained")
    for axes, (name, guess) in zip(rows, guesses):
        canvas(axes, name)
        x1, y1 = max(truth[0], guess[0]), max(truth[1], guess[1])
        x2, y2 = min(truth[2], guess[2]), min(truth[3], guess[3])
        if x1 < x2 and y1 < y2:
            outline(axes, (x1, y1, x2, y2), COMMON, fill=True, fc=COMMON, lw=0, alpha=0.7)
        hull = (min(truth[0], guess[0]), min(truth[1], guess[1]),
                max(truth[2], guess[2]), max(truth[3], guess[3]))  # fmt: skip
        outline(axes, hull, HULL, ls=":", lw=1.5)
        outline(axes, truth, TRUTH)
        outline(axes, guess, GUESS)
        middles = [((b[0] + b[2]) / 2, (b[1] + b[3]) / 2) for b in (truth, guess)]
        axes.plot(*zip(*middles), "o-", color="#334155", ms=3, lw=1)
        pair = torch.tensor(truth), torch.tensor(guess)
        values = [f"{k}  {aligned_iou(*pair, k):+.2f}" for k in ("iou", "giou", "diou", "ciou")]
        axes.set_xlabel("\n".join(values), family="monospace", fontsize=9)
    figure.savefig(HERE / "boxes-agreement.png", dpi=110)


def suppression() -> None:
    """Candidates, what NMS keeps, what soft NMS keeps."""
    boxes = torch.tensor([
        [1.0, 2, 7, 10], [2.2, 1.2, 8, 9.2], [0, 3, 6, 10.8],
        [5.2, 2.6, 10.8, 10.4], [6.4, 1.6, 11.8, 9.6], [12.5, 7, 15, 10],
    ])  # fmt: skip
    scores = torch.tensor([0.92, 0.75, 0.6, 0.8, 0.55, 0.7])
    hard = nms(boxes, scores, None, 0.5)
    soft, lowered = soft_nms(boxes, scores, decay="gaussian", least=0.0)
    panels = [
        ("candidates", range(6), scores),
        ("nms, iou=0.5", hard.tolist(), scores[hard]),
        ("soft_nms, gaussian", soft.tolist(), lowered),
    ]
    figure, rows = plt.subplots(1, 3, figsize=(11, 3.2), layout="constrained")
    for axes, (name, chosen, shown) in zip(rows, panels):
        canvas(axes, name)
        for place, score in zip(chosen, shown.tolist()):
            box: Box = tuple(boxes[place].tolist())  # type: ignore[assignment]
            outline(axes, box, GUESS, lw=0.5 + 3 * score, alpha=0.25 + 0.75 * score)
            axes.text(box[0] + 0.15, box[1] - 0.1, f"{score:.2f}", fontsize=7, va="bottom")
    figure.savefig(HERE / "boxes-nms.png", dpi=110)


def curve() -> None:
    """One class: the points, the curve that only falls, and the three readings of its area."""
    scores = np.linspace(0.95, 0.5, 10)
    right = np.array([1, 1, 0, 1, 0, 0, 1, 1, 0, 0], bool)
    precision, recall = precision_recall(scores, right, 6)
    best = interpolated(precision, recall, RECALLS)
    figure, rows = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained", sharey=True)
    readings = [("coco", RECALLS), ("voc11", RECALLS[::10]), ("voc", None)]
    for axes, (reading, at) in zip(rows, readings):
        value = average_precision(precision, recall, reading)
        axes.set(xlim=(-0.02, 1.02), ylim=(0, 1.06), xlabel="recall")
        axes.set_title(f"{reading}: {value:.3f}", fontsize=10, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
        if at is None:
            axes.fill_between(RECALLS, best, step="pre", color=COMMON, alpha=0.6, lw=0)
        else:
            heights = interpolated(precision, recall, at)
            axes.vlines(at, 0, heights, color=COMMON, lw=2 if len(at) > 11 else 4)
            axes.plot(at, heights, "o", color=TRUTH, ms=2.5 if len(at) > 11 else 5)
        axes.plot(recall, precision, "-x", color=GUESS, lw=1, ms=5)
    rows[0].set_ylabel("precision")
    figure.savefig(HERE / "average-precision.png", dpi=110)


if __name__ == "__main__":
    agreement()
    suppression()
    curve()
