"""From a picture's file to its boxes on the CPU: YOLOv8n by sigak's engines and by Ultralytics'
`predict`, the same weights, in one run.

    python benchmarks/detect.py CHECKPOINT PHOTOS      # a yolov8n checkpoint and a folder
    python benchmarks/detect.py CHECKPOINT PHOTOS --quick

The photos are resized to 640x480 and kept as JPEG files; both decode them, prepare them, run the
network and suppress doubled boxes with the same thresholds. All must find the same boxes: every one
of sigak's has a counterpart of Ultralytics' with an IoU above .95, and the reverse. (Where a box
passes for two classes sigak gives both and Ultralytics the better one, so here only that counts.)
Milliseconds a picture, the median of several rounds.

Ultralytics is AGPL-3.0: it is installed beside sigak for this comparison only, and never imported
by it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from machine import machine
from PIL import Image
from torch import Tensor

import sigak
from sigak import models
from sigak.ops.boxes import iou
from sigak.runtime.choice import ENGINES

RESULTS = Path(__file__).parent / "results" / "detect.json"
CONF, IOU = 0.25, 0.7
Found = list[Tensor]  # boxes (N, 4) of each picture


def resized(folder: Path, target: Path) -> list[str]:
    """The photos of `folder` at 640x480, as files."""
    paths = []
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in (".jpg", ".jpeg", ".png"):
            out = target / f"{path.stem}.jpg"
            Image.open(path).convert("RGB").resize((640, 480)).save(out, quality=90)
            paths.append(str(out))
    return paths


def peer(checkpoint: str) -> Any:
    """Ultralytics' YOLOv8n with the checkpoint's weights."""
    from ultralytics import YOLO
    from ultralytics.nn.tasks import DetectionModel

    ours = sigak.load(checkpoint)
    theirs = YOLO("yolov8n.yaml")
    theirs.model = DetectionModel("yolov8n.yaml", nc=len(ours.classes), verbose=False)
    # The import of official files renames tensors and copies none: these are Ultralytics' own.
    state = theirs.model.state_dict()
    convert = next(w.convert for w in models.entry("yolov8n").weights if w.convert)
    for name, value in convert(state).items():
        value.copy_(ours.network.state_dict()[name])
    return theirs


def of_one_class(boxes: Tensor) -> Tensor:
    """Boxes (N, 4), the best first, without repetitions."""
    seen = dict.fromkeys(map(tuple, boxes.tolist()))
    return torch.tensor(list(seen)).reshape(-1, 4)


def timed(paths: list[str], step: Callable[[str], Tensor]) -> tuple[float, Found]:
    """Milliseconds a picture, and the boxes."""
    start = time.perf_counter()
    found = [step(path) for path in paths]
    return 1000 * (time.perf_counter() - start) / len(paths), found


def alike(ours: Found, theirs: Found) -> float:
    """The lowest IoU of a box with its counterpart on the other side; 0 where there is none."""
    worst = 1.0
    for a, b in zip(ours, theirs, strict=True):
        if len(a) or len(b):
            if not (len(a) and len(b)):
                return 0.0
            overlaps = iou(a, b)
            worst = min(worst, float(overlaps.amax(1).min()), float(overlaps.amax(0).min()))
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint")
    parser.add_argument("photos", type=Path)
    parser.add_argument("--quick", action="store_true", help="one round, nothing is written")
    said = parser.parse_args()
    theirs = peer(said.checkpoint)

    def by_ultralytics(path: str) -> Tensor:
        [result] = theirs.predict(path, conf=CONF, iou=IOU, verbose=False, device="cpu")
        return result.boxes.xyxy

    steps: dict[str, Callable[[str], Tensor]] = {"Ultralytics predict": by_ultralytics}
    for name in ("auto", *ENGINES):
        predictor = sigak.load(said.checkpoint, engine=name)
        if name == "auto":
            print("auto took", type(predictor.engine).__name__)
        steps[f"sigak {name}"] = lambda path, predictor=predictor: (  # type: ignore[misc]
            of_one_class(predictor.predict(path, conf=CONF, iou=IOU, size=640)[0].instances.boxes)
        )
    with tempfile.TemporaryDirectory() as target:
        paths = resized(said.photos, Path(target))
        times: dict[str, list[float]] = {name: [] for name in steps}
        found: dict[str, Found] = {}
        for turn in range(2 if said.quick else 8):
            for name, step in steps.items():
                took, found[name] = timed(paths, step)
                if turn:  # the first warms up
                    times[name].append(took)
    expected = found["Ultralytics predict"]
    rows = {
        name: {
            "milliseconds": [round(t, 2) for t in times[name]],
            "median": round(statistics.median(times[name]), 2),
            "boxes": sum(map(len, found[name])),
            "lowest_iou": round(alike(found[name], expected), 4),
        }
        for name in steps
    }
    slow = rows["Ultralytics predict"]["median"]
    print(
        f"{len(paths)} photos of 640x480, {torch.get_num_threads()} threads, boxes {CONF=} {IOU=}"
    )
    for name, row in rows.items():
        print(
            f"{name:24}{row['median']:8.1f} ms {slow / row['median']:6.2f}x {row['boxes']:5} boxes "
            f"lowest IoU {row['lowest_iou']}"
        )
    if not said.quick:
        found_all = {"machine": machine(), "threads": torch.get_num_threads(), "rows": rows}
        RESULTS.write_text(json.dumps(found_all, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
