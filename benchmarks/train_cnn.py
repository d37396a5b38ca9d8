"""Training a small CNN on the CPU: sigak's network and step beside Keras on its three backends.

    python benchmarks/train_cnn.py                about ten minutes on two idle cores
    python benchmarks/train_cnn.py --quick        about three
    python benchmarks/train_cnn.py --threads 1    where other programs share the cores

Network vgg3-dropout-bn (552,874 parameters), batches of 64 pictures of 32x32x3 held in memory, SGD
1e-3 with momentum .9, cross-entropy. Every engine is a process of its own that warms up once; then
all take turns, round after round, one working at a time, so that what else the machine does falls
on all alike. Reported are images per second, the median and the best of the rounds, and the median
over rounds of the ratio to the best Keras of the same round; and the same per second of processor
time, which other programs disturb less (take it with --threads 1: threads that wait count as busy).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from machine import machine

BATCH = 64
PARAMETERS = 552_874
WIDTHS = ((32, 0.2), (64, 0.3), (128, 0.4))
ENGINES = (
    "keras tensorflow float32",
    "keras tensorflow mixed_bfloat16",
    "keras jax float32",
    "keras jax mixed_bfloat16",
    "keras torch float32",
    "keras torch mixed_bfloat16",
    "torch stock float32",
    "torch stock bfloat16",
    "sigak float32",
    "sigak bfloat16",
)
RESULT = Path(__file__).parent / "results" / "train_cnn.json"

Fit = Callable[[], None]


def keras_engine(backend: str, policy: str, pictures: int, threads: int) -> Fit:
    """`model.fit` over `pictures` random pictures, without metrics."""
    os.environ["KERAS_BACKEND"] = backend
    if backend == "tensorflow":
        import tensorflow

        tensorflow.config.threading.set_intra_op_parallelism_threads(threads)
    if backend == "torch":
        import torch

        torch.set_num_threads(threads)
    import keras
    import numpy as np
    from keras import layers as kl

    keras.mixed_precision.set_global_policy(policy)
    he = "he_uniform"
    model = keras.Sequential([keras.Input((32, 32, 3))])
    for width, rate in WIDTHS:
        for _ in range(2):
            model.add(kl.Conv2D(width, 3, padding="same", activation="relu", kernel_initializer=he))
            model.add(kl.BatchNormalization())
        model.add(kl.MaxPooling2D())
        model.add(kl.Dropout(rate))
    model.add(kl.Flatten())
    model.add(kl.Dense(128, activation="relu", kernel_initializer=he))
    model.add(kl.BatchNormalization())
    model.add(kl.Dropout(0.5))
    model.add(kl.Dense(10, activation="softmax", dtype="float32"))
    assert model.count_params() == PARAMETERS
    model.compile(keras.optimizers.SGD(1e-3, momentum=0.9), "sparse_categorical_crossentropy")
    generator = np.random.default_rng(0)
    images = generator.random((pictures, 32, 32, 3), np.float32)
    labels = generator.integers(0, 10, pictures)
    return lambda: model.fit(images, labels, batch_size=BATCH, verbose=0)


def torch_engine(ours: bool, dtype_name: str, pictures: int, threads: int) -> Fit:
    """A shuffled epoch of the plain loop, with sigak's network and settings or the stock ones."""
    import torch
    from torch.nn import functional as F

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    network = sigak_network() if ours else stock_network()
    assert sum(p.numel() for p in network.parameters()) == PARAMETERS - 2 * 576
    network.train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), 1e-3, momentum=0.9)
    images = torch.rand(pictures, 3, 32, 32).to(memory_format=torch.channels_last)
    labels = torch.randint(10, (pictures,))
    half = dtype_name == "bfloat16"

    def fit() -> None:
        for index in torch.randperm(pictures).split(BATCH):
            batch = images[index].contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                loss = F.cross_entropy(network(batch).float(), labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return fit


def sigak_network():
    from sigak.layers.memory import keep_freed_memory
    from sigak.models import create

    keep_freed_memory()
    return create("vgg3-dropout-bn", classes=10)


def stock_network():
    from torch import nn

    layers, last = [], 3
    for width, rate in WIDTHS:
        for _ in range(2):
            norm = nn.BatchNorm2d(width, eps=1e-3, momentum=0.01)
            layers += [nn.Conv2d(last, width, 3, padding=1), nn.ReLU(), norm]
            last = width
        layers += [nn.MaxPool2d(2), nn.Dropout(rate)]
    layers += [nn.Flatten(), nn.Linear(2048, 128), nn.ReLU()]
    layers += [nn.BatchNorm1d(128, eps=1e-3, momentum=0.01), nn.Dropout(0.5), nn.Linear(128, 10)]
    return nn.Sequential(*layers)


def serve(engine: str, pictures: int, threads: int) -> None:
    """The child: build, warm up, then fit for every line of input and answer with its seconds."""
    if hasattr(os, "sched_setaffinity"):  # not every framework lets its threads be counted
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    words = engine.split()
    if words[0] == "keras":
        fit = keras_engine(words[1], words[2], pictures, threads)
    else:
        fit = torch_engine(words[0] == "sigak", words[-1], pictures, threads)
    fit()
    fit()
    print("ready", flush=True)
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        fit()
        print(f"took {time.perf_counter() - wall} {time.process_time() - cpu}", flush=True)


class Child:
    """An engine in a process of its own, so that no two frameworks share threads or memory."""

    def __init__(self, engine: str, pictures: int, threads: int) -> None:
        self.engine, self.pictures = engine, pictures
        self.rates: list[float] = []  # images per second of the clock, a round each
        self.cpu: list[float] = []  # images per second of processor time
        command = [sys.executable, __file__, "--engine", engine, "--pictures", str(pictures)]
        quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "OMP_NUM_THREADS": str(threads)}
        self.process = subprocess.Popen(
            [*command, "--threads", str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | quiet,
        )
        self.alive = bool(self._answer("ready"))

    def _answer(self, word: str) -> str:
        """The first line that starts with `word`; "" if the process ends before."""
        return next((line for line in self.process.stdout if line.startswith(word)), "")

    def round(self) -> None:
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        wall, cpu = self._answer("took").split()[1:]
        self.rates.append(self.pictures / float(wall))
        self.cpu.append(self.pictures / float(cpu))

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def race(engines: list[str], rounds: int, pictures: int, threads: int) -> list[Child]:
    """The engines that run here, each with its images per second in every round."""
    children = []
    for engine in engines:
        child = Child(engine, pictures, threads)
        print(f"{engine}: {'ready' if child.alive else 'cannot run here, left out'}", flush=True)
        if child.alive:
            children.append(child)
    for number in range(rounds):
        for child in children if number % 2 == 0 else reversed(children):
            child.round()
        print(f"round {number + 1} of {rounds}", flush=True)
    for child in children:
        child.close()
    return children


def table(children: list[Child]) -> list[dict[str, object]]:
    """One row an engine; the ratios are to the best Keras of the same round."""
    peers = [child for child in children if child.engine.startswith("keras")]
    rows: list[dict[str, object]] = []
    for child in children:
        row: dict[str, object] = {
            "engine": child.engine,
            "median": round(statistics.median(child.rates), 1),
            "best": round(max(child.rates), 1),
            "rounds": [round(rate, 1) for rate in child.rates],
            "median per processor second": round(statistics.median(child.cpu), 1),
        }
        if peers:
            row["ratio"] = _ratio(child.rates, [peer.rates for peer in peers])
            row["ratio of processor time"] = _ratio(child.cpu, [peer.cpu for peer in peers])
        rows.append(row)
    return rows


def _ratio(rates: list[float], peers: list[list[float]]) -> float:
    """Median over rounds of a rate over the best peer's of the same round."""
    best = map(max, zip(*peers, strict=True))
    return round(statistics.median(a / b for a, b in zip(rates, best, strict=True)), 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three rounds of 512 pictures")
    parser.add_argument("--only", nargs="*", default=list(ENGINES), help="these engines")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pictures", type=int, default=2048)
    parser.add_argument("--engine", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.engine:
        return serve(options.engine, options.pictures, options.threads)
    rounds, pictures = (3, 512) if options.quick else (7, options.pictures)
    before = machine()
    rows = table(race(options.only, rounds, pictures, options.threads))
    RESULT.parent.mkdir(exist_ok=True)
    facts = {"machine": before, "load after": machine()["load"], "threads": options.threads}
    facts |= {"batch": BATCH, "pictures a round": pictures, "rows": rows}
    RESULT.write_text(json.dumps(facts, indent=2) + "\n")
    columns = ["median", "best", "ratio", "median per processor second", "ratio of processor time"]
    print("\n" + " | ".join(["images per second", *columns]))
    for row in rows:
        print(" | ".join(str(row.get(name, "-")) for name in ["engine", *columns]))


if __name__ == "__main__":
    main()
