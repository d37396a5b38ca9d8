"""A folder of JPEGs to 224x224 float batches of 64: sigak and its peers in turn, in one run.

    python benchmarks/loading.py            # writes benchmarks/results/loading.json, prints a table
    python benchmarks/loading.py --quick    # fewer pictures and one round

Cold: the files are evicted from the page cache, then everything from the folder's path to the last
batch of the first epoch is timed (listing, checking and, for sigak, looking for duplicates
included). Warm: the second epoch of the same process. Every contender runs in a process of its own
with two threads or workers. Peers are shown as their tutorials use them, and Keras also with
`.cache()`. The pictures are cut from those in $SIGAK_DATA/coco-mini, or drawn at random where that
is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from machine import machine
from PIL import Image

RESULTS = Path(__file__).parent / "results" / "loading.json"
SIZES = {"640x480": (640, 480), "1920x1280": (1920, 1280)}
CONTENDERS = ("sigak", "torchvision", "keras", "keras .cache()")
Epoch = Callable[[], Iterator[object]]


def make_folder(root: Path, size: tuple[int, int], count: int) -> None:
    """`count` JPEGs of `size` in four class folders."""
    photos = sorted((Path(os.environ.get("SIGAK_DATA", "")) / "coco-mini" / "images").glob("*.jpg"))
    rng = np.random.default_rng(0)
    for i in range(count):
        if photos:
            picture = Image.open(photos[i % len(photos)]).convert("RGB").resize(size)
            picture = picture.rotate(float(rng.uniform(-5, 5)))  # no two files are identical
        else:
            picture = Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)).resize(size)
        path = root / f"class{i % 4}" / f"{i:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path, quality=90)


def sigak(root: Path) -> Epoch:
    from sigak import data
    from sigak.data.feed import Feed, Pictures
    from sigak.io.image import Preparation
    from sigak.structures import Batch

    split = data.load(root, val=0).splits["train"]
    pictures = Pictures(split, Preparation((224, 224)), Batch.of, reduced=True, threads=2).load()
    feed = Feed(pictures, batch=64, seed=0)
    epochs = iter(range(10**9))
    return lambda: (step.batch.floating().images for step in feed.epoch(next(epochs)))


def torchvision(root: Path) -> Epoch:
    import torch
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    steps = transforms.Compose([transforms.Resize((224, 224)), transforms.ToTensor()])
    loader = torch.utils.data.DataLoader(
        ImageFolder(str(root), steps), 64, shuffle=True, num_workers=2, persistent_workers=True
    )
    return lambda: (images for images, _ in loader)


def keras(root: Path, cached: bool = False) -> Epoch:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf
    from keras.utils import image_dataset_from_directory

    tf.config.threading.set_intra_op_parallelism_threads(2)
    tf.config.threading.set_inter_op_parallelism_threads(2)
    found = image_dataset_from_directory(
        str(root), image_size=(224, 224), batch_size=64, verbose=False
    )
    found = found.cache() if cached else found
    found = found.prefetch(2)
    return lambda: (images / 255.0 for images, _ in found)


def work(contender: str, root: Path) -> dict[str, float]:
    """Time one contender in this process, after its imports."""
    makers: dict[str, Callable[[Path], Epoch]] = {
        "sigak": sigak,
        "torchvision": torchvision,
        "keras": keras,
        "keras .cache()": lambda root: keras(root, cached=True),
    }
    with tempfile.TemporaryDirectory() as small:  # imports and first calls are not what is measured
        make_folder(Path(small), (64, 48), 8)
        for _ in makers[contender](Path(small))():
            pass
    files = list(root.rglob("*.jpg"))
    for file in files:
        evict(file)
    begun = time.perf_counter()
    epoch = makers[contender](root)
    seconds = []
    for _ in range(2):
        seen = sum(len(images) for images in epoch())  # type: ignore[arg-type]
        if seen != len(files):
            raise RuntimeError(f"{contender} delivered {seen} of {len(files)} pictures")
        seconds.append(time.perf_counter() - begun)
        begun = time.perf_counter()
    return {"cold": len(files) / seconds[0], "warm": len(files) / seconds[1]}


def evict(file: Path) -> None:
    """Ask the kernel to forget a file's pages, where it can be asked."""
    if hasattr(os, "posix_fadvise"):
        with open(file, "rb") as handle:
            os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    said = parser.parse_args()
    if said.work:
        print(json.dumps(work(said.work[0], Path(said.work[1]))))
        return
    rounds, counts = (1, (64, 16)) if said.quick else (5, (800, 160))
    figures: dict[str, dict[str, dict[str, list[float]]]] = {}
    for (label, size), count in zip(SIZES.items(), counts):
        with tempfile.TemporaryDirectory() as folder:
            make_folder(Path(folder), size, count)
            for _ in range(rounds):
                for contender in CONTENDERS:
                    run_one(contender, folder, figures.setdefault(label, {}))
    report(figures)


def run_one(contender: str, folder: str, figures: dict[str, dict[str, list[float]]]) -> None:
    """One round of one contender in a fresh process."""
    command = [sys.executable, __file__, "--work", contender, folder]
    environment = os.environ | {"OMP_NUM_THREADS": "2", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        print(f"{contender}: left out, {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
        return
    for kind, rate in json.loads(done.stdout.splitlines()[-1]).items():
        figures.setdefault(contender, {}).setdefault(kind, []).append(rate)


def report(figures: dict[str, dict[str, dict[str, list[float]]]]) -> None:
    """Medians, and how many times as fast as the fastest peer sigak is."""
    facts = machine()
    print(f"{facts['processor']}, {facts['cores']} cores, images per second, medians")
    for label, rows in figures.items():
        for kind in ("cold", "warm"):
            medians = {name: statistics.median(row[kind]) for name, row in rows.items()}
            peers = {n: m for n, m in medians.items() if n != "sigak"}
            shown = "  ".join(f"{name} {rate:.0f}" for name, rate in medians.items())
            ratio = medians["sigak"] / max(peers.values()) if peers else float("nan")
            print(f"{label} {kind}: {shown}  ratio to the fastest peer {ratio:.1f}")
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"machine": facts, "figures": figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
