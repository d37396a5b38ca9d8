"""How often, and how soon, `sigak train sprint cifar10` reaches 94 % on the test pictures.

    python benchmarks/sprint.py                     five seeds, on all cores
    python benchmarks/sprint.py --seeds 1 --epochs 2
    python benchmarks/sprint.py --threads 1         where other programs share the cores

Each seed is one training by the network's own recipe on all 50,000 training pictures, without a
look at the test pictures before the end. Reported are the accuracy on the 10,000 test pictures by
1, 2 and 6 views of each, the seconds of the training epochs (reading data and the final measurement
left out), and the same in processor time, which other programs disturb less.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from machine import machine

import sigak

RESULT = Path(__file__).parent / "results" / "sprint.json"
GOAL = 0.94
VIEWS = (1, 2, 6)


def run_seed(seed: int, changes: dict[str, Any], dataset: sigak.Dataset) -> dict[str, Any]:
    """Train once; accuracy by views, seconds of the epochs and of the processor."""
    with tempfile.TemporaryDirectory() as folder:
        busy = time.process_time()
        run = sigak.train("sprint", dataset, seed=seed, out=f"{folder}/run", **changes)
        busy = time.process_time() - busy
        predictor = sigak.load(run.checkpoint)
    accuracy = {}
    for views in VIEWS:
        predictor.network.views = views
        accuracy[views] = sigak.evaluate(predictor, dataset)["accuracy"]
    seconds = float(run.history["seconds"].sum())
    epochs = len(run.history["loss"])
    return {
        "seed": seed,
        "accuracy": accuracy,
        "seconds": round(seconds, 1),
        "processor_seconds": round(busy, 1),
        "images_per_second": round(epochs * len(dataset.splits["train"]) / seconds, 1),
    }


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation over the seeds, by views; how many reached the goal."""
    found: dict[str, Any] = {"seeds": len(rows)}
    for views in VIEWS:
        values = [row["accuracy"][views] for row in rows]
        found[f"accuracy_{views}"] = {
            "mean": round(statistics.mean(values), 5),
            "deviation": round(statistics.stdev(values), 5) if len(values) > 1 else None,
            "reached": sum(value >= GOAL for value in values),
        }
    found["median_seconds"] = statistics.median(row["seconds"] for row in rows)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--epochs", type=int, default=0, help="0: the recipe's own")
    said = parser.parse_args()
    torch.set_num_threads(said.threads)
    changes: dict[str, Any] = {"epochs": said.epochs} if said.epochs else {}
    dataset = sigak.load_data("cifar10", val=0.0)
    rows: list[dict[str, Any]] = []
    for seed in range(said.seeds):
        rows.append(run_seed(seed, changes, dataset))
        print(json.dumps(rows[-1]), flush=True)
        # Written after every seed: all of them take hours on a small machine.
        found = {"machine": machine(), "threads": said.threads, "changes": changes}
        found |= {"summary": summary(rows), "runs": rows}
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(summary(rows), indent=1))


if __name__ == "__main__":
    main()
