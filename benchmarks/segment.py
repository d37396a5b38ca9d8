"""From a picture's file to its class map on the CPU: U-Net and DeepLabv3+ by sigak's engines and by
segmentation_models.pytorch in a plain PyTorch loop, the same weights, in one run.

    python benchmarks/segment.py PHOTOS            # a folder of pictures
    python benchmarks/segment.py PHOTOS --quick

The photos are resized to 640x480 and kept as JPEG files; both decode them, squash them to the
network's input, run it, enlarge the logits to the file's size and take the best class of each
pixel. Weights are drawn at random, 21 classes; the share of pixels with the same class is reported.
Milliseconds a picture, the median of several rounds.
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

import cv2
import numpy as np
import torch
from detect import resized
from machine import machine
from torch.nn import functional as F

import sigak
from sigak import models
from sigak.io import weights as files
from sigak.io.image import Preparation

RESULTS = Path(__file__).parent / "results" / "segment.json"
NAMES = ("unet-resnet34", "deeplabv3plus-resnet50")
ENGINES = ("torch", "torch-fused", "openvino", "openvino-bf16", "auto")
SIDE = 256


def checkpoint(name: str, folder: Path) -> Path:
    """A network with weights drawn at random, its batch norms shown a few pictures of noise."""
    torch.manual_seed(0)
    built = models.arguments(name, size=(SIDE, SIDE))
    network = models.entry(name).build(**built).train()
    with torch.no_grad():
        for _ in range(4):
            network(torch.rand(4, 3, SIDE, SIDE))
    preparation = Preparation((SIDE, SIDE), fit="squash").asdict()
    classes = [str(k) for k in range(21)]
    header = files.header(
        name, "segment", built, classes, preparation=preparation, recipe={}, scores={}, data={}
    )
    path = folder / f"{name}.safetensors"
    files.write(path, network.state_dict(), header)
    return path


def peer(path: Path) -> Callable[[str], np.ndarray]:
    """The package's network and what its users write around it."""
    predictor = sigak.load(path, device="cpu")
    network = predictor.network.net.eval()  # type: ignore[union-attr, operator]
    mean, std = (getattr(predictor.network.normalize, n).flatten().numpy() for n in ("mean", "std"))

    def answer(file: str) -> np.ndarray:
        pixels = cv2.cvtColor(cv2.imread(file), cv2.COLOR_BGR2RGB)
        small = cv2.resize(pixels, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
        images = torch.from_numpy(((small / 255 - mean) / std).transpose(2, 0, 1)[None]).float()
        with torch.inference_mode():
            logits = F.interpolate(network(images), pixels.shape[:2], mode="bilinear")
            return logits.argmax(1)[0].numpy()

    return answer


def measure(path: Path, photos: list[str], rounds: int) -> dict[str, Any]:
    """Milliseconds and answers of every way, in turn."""
    steps: dict[str, Callable[[str], np.ndarray]] = {"segmentation_models.pytorch": peer(path)}
    for name in ENGINES:
        predictor = sigak.load(path, engine=name)
        steps[f"sigak {name}"] = lambda file, predictor=predictor: (  # type: ignore[misc]
            predictor.predict(file)[0].class_map
        )
    times: dict[str, list[float]] = {name: [] for name in steps}
    found: dict[str, list[np.ndarray]] = {}
    for turn in range(rounds + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            found[name] = [step(file) for file in photos]
            if turn:  # the first warms up
                times[name].append(1000 * (time.perf_counter() - start) / len(photos))
    expected = found["segmentation_models.pytorch"]
    return {
        name: {
            "milliseconds": [round(t, 1) for t in times[name]],
            "median": round(statistics.median(times[name]), 1),
            "same_pixels": round(
                float(np.mean([np.mean(a == b) for a, b in zip(found[name], expected)])), 5
            ),
        }
        for name in steps
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("--quick", action="store_true", help="one round, nothing is written")
    said = parser.parse_args()
    rows = {}
    with tempfile.TemporaryDirectory() as target:
        photos = resized(said.photos, Path(target))
        for name in NAMES:
            rows[name] = measure(checkpoint(name, Path(target)), photos, 1 if said.quick else 5)
            slow = rows[name]["segmentation_models.pytorch"]["median"]
            print(f"{name}, {len(photos)} photos of 640x480, {torch.get_num_threads()} threads")
            for way, row in rows[name].items():
                print(
                    f"  {way:30}{row['median']:8.1f} ms {slow / row['median']:6.2f}x  same class "
                    f"for {row['same_pixels']:.2%} of the pixels"
                )
    if not said.quick:
        found = {"machine": machine(), "threads": torch.get_num_threads(), "rows": rows}
        RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
