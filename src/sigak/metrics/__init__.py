"""Metrics: running totals that a number is computed from at the end.

A metric takes in pictures (`update` a batch, `add` one picture), `merge` takes in another metric's
totals (another process's, say), and `compute` gives plain values ready for JSON. The numbers depend
neither on how the pictures were cut into batches nor on the order in which parts were merged.
"""

from sigak.metrics.classification import Classification
from sigak.metrics.curves import average_precision, precision_recall
from sigak.metrics.detection import Detection
from sigak.metrics.files import evaluate_files
from sigak.metrics.segmentation import Segmentation

__all__ = [
    "Classification",
    "Detection",
    "Segmentation",
    "average_precision",
    "evaluate_files",
    "precision_recall",
]
