"""Mosaics per second beside the plain warp of the same geometry, and scenes made per second.

    python benchmarks/mosaic.py             # prints one JSON object

One thread; what is compared takes turns, so that a busy moment of the machine falls on all alike.
The figure is that of the median round.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable

import cv2
import numpy as np
import torch
from machine import machine

from sigak.augment import Pipeline
from sigak.data import scenes
from sigak.data.objects import to_instances
from sigak.structures import Batch

SIDE, COUNT, ROUNDS = 640, 16, 9
MOVES = "flip=h,zoom=0.5,shift=0.1"
SPECS = {
    "warp, black outside": f"{MOVES},fill=constant",
    "warp, mirrored outside": MOVES,
    "one tile on gray": f"{MOVES},fill=gray",
    "mosaic": f"mosaic=1,{MOVES}",
    "mosaic, turned": f"mosaic=1,rotate=10,{MOVES}",
    "mosaic and blend": f"mosaic=1,blend=1,{MOVES}",
}


def batch_of(count: int, side: int) -> Batch:
    """Scenes of side x side pixels with their objects."""
    pictures, objects = zip(*(scenes.render(0, i, (side, side)) for i in range(count)))
    return Batch(
        images=torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2),
        indices=torch.arange(count),
        matrix=torch.eye(3, dtype=torch.float64).repeat(count, 1, 1),
        sizes=[(side, side)] * count,
        sources=[""] * count,
        instances=[to_instances(found, np.eye(3), (side, side)) for found in objects],
    )


def steps() -> dict[str, tuple[int, Callable[[int], object]]]:
    """Name -> (pictures a turn, what is done in turn number n)."""
    batch, size = batch_of(COUNT, SIDE), (SIDE, SIDE)

    def augment(spec: str) -> Callable[[int], object]:
        pipeline = Pipeline.parse(spec, size, threads=1)
        return lambda turn: pipeline(batch, 0, turn)

    found = {f"{name}, {SIDE}": (COUNT, augment(spec)) for name, spec in SPECS.items()}
    for side in (128, 256, SIDE):
        made = (side, side)
        found[f"scenes, {side}"] = (
            32,
            lambda turn, made=made: [scenes.render(turn, i, made) for i in range(32)],
        )
    return found


def main() -> None:
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    rivals = steps()
    wall: dict[str, list[float]] = {name: [] for name in rivals}
    processor: dict[str, list[float]] = {name: [] for name in rivals}
    for turn in range(ROUNDS):
        for name, (count, step) in rivals.items():
            started, used = time.perf_counter(), time.process_time()
            step(turn)
            wall[name].append(count / (time.perf_counter() - started))
            processor[name].append(count / (time.process_time() - used))
    rows = {
        name: {
            "pictures per second": round(statistics.median(wall[name]), 1),
            "per second of the processor": round(statistics.median(processor[name]), 1),
        }
        for name in rivals
    }
    print(json.dumps({"machine": machine(), "rounds": ROUNDS, "figures": rows}, indent=1))


if __name__ == "__main__":
    main()
