"""YOLOv8n trained at 640 on the CPU: pictures a second of `sigak train` and of Ultralytics' own
`train`, each with its own defaults (mosaic and the other augmentation included), in one run.

    python benchmarks/train_detector.py             # writes benchmarks/results/train_detector.json
    python benchmarks/train_detector.py --pictures 16

Both read the same JPEG files, train two epochs in batches of 8, and the second epoch is timed,
without validation. Ultralytics is AGPL-3.0: it is installed beside sigak for this comparison only.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
from machine import machine

import sigak
from sigak.data import scenes
from sigak.io import image

RESULTS = Path(__file__).parent / "results" / "train_detector.json"
BATCH, SIZE = 8, (480, 640)


def write_set(folder: Path, count: int) -> Path:
    """Scenes as JPEG files with YOLO labels; both splits are the same pictures."""
    for part in ("images", "labels"):
        (folder / part).mkdir()
    for i in range(count):
        pixels, objects = scenes.render(seed=0, index=i, size=SIZE)
        image.save(folder / "images" / f"{i}.jpg", pixels)
        lines = []
        for (x1, y1, x2, y2), label in zip(objects.boxes.tolist(), objects.labels.tolist()):
            box = ((x1 + x2) / 2 / 640, (y1 + y2) / 2 / 480, (x2 - x1) / 640, (y2 - y1) / 480)
            lines.append(f"{label} {' '.join(f'{v:.6f}' for v in box)}\n")
        (folder / "labels" / f"{i}.txt").write_text("".join(lines))
    names = json.dumps(list(scenes.CLASSES))
    yaml = folder / "data.yaml"
    yaml.write_text(f"path: {folder}\ntrain: images\nval: images\nnames: {names}\n")
    return yaml


def by_sigak(yaml: Path, folder: Path) -> float:
    """Seconds of the second epoch."""
    run = sigak.train(
        "yolov8n",
        str(yaml),
        size=640,
        epochs=2,
        batch=BATCH,
        val=0.0,
        out=folder / "run",
        quiet=True,
    )
    return float(run.history["seconds"][1])


def by_ultralytics(yaml: Path, folder: Path) -> float:
    from ultralytics import YOLO

    times: list[float] = []
    model = YOLO("yolov8n.yaml")
    model.add_callback("on_train_epoch_start", lambda trainer: times.append(time.perf_counter()))
    model.add_callback("on_train_epoch_end", lambda trainer: times.append(time.perf_counter()))
    model.train(
        data=str(yaml), epochs=2, imgsz=640, batch=BATCH, device="cpu", workers=2, val=False,
        plots=False, verbose=False, project=str(folder), close_mosaic=0,
    )  # fmt: skip
    return times[3] - times[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pictures", type=int, default=64)
    count = parser.parse_args().pictures
    speeds: dict[str, list[float]] = {"sigak": [], "Ultralytics": []}
    for turn in range(2):
        for name, step in (("sigak", by_sigak), ("Ultralytics", by_ultralytics)):
            with tempfile.TemporaryDirectory() as place:
                folder = Path(place)
                seconds = step(write_set(folder, count), folder)
            speeds[name].append(round(count / seconds, 2))
            print(f"round {turn + 1}  {name:12}{count / seconds:8.2f} pictures/s", flush=True)
    found = {
        "machine": machine(),
        "threads": torch.get_num_threads(),
        "pictures_per_second": speeds,
    }
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
