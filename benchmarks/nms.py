"""Non-maximum suppression of 30,000 boxes: sigak and torchvision in turn, in one run.

    python benchmarks/nms.py            # writes benchmarks/results/nms.json and prints a table
    python benchmarks/nms.py --quick    # fewer boxes and rounds, and nothing is written

The boxes lie in heaps around 500 objects and at random places, as the candidates of a detector do.
Both must keep the same boxes. `best 300` is sigak stopped at 300 boxes; torchvision has no such
limit and suppresses all. Seconds of the clock and of the processor, one thread.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from machine import machine
from torch import Tensor
from torchvision.ops import batched_nms
from torchvision.ops import nms as torchvision_nms

from sigak.ops.nms import nms

RESULTS = Path(__file__).parent / "results" / "nms.json"
IOU, OBJECTS = 0.7, 500


def candidates(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes (N, 4) on a canvas of 640, scores without ties, labels of 80 classes."""
    random = torch.Generator().manual_seed(0)
    near = count * 3 // 4
    middle = torch.rand(OBJECTS, 2, generator=random) * 640
    sides = torch.exp(torch.rand(OBJECTS, 2, generator=random) * 3 + 2.5)
    heap = torch.randint(OBJECTS, (near,), generator=random)
    middle = torch.cat([
        middle[heap] + torch.randn(near, 2, generator=random) * sides[heap] * 0.05,
        torch.rand(count - near, 2, generator=random) * 640,
    ])  # fmt: skip
    scale = 1 + torch.randn(count, 2, generator=random).clamp(-3, 3) * 0.05
    other = torch.randint(OBJECTS, (count - near,), generator=random)
    sides = sides[torch.cat([heap, other])] * scale
    boxes = torch.cat([middle - sides / 2, middle + sides / 2], 1)
    scores = torch.randperm(count, generator=random) / count
    own = torch.randint(80, (OBJECTS,), generator=random)[heap]
    labels = torch.cat([own, torch.randint(80, (count - near,), generator=random)])
    return boxes, scores, labels


def timed(step: Callable[[], Tensor]) -> dict[str, float]:
    wall, processor = time.perf_counter(), time.process_time()
    step()
    return {"wall": time.perf_counter() - wall, "processor": time.process_time() - processor}


def measure(count: int, rounds: int) -> dict[str, dict[str, list[dict[str, float]]]]:
    """Setting -> engine -> seconds of every round; the first round is not counted."""
    boxes, scores, labels = candidates(count)
    settings: dict[str, dict[str, Callable[[], Tensor]]] = {
        "80 classes": {
            "sigak": lambda: nms(boxes, scores, labels, IOU),
            "torchvision": lambda: batched_nms(boxes, scores, labels, IOU),
            "sigak, best 300": lambda: nms(boxes, scores, labels, IOU, 300),
        },
        "1 class": {
            "sigak": lambda: nms(boxes, scores, None, IOU),
            "torchvision": lambda: torchvision_nms(boxes, scores, IOU),
            "sigak, best 300": lambda: nms(boxes, scores, None, IOU, 300),
        },
    }
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    for setting, engines in settings.items():
        ours, theirs, best = (step() for step in engines.values())
        assert torch.equal(ours, theirs)
        assert torch.equal(best, ours[:300])
        print(f"{setting}: {len(ours):,} of {count:,} boxes kept")
        found[setting] = {name: [] for name in engines}
        for _ in range(rounds):
            for name, step in engines.items():
                found[setting][name].append(timed(step))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of non-maximum suppression.")
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    count, rounds = (5_000, 3) if quick else (30_000, 9)
    found = measure(count, rounds)
    print(f"{'':12}{'':20}{'clock ms':>10}{'processor ms':>14}")
    for setting, engines in found.items():
        for name, times in engines.items():
            wall, processor = (
                1000 * statistics.median(row[key] for row in times) for key in ("wall", "processor")
            )
            print(f"{setting:12}{name:20}{wall:10.1f}{processor:14.1f}")
    if not quick:
        result = {"machine": machine(), "boxes": count, "iou": IOU, "seconds": found}
        RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
