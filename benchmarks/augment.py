"""Augmented pictures per second: sigak and its peers in turn, in one run.

    python benchmarks/augment.py            # writes benchmarks/results/augment.json and prints a
    table python benchmarks/augment.py --quick    # fewer pictures and rounds, to see that it works

Every engine lives in a process of its own, held to the given number of processors, and is asked for
one batch at a time, so that a busy moment of the machine falls on all of them alike. Each gets its
pictures in the form it likes best (uint8 arrays, uint8 tensors, PIL pictures or float batches), and
its conversion is not counted. An engine that is not installed is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

RESULTS = Path(__file__).parent / "results" / "augment.json"
Step = Callable[[], object]
PACKAGES = (
    "numpy", "torch", "torchvision", "opencv-python-headless", "pillow", "albumentations", "kornia",
    "keras", "tensorflow-cpu", "jax",
)  # fmt: skip

# flip, rotation 15 degrees, shift 10 %, zoom 10 %, shear 5 degrees, brightness and contrast 20 %,
# noise 5 %
FULL = "flip=h,rotate=15,shift=0.1,zoom=0.1,shear=5,brightness=0.2,contrast=0.2,noise=0.05"
TASKS = {
    "full 224": (FULL, 224, 64),
    "flip+crop 32": ("flip=h,crop=4", 32, 64),
    "flip+shift+rotate 32": ("flip=h,shift=0.1,rotate=15", 32, 64),
}


def _sigak(task: str, pictures: np.ndarray, threads: int) -> Step:
    import cv2
    import torch

    from sigak.augment import Pipeline
    from sigak.structures import Batch

    cv2.setNumThreads(1)  # the pipeline's own threads share the batch
    count, height, width, _ = pictures.shape
    images = torch.from_numpy(pictures).permute(0, 3, 1, 2)
    matrix = torch.eye(3, dtype=torch.float64).repeat(count, 1, 1)
    batch = Batch(images, torch.arange(count), matrix, [(height, width)] * count, [""] * count)
    pipeline = Pipeline.parse(TASKS[task][0], (height, width), threads=threads)
    epochs = iter(range(10**9))
    return lambda: pipeline(batch, 0, next(epochs))


def _albumentations(task: str, pictures: np.ndarray, threads: int) -> Step:
    from concurrent.futures import ThreadPoolExecutor

    import albumentations as A
    import cv2

    cv2.setNumThreads(1)
    edge = cv2.BORDER_REFLECT
    steps = {
        "full 224": lambda: [
            A.HorizontalFlip(p=0.5),
            A.Affine(
                scale=(0.9, 1.1), translate_percent=(-0.1, 0.1), rotate=(-15, 15),
                shear={"x": (-5, 5), "y": 0}, border_mode=edge, p=1,
            ),
            A.RandomBrightnessContrast(0.2, 0.2, p=1),
            A.GaussNoise(std_range=(0.05, 0.05), p=1),
        ],
        "flip+crop 32": lambda: [
            A.HorizontalFlip(p=0.5),
            A.PadIfNeeded(40, 40, border_mode=edge),
            A.RandomCrop(32, 32),
        ],
        "flip+shift+rotate 32": lambda: [
            A.HorizontalFlip(p=0.5),
            A.Affine(translate_percent=(-0.1, 0.1), rotate=(-15, 15), border_mode=edge, p=1),
        ],
    }  # fmt: skip
    composes = [A.Compose(steps[task]()) for _ in range(threads)]

    def part(k: int) -> list[np.ndarray]:
        return [composes[k](image=p)["image"] for p in pictures[k::threads]]

    if threads == 1:
        return lambda: part(0)
    pool = ThreadPoolExecutor(threads)
    return lambda: list(pool.map(part, range(threads)))


def _torchvision_steps(task: str) -> list[object]:
    from torchvision.transforms import v2

    bilinear = v2.InterpolationMode.BILINEAR
    if task == "flip+crop 32":
        crop = v2.RandomCrop(32, padding=4, padding_mode="reflect")
        return [v2.RandomHorizontalFlip(), crop]
    if task == "flip+shift+rotate 32":
        affine = v2.RandomAffine(15, (0.1, 0.1), interpolation=bilinear)
        return [v2.RandomHorizontalFlip(), affine]
    return [
        v2.RandomHorizontalFlip(),
        v2.RandomAffine(15, (0.1, 0.1), (0.9, 1.1), 5, interpolation=bilinear),
        v2.ColorJitter(brightness=0.2, contrast=0.2),
        v2.GaussianNoise(0.0, 0.05),
    ]


def _torchvision(task: str, pictures: np.ndarray, threads: int) -> Step:
    import torch
    from torchvision.transforms import v2

    chain = v2.Compose(_torchvision_steps(task))
    tensors = [torch.from_numpy(p).permute(2, 0, 1).contiguous() for p in pictures]
    return lambda: [chain(t) for t in tensors]


def _torchvision_pil(task: str, pictures: np.ndarray, threads: int) -> Step:
    from PIL import Image
    from torchvision.transforms import v2

    steps = _torchvision_steps(task)
    steps.insert(3, v2.PILToTensor())  # before the noise, which PIL pictures cannot take
    chain = v2.Compose(steps)
    images = [Image.fromarray(p) for p in pictures]
    return lambda: [chain(i) for i in images]


def _kornia(task: str, pictures: np.ndarray, threads: int) -> Step:
    import kornia.augmentation as K
    import torch

    if task != "full 224":
        raise ImportError("only the full task")
    chain = torch.nn.Sequential(
        K.RandomHorizontalFlip(p=0.5),
        K.RandomAffine(15, (0.1, 0.1), (0.9, 1.1), 5, padding_mode="reflection", p=1),
        K.RandomBrightness((0.8, 1.2), p=1),
        K.RandomContrast((0.8, 1.2), p=1),
        K.RandomGaussianNoise(0.0, 0.05, p=1),
    )
    images = torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div(255).contiguous()

    def step() -> object:
        with torch.no_grad():
            return chain(images)

    return step


def _keras(backend: str) -> Callable[[str, np.ndarray, int], Step]:
    def prepare(task: str, pictures: np.ndarray, threads: int) -> Step:
        if task != "full 224":
            raise ImportError("only the full task")
        os.environ["KERAS_BACKEND"] = backend
        if backend == "tensorflow":
            import tensorflow as tf

            tf.config.threading.set_intra_op_parallelism_threads(threads)
            tf.config.threading.set_inter_op_parallelism_threads(threads)
        import keras
        from keras import layers

        chain = keras.Sequential(
            [
                layers.RandomFlip("horizontal"),
                layers.RandomRotation(15 / 360),
                layers.RandomTranslation(0.1, 0.1),
                layers.RandomZoom(0.1),
                layers.RandomShear(x_factor=0.087),
                layers.RandomBrightness(0.2, value_range=(0, 1)),
                layers.RandomContrast(0.2, value_range=(0, 1)),
                layers.GaussianNoise(0.05),
            ]
        )
        images = keras.ops.convert_to_tensor(pictures.astype(np.float32) / 255)
        if backend == "tensorflow":
            graph = tf.function(lambda x: chain(x, training=True))
            return lambda: graph(images).numpy()
        if backend == "jax":
            return lambda: chain(images, training=True).block_until_ready()
        return lambda: chain(images, training=True)

    return prepare


ENGINES: dict[str, Callable[[str, np.ndarray, int], Step]] = {
    "sigak": _sigak,
    "albumentations": _albumentations,
    "torchvision v2 (tensor)": _torchvision,
    "torchvision v2 (PIL)": _torchvision_pil,
    "kornia": _kornia,
    "Keras layers (TensorFlow)": _keras("tensorflow"),
    "Keras layers (JAX)": _keras("jax"),
    "Keras layers (torch)": _keras("torch"),
}


# Engines so slow that a part of the batch tells their speed as well.
SHARE = {"Keras layers (JAX)": 4, "Keras layers (torch)": 4}


def work(name: str, task: str, threads: int, count: int) -> None:
    """One engine's process: a line in asks for a batch, a line out gives its wall and processor
    seconds.
    """
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    side = TASKS[task][1]
    pictures = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    try:
        if name != "Keras layers (TensorFlow)":
            import torch

            torch.set_num_threads(threads)
        step = ENGINES[name](task, pictures, threads)
    except ImportError as absent:
        print(json.dumps({"absent": str(absent)}), flush=True)
        return
    step()
    step()
    print(json.dumps({"ready": True}), flush=True)
    for _ in sys.stdin:
        wall, processor = time.perf_counter(), time.process_time()
        step()
        spent = time.perf_counter() - wall, time.process_time() - processor
        print(json.dumps({"wall": spent[0], "processor": spent[1]}), flush=True)


def start(name: str, task: str, threads: int, count: int) -> subprocess.Popen[str] | None:
    """The engine's process, warmed up; None where the engine is not installed or does not offer the
    task.
    """
    limits = {k: str(threads) for k in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TF_NUM_THREADS")}
    quiet = {
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "NO_ALBUMENTATIONS_UPDATE": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    command = [sys.executable, __file__, "--engine", name, "--task", task]
    command += ["--threads", str(threads), "--pictures", str(count)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        text=True, env={**os.environ, **limits, **quiet},
    )  # fmt: skip
    answer = process.stdout.readline()
    if not answer or "absent" in json.loads(answer):
        process.kill()
        print(f"  left out: {name}, {task} ({answer.strip() or 'it did not start'})")
        return None
    return process


def measure(task: str, threads: int, count: int, rounds: int) -> list[dict[str, object]]:
    """One row per engine: medians over the rounds, in which every engine has one turn."""
    counts = {name: max(1, count // SHARE.get(name, 1)) for name in ENGINES}
    running = {name: p for name in ENGINES if (p := start(name, task, threads, counts[name]))}
    spent: dict[str, list[dict[str, float]]] = {name: [] for name in running}
    for _ in range(rounds):
        for name, process in running.items():
            process.stdin.write("go\n")
            process.stdin.flush()
            spent[name].append(json.loads(process.stdout.readline()))
    for process in running.values():
        process.stdin.close()
        process.wait()
    rows = []
    for name, seconds in spent.items():
        row: dict[str, object] = {"task": task, "threads": threads, "engine": name}
        for kind in ("wall", "processor"):
            row[f"pictures per {kind} second"] = round(
                counts[name] / statistics.median(s[kind] for s in seconds), 1
            )
        rows.append(row)
    return rows


def machine() -> dict[str, object]:
    """What it ran on."""
    model = platform.processor() or platform.machine()
    facts = Path("/proc/cpuinfo")
    if facts.exists():
        lines = [line for line in facts.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].split(":")[1].strip() if lines else model
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "processor": model, "processors": os.cpu_count(), "system": platform.platform(),
        "python": platform.python_version(), "versions": versions,
    }  # fmt: skip


def table(rows: list[dict[str, object]]) -> str:
    """Rows as text, with how many times as fast sigak is, by wall clock and by processor time."""
    lines = []
    for task, threads in dict.fromkeys((r["task"], r["threads"]) for r in rows):
        part = [r for r in rows if (r["task"], r["threads"]) == (task, threads)]
        ours = next(r for r in part if r["engine"] == "sigak")
        lines.append(f"\n{task}, {threads} thread(s): pictures per second, and sigak's advantage")
        for r in sorted(part, key=lambda r: -r["pictures per wall second"]):
            wall, processor = (
                ours[f"pictures per {k} second"] / r[f"pictures per {k} second"]
                for k in ("wall", "processor")
            )
            lines.append(
                f"  {r['engine']:28s} {r['pictures per wall second']:10,.0f}"
                f"   {wall:6.1f} x   (by processor time {processor:.1f} x)"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer pictures and rounds")
    parser.add_argument("--engine", help=argparse.SUPPRESS)
    parser.add_argument("--task", default="full 224", help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--pictures", type=int, default=64, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.engine:
        work(options.engine, options.task, options.threads, options.pictures)
        return
    rounds = 2 if options.quick else 5
    rows: list[dict[str, object]] = []
    found = {"machine": machine(), "rounds": rounds, "full 224": FULL, "rows": rows}
    print(json.dumps(found["machine"]), flush=True)
    for task, (_, _, pictures) in TASKS.items():
        for threads in (1, 2):
            part = measure(task, threads, 8 if options.quick else pictures, rounds)
            print(table(part), flush=True)
            rows += part
            if not options.quick:
                RESULTS.parent.mkdir(exist_ok=True)
                RESULTS.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
