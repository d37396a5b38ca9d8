"""Classification: one class a picture.

label_mode int and categorical are one softmax over the classes (integers, or one-hot rows); binary
is one sigmoid output for two classes.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sigak import draw, losses, metrics
from sigak.augment.pipeline import Pipeline
from sigak.structures import UNKNOWN, Batch, Sample, SigakError
from sigak.tasks import Task

__all__ = ["TASK", "Accuracy", "Classification", "Classify"]


@dataclass(frozen=True)
class Classification:
    """The answer for one picture: `scores` (K,) float64 probabilities in the order of `classes`."""

    source: str
    label: str
    score: float
    scores: np.ndarray
    classes: tuple[str, ...]

    def __str__(self) -> str:
        """The three likeliest classes, as "cat 91.2%  dog 6.0%  deer 1.1%"."""
        ranked = np.argsort(-self.scores, kind="stable")[:3]
        return "  ".join(f"{self.classes[k]} {self.scores[k]:.1%}" for k in ranked)

    def asdict(self) -> dict[str, Any]:
        """{source, label, score, scores: {class name: probability}}."""
        return {
            "source": self.source,
            "label": self.label,
            "score": self.score,
            "scores": dict(zip(self.classes, self.scores.tolist(), strict=True)),
        }


@final
class Classify(Task):
    """See the module."""

    name = "classify"
    needs = ("label",)

    @property
    def outputs(self) -> int:
        if self.recipe.label_mode == "binary":
            if len(self.classes) != 2:
                raise SigakError(
                    f"--label-mode binary needs exactly 2 classes, the data has "
                    f"{len(self.classes)}; "
                    "use int or categorical"
                )
            return 1
        return len(self.classes)

    def collate(self, samples: Sequence[Sample]) -> Batch:
        batch = Batch.of(samples)
        if self.recipe.label_mode == "categorical" and batch.labels is not None:
            batch.labels = F.one_hot(batch.labels, len(self.classes)).float()
        return batch

    def augment(self, size: tuple[int, int]) -> Pipeline | None:
        pipeline = Pipeline.parse(self.recipe.augment, size=size, classes=len(self.classes))
        return pipeline if pipeline else None

    def steps(
        self, network: Callable[[Tensor], Tensor], batch: Batch
    ) -> Iterator[tuple[str, dict[str, Tensor]]]:
        labels = _known(batch)
        logits = network(batch.images)
        binary = self.recipe.label_mode == "binary"
        measure = losses.binary_cross_entropy if binary else losses.cross_entropy
        loss = measure(logits, labels, self.recipe.label_smoothing)
        with torch.no_grad():
            answer = (logits[:, 0] > 0).long() if binary else logits.argmax(1)
            truth = labels if labels.ndim == 1 else labels.argmax(1)
            accuracy = (answer == truth).float().mean()
        yield "main", {"loss": loss, "accuracy": accuracy}

    def predict(self, network: Callable[[Tensor], Tensor], batch: Batch) -> list[Classification]:
        scores = self._probabilities(network(batch.images)).numpy()
        best = scores.argmax(1)
        classes = tuple(self.classes)
        return [
            Classification(source, classes[k], float(row[k]), row, classes)
            for source, row, k in zip(batch.sources, scores, best, strict=True)
        ]

    def _probabilities(self, logits: Tensor) -> Tensor:
        """(B, K) float64; double precision keeps the logarithm of a tiny probability finite."""
        logits = logits.cpu().double()
        if self.recipe.label_mode == "binary":
            positive = logits.sigmoid()
            return torch.cat([1.0 - positive, positive], 1)
        return logits.softmax(1)

    def metric(self) -> Accuracy:
        return Accuracy(self.classes)

    def mistakes(
        self, results: Sequence[Classification], labels: Sequence[int]
    ) -> list[tuple[int, dict[str, Any]]]:
        """The wrong answers, the most confident first."""
        wrong = [
            (place, result)
            for place, (result, truth) in enumerate(zip(results, labels, strict=True))
            if truth != UNKNOWN and result.label != self.classes[truth]
        ]
        wrong.sort(key=lambda found: -found[1].score)
        return [
            (
                place,
                {
                    "source": result.source,
                    "truth": self.classes[labels[place]],
                    "label": result.label,
                    "score": result.score,
                    "truth_score": float(result.scores[labels[place]]),
                },
            )
            for place, result in wrong
        ]

    def draw(self, image: np.ndarray, result: Classification) -> np.ndarray:
        return draw.grid([image], [f"{result.label} {result.score:.1%}"], 1)

    def save(
        self, results: Sequence[Classification], folder: Path, forms: Sequence[str] = ()
    ) -> list[Path]:
        """predictions.json and predictions.csv (source, label, score, one column a class)."""
        self.refuse_forms(forms)
        folder.mkdir(parents=True, exist_ok=True)
        as_json, as_csv = folder / "predictions.json", folder / "predictions.csv"
        text = json.dumps([r.asdict() for r in results], indent=1, ensure_ascii=False)
        as_json.write_text(text + "\n", encoding="utf-8")
        with open(as_csv, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["source", "label", "score", *self.classes])
            for r in results:
                writer.writerow([r.source, r.label, r.score, *r.scores.tolist()])
        return [as_json, as_csv]


class Accuracy:
    """`metrics.Classification` fed with results and batches."""

    def __init__(self, classes: Sequence[str]) -> None:
        self.measure = metrics.Classification(classes)

    def update(self, results: Sequence[Classification], batch: Batch) -> None:
        """Count the results of one batch; pictures without a label are left out by the measure."""
        scores = np.stack([r.scores for r in results])
        labels = _known(batch).cpu().numpy()
        truth = labels if labels.ndim == 1 else labels.argmax(1)
        likely = scores[np.arange(len(truth)), truth]
        loss = -np.log(np.maximum(likely, np.finfo(np.float64).tiny))
        self.measure.update(scores, truth, loss)

    def merge(self, other: Accuracy) -> None:
        """Take in what another process counted."""
        self.measure.merge(other.measure)

    def compute(self, detail: bool = True) -> dict[str, Any]:
        """See `metrics.Classification.compute`."""
        return self.measure.compute()


def _known(batch: Batch) -> Tensor:
    if batch.labels is None:
        what = "boxes instead: train a detector such as yolov8n" if batch.truth else "no labels"
        raise SigakError(f"classification needs labelled pictures, and these have {what}")
    return batch.labels


TASK = Classify
