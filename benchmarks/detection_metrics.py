"""COCO's numbers of 5,000 pictures and 230,000 detections: sigak and pycocotools in turn.

    python benchmarks/detection_metrics.py            # writes results/detection_metrics.json
    python benchmarks/detection_metrics.py --quick    # fewer pictures, and nothing is written

sigak is timed from boxes as a network gives them (one `Detection.add` a picture, counted apart)
to the twelve numbers and the average precision of every class (`compute(detail=False)`), and to all
it tells (`compute()`). pycocotools is timed from lists of dicts in memory: index, evaluate,
accumulate, summarize. Both must agree to 1e-6. Seconds of the clock and of the processor.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import machine

from sigak.metrics import Detection
from sigak.structures import Instances

RESULTS = Path(__file__).parent / "results" / "detection_metrics.json"
CLASSES = 80
NAMES = ("map", "map50", "map75", "map_small", "map_medium", "map_large", "ar1", "ar10", "ar100",
         "ar_small", "ar_medium", "ar_large")  # fmt: skip
Picture = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def pictures(count: int) -> list[Picture]:
    """Boxes (N, 4) xyxy and labels of objects, then boxes, labels and scores of detections; 7.4
    objects and some 46 detections a picture, most of these low and on nothing.
    """
    rng = np.random.default_rng(0)

    def boxes(number: int) -> np.ndarray:
        sides = np.exp(rng.uniform(np.log(8), np.log(300), (number, 2)))
        corner = rng.uniform(0, 500, (number, 2))
        return np.concatenate([corner, corner + sides], axis=1)

    made = []
    for _ in range(count):
        objects = boxes(rng.poisson(7.4))
        labels = rng.integers(0, CLASSES, len(objects))
        near = np.repeat(np.arange(len(objects)), 2)
        sides = np.tile(objects[near][:, 2:] - objects[near][:, :2], 2)
        close = objects[near] + rng.normal(0, 0.05, sides.shape) * sides
        astray = boxes(rng.poisson(32))
        found = np.concatenate([close, astray])
        named = np.concatenate([labels[near], rng.integers(0, CLASSES, len(astray))])
        scores = np.concatenate([rng.random(len(near)) ** 0.5, rng.random(len(astray)) ** 3])
        made.append((objects, labels, found, named, scores))
    return made


def ours(data: list[Picture]) -> tuple[dict[str, Callable[[], Any]], dict[str, Any]]:
    """The steps by name, in order, and what they leave."""
    rows = [
        (
            Instances(torch.from_numpy(b).float(), torch.from_numpy(n), torch.from_numpy(s)),
            Instances(torch.from_numpy(o), torch.from_numpy(k)),
        )
        for o, k, b, n, s in data
    ]
    left: dict[str, Any] = {}

    def add() -> None:
        left["metric"] = Detection([str(k) for k in range(CLASSES)])
        for place, (predicted, truth) in enumerate(rows):
            left["metric"].add(predicted, truth, f"{place:06}")

    def numbers() -> None:
        left["numbers"] = left["metric"].compute(detail=False)

    steps = {
        "sigak, adding": add,
        "sigak, COCO's numbers": numbers,
        "sigak, everything": lambda: left["metric"].compute(),
    }
    return steps, left


def theirs(data: list[Picture]) -> tuple[Callable[[], None], dict[str, Any]]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    known: dict[str, Any] = {
        "images": [{"id": place} for place in range(1, len(data) + 1)],
        "categories": [{"id": label + 1, "name": str(label)} for label in range(CLASSES)],
        "annotations": [],
    }
    found: list[dict[str, Any]] = []
    for place, (objects, labels, boxes, named, scores) in enumerate(data, 1):
        for rows, boxes_, labels_ in (
            (known["annotations"], objects, labels),
            (found, boxes.astype(np.float32).astype(np.float64), named),
        ):
            for box, label in zip(boxes_, labels_):
                x, y, right, bottom = box.tolist()
                row = {"image_id": place, "category_id": int(label) + 1}
                rows.append(row | {"bbox": [x, y, right - x, bottom - y], "id": len(rows) + 1})
        for row, score in zip(found[len(found) - len(scores) :], scores.tolist()):
            row["score"] = score
    for row in known["annotations"]:
        row |= {"area": row["bbox"][2] * row["bbox"][3], "iscrowd": 0}
    left: dict[str, Any] = {"detections": len(found)}

    def evaluate() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            table = COCO()
            table.dataset = known
            table.createIndex()
            result = COCOeval(table, table.loadRes(found), "bbox")
            result.evaluate()
            result.accumulate()
            result.summarize()
        left["stats"] = result.stats

    return evaluate, left


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of COCO's numbers.")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=5, help="of sigak; pycocotools has one")
    options = parser.parse_args()
    data = pictures(200 if options.quick else 5_000)
    steps, made = ours(data)
    peer, left = theirs(data)
    seconds: dict[str, list[dict[str, float]]] = {}
    for turn in range(options.rounds):
        turns = steps if turn else {**steps, "pycocotools": peer}
        for name, step in turns.items():
            wall, processor = time.perf_counter(), time.process_time()
            step()
            spent = time.perf_counter() - wall, time.process_time() - processor
            seconds.setdefault(name, []).append({"wall": spent[0], "processor": spent[1]})
    worst = max(abs(made["numbers"][n] - s) for n, s in zip(NAMES, left["stats"]))
    assert worst < 1e-6
    print(f"{len(data):,} pictures, {left['detections']:,} detections, at most {worst:.1e} apart")
    for name, times in seconds.items():
        wall, processor = (
            statistics.median(row[key] for row in times) for key in ("wall", "processor")
        )
        print(f"{name:24}{wall:8.2f} s of the clock, {processor:8.2f} s of the processor")
    if not options.quick:
        result = {
            "machine": machine(),
            "pictures": len(data),
            "detections": left["detections"],
            "largest difference": worst,
            "seconds": seconds,
        }
        RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
