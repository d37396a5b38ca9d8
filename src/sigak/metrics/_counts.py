"""What a confusion matrix says: precision, recall and F1."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

__all__ = ["macro", "per_class", "ratio"]


def ratio(part: float, whole: int) -> float | None:
    """part / whole, None where there is nothing to divide by."""
    return part / whole if whole else None


def per_class(names: list[str], confusion: np.ndarray) -> list[dict[str, Any]]:
    """One row of name, precision, recall, f1 and support a class, of (K, K) counts, rows truth.

    The three are None for a class without support, and precision is 0 for one that has support and
    is never predicted.
    """
    rows: list[dict[str, Any]] = []
    columns = zip(
        names,
        confusion.diagonal().tolist(),
        confusion.sum(0).tolist(),
        confusion.sum(1).tolist(),
        strict=True,
    )
    for name, right, predicted, support in columns:
        row: dict[str, Any] = {"name": name, "precision": None, "recall": None, "f1": None}
        if support:
            row["precision"] = right / predicted if predicted else 0.0
            row["recall"] = right / support
            row["f1"] = 2 * right / (predicted + support)
        rows.append(row | {"support": support})
    return rows


def macro(rows: list[dict[str, Any]]) -> dict[str, float | None]:
    """The means of precision, recall and f1 over the classes with support."""
    present = [row for row in rows if row["support"]]
    return {
        key: ratio(math.fsum(row[key] for row in present), len(present))
        for key in ("precision", "recall", "f1")
    }
