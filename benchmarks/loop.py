"""What `sigak train` costs beside a bare loop over the same tensors, in images per second.

    python benchmarks/loop.py            # writes benchmarks/results/loop.json and prints a table
    python benchmarks/loop.py --quick

The bare loop holds the pictures in one uint8 tensor and does nothing but index, forward, backward
and step with the network, optimiser, precision and memory layout that `sigak train` uses. Epochs of
both alternate in one process. sigak's figure is that of its epochs as a user has them: shuffling,
progress, metrics and the non-finite check inside; `whole epoch` adds validation-free bookkeeping,
checkpoint and resume state.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from machine import machine
from torch.nn import functional as F

from sigak import models
from sigak.data import Dataset, Record, Split
from sigak.recipe import Options, Recipe
from sigak.training import Training

RESULTS = Path(__file__).parent / "results" / "loop.json"
BATCH = 64


def dataset(count: int) -> Dataset:
    """`count` random 32x32 pictures of ten classes."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (count, 32, 32, 3), np.uint8)
    records = [
        Record(f"random#{i}", int(label)) for i, label in enumerate(rng.integers(0, 10, count))
    ]
    return Dataset(
        "random", [str(k) for k in range(10)], {"train": Split("train", records, pixels)}
    )


class Bare:
    """The loop a person would write by hand."""

    def __init__(self, data: Dataset, name: str, precision: torch.dtype) -> None:
        split = data.splits["train"]
        self.images = torch.from_numpy(split.pixels)
        self.labels = torch.from_numpy(split.labels)
        self.network = models.create(name, classes=10).to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.SGD(self.network.parameters(), 1e-3, 0.9, fused=True)
        self.precision = precision

    def epoch(self) -> float:
        """Seconds."""
        begun = time.perf_counter()
        self.network.train()
        for places in torch.randperm(len(self.images)).split(BATCH):
            images = self.images[places].permute(0, 3, 1, 2).float().div_(255.0)
            with torch.autocast("cpu", torch.bfloat16, self.precision == torch.bfloat16):
                logits = self.network(images)
            F.cross_entropy(logits.float(), self.labels[places]).backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--model", default="vgg3-dropout-bn")
    said = parser.parse_args()
    count, rounds = (640, 2) if said.quick else (3200, 7)
    data = dataset(count)
    recipe = Recipe.of(models.entry(said.model).recipe, {"val": 0.0, "epochs": 10**6})
    with tempfile.TemporaryDirectory() as folder:
        training = Training(said.model, data, recipe, Options(out=folder, quiet=True), [])
        bare = Bare(data, said.model, training.precision)
        bare.epoch(), training._run_epoch()  # warm both
        rates: dict[str, list[float]] = {"bare loop": [], "sigak train": [], "whole epoch": []}
        for _ in range(rounds):
            rates["bare loop"].append(count / bare.epoch())
            begun = time.perf_counter()
            training._run_epoch()
            rates["whole epoch"].append(count / (time.perf_counter() - begun))
            rates["sigak train"].append(training.history[-1]["images_per_second"])
    report(said.model, str(training.precision), rates)


def report(model: str, precision: str, rates: dict[str, list[float]]) -> None:
    """Medians, and the median of the rounds' ratios."""
    facts = machine()
    print(f"{facts['processor']}, {facts['cores']} cores, {model}, batch {BATCH}, {precision}")
    for name, found in rates.items():
        ratios = [a / b for a, b in zip(found, rates["bare loop"])]
        median, ratio = statistics.median(found), statistics.median(ratios)
        print(f"{name:<12} {median:7.0f} images/s  {ratio:.3f} of the bare loop")
    RESULTS.parent.mkdir(exist_ok=True)
    figures = {"machine": facts, "model": model, "precision": precision, "rates": rates}
    RESULTS.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
