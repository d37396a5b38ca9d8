"""From a picture's file to its class map or masks on the CPU: U-Net and DeepLabv3+ by sigak's
engines and by segmentation_models.pytorch, Mask R-CNN by sigak and by torchvision, the same
weights, in one run.

    python benchmarks/segment.py PHOTOS            # a folder of pictures
    python benchmarks/segment.py PHOTOS --quick

The photos are resized to 640x480 and kept as JPEG files. Both decode them, squash them to the
network's input, run it, enlarge the logits to the file's size and take the best class of each
pixel; the libraries' networks run in a plain PyTorch loop. Weights are drawn at random, 21
classes; the share of pixels with the same class is reported. Mask R-CNN sees the photos as they
are and draws the masks of boxes that score above .05; of its drawn weights only two classes are
asked, so that there are such boxes. Milliseconds a picture, the median of several rounds.
"""

from __future__ import annotations

import argparse
import copy
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
CONF = 0.05
Step = Callable[[str], np.ndarray]


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


def plain(network: Any) -> Any:
    """A library's network as the library builds it: in PyTorch's own memory layout, not in the one
    that sigak loads it in.
    """
    return copy.deepcopy(network).eval().to(memory_format=torch.contiguous_format)


def peer(path: Path) -> Step:
    """The package's network and what its users write around it."""
    predictor = sigak.load(path, device="cpu")
    network = plain(predictor.network.net)  # type: ignore[union-attr]
    mean, std = (getattr(predictor.network.normalize, n).flatten().numpy() for n in ("mean", "std"))

    def answer(file: str) -> np.ndarray:
        pixels = cv2.cvtColor(cv2.imread(file), cv2.COLOR_BGR2RGB)
        small = cv2.resize(pixels, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
        images = torch.from_numpy(((small / 255 - mean) / std).transpose(2, 0, 1)[None]).float()
        with torch.inference_mode():
            logits = F.interpolate(network(images), pixels.shape[:2], mode="bilinear")
            return logits.argmax(1)[0].numpy()

    return answer


def mask_rcnn(folder: Path) -> dict[str, Step]:
    """Both give (H, W): how many masks cover each pixel."""
    torch.manual_seed(0)
    built = models.arguments("maskrcnn", classes=2)
    network = models.entry("maskrcnn").build(**built)
    preparation = Preparation(tuple(built["size"]), "rgb", "rect", resample="bilinear").asdict()
    header = files.header(
        "maskrcnn", "instances", built, ["a", "b"],
        preparation=preparation, recipe={}, scores={}, data={},
    )  # fmt: skip
    path = folder / "maskrcnn.safetensors"
    files.write(path, network.state_dict(), header)
    predictor = sigak.load(path, device="cpu")
    theirs = plain(predictor.network.net)  # type: ignore[union-attr]
    theirs.transform.min_size, theirs.transform.max_size = (480,), 640
    theirs.roi_heads.score_thresh = CONF

    def by_torchvision(file: str) -> np.ndarray:
        pixels = cv2.cvtColor(cv2.imread(file), cv2.COLOR_BGR2RGB)
        with torch.inference_mode():
            [found] = theirs([torch.from_numpy(pixels).permute(2, 0, 1).float() / 255])
        return (found["masks"][:, 0] > 0.5).sum(0).numpy()

    def by_sigak(file: str) -> np.ndarray:
        [result] = predictor.predict(file, conf=CONF, size=640)
        return result.instances.masks.planes().sum(0).numpy()

    return {"torchvision": by_torchvision, "sigak torch": by_sigak}


def class_maps(path: Path) -> dict[str, Step]:
    """Every way from a file to its class map."""
    steps: dict[str, Step] = {"segmentation_models.pytorch": peer(path)}
    for name in ENGINES:
        predictor = sigak.load(path, engine=name)
        steps[f"sigak {name}"] = lambda file, predictor=predictor: (  # type: ignore[misc]
            predictor.predict(file)[0].class_map
        )
    return steps


def measure(steps: dict[str, Step], photos: list[str], rounds: int) -> dict[str, Any]:
    """Milliseconds and answers of every way, in turn; the first is the library's."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    found: dict[str, list[np.ndarray]] = {}
    for turn in range(rounds + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            found[name] = [step(file) for file in photos]
            if turn:  # the first warms up
                times[name].append(1000 * (time.perf_counter() - start) / len(photos))
    expected = next(iter(found.values()))
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
        ways = {name: class_maps(checkpoint(name, Path(target))) for name in NAMES}
        ways["maskrcnn"] = mask_rcnn(Path(target))
        for name, steps in ways.items():
            rows[name] = measure(steps, photos, 1 if said.quick else 5)
            slow = next(iter(rows[name].values()))["median"]
            print(f"{name}, {len(photos)} photos of 640x480, {torch.get_num_threads()} threads")
            for way, row in rows[name].items():
                print(
                    f"  {way:30}{row['median']:8.1f} ms {slow / row['median']:6.2f}x  same for "
                    f"{row['same_pixels']:.2%} of the pixels"
                )
    if not said.quick:
        found = {"machine": machine(), "threads": torch.get_num_threads(), "rows": rows}
        RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
