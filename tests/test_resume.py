"""A run that is killed at any moment and resumed ends exactly as one that was never cut off."""

import csv
import functools
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

import sigak
from sigak import data
from sigak.structures import SigakError
from sigak.training import Training

# Everything that has a state or draws random numbers; two blocks keep it small.
RECIPE = {
    "epochs": 4, "batch": 128, "lr": 0.01, "optimizer": "sgd", "momentum": 0.9,
    "schedule": "cosine", "warmup": 0.5, "ema": 0.95, "l2": 1e-3,
    "augment": "shift=0.1,rotate=5,noise=0.02,mixup=0.2",
    "size": 8, "color": "gray", "save_every": 0.0, "early_stop": 4, "reduce_lr": 2, "quiet": True,
    "precision": "float32", "seed": 3,
}  # fmt: skip
SCRIPT = """
import json, sys, sigak, torch
torch.set_num_threads(int(sys.argv[3]))
options = json.loads(sys.argv[1])
print("ready", flush=True)
sigak.train("vgg3-dropout-bn", "digits", **options, **json.loads(sys.argv[2]))
"""


def start(place, environment, threads=1, **where):
    command = [sys.executable, "-c", SCRIPT, json.dumps(RECIPE), json.dumps(where), str(threads)]
    return subprocess.Popen(
        command,
        cwd=place,
        env=environment | {"OMP_NUM_THREADS": str(threads)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    _, problems = process.communicate(timeout=300)
    assert process.returncode == 0, problems


def outcome(folder):
    """The weights with the header, and every figure that is not a time."""
    with safe_open(Path(folder) / "best.safetensors", framework="pt") as file:
        tensors = {name: file.get_tensor(name).numpy().tobytes() for name in file.keys()}  # noqa: SIM118
        header = json.loads(file.metadata()["sigak"])
    timed = ("seconds", "images_per_second")
    header["scores"] = {k: v for k, v in header["scores"].items() if k not in timed}
    with open(Path(folder) / "metrics.csv", newline="", encoding="utf-8") as file:
        rows = [{k: v for k, v in row.items() if k not in timed} for row in csv.DictReader(file)]
    evaluation = json.loads((Path(folder) / "evaluation.json").read_text(encoding="utf-8"))
    return tensors, header, rows, evaluation


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL is POSIX's")
@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
def test_killed_and_resumed_equals_never_cut_off(threads, tmp_path, run_environment):
    begun = time.monotonic()
    finish(start(tmp_path, run_environment, threads, out="whole"))
    whole_takes = time.monotonic() - begun
    dice = random.Random(threads)
    process, kills = start(tmp_path, run_environment, threads, out="cut"), 0
    for _ in range(4):
        process.stdout.readline()  # "ready": everything is imported
        patience = dice.uniform(0.2, 0.5 * whole_takes)
        try:
            process.wait(patience)
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills += 1
        # A run that was killed before its folder existed has nothing to resume.
        where = {"resume": "cut"} if (tmp_path / "cut").is_dir() else {"out": "cut"}
        process = start(tmp_path, run_environment, threads, **where)
    finish(process)
    assert kills > 0
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")


class Cut(Exception):  # noqa: N818 - an event, not an error
    """Raised in the middle of a run, as a power cut would."""


def cut_after(monkeypatch, steps):
    """Let a training take `steps` more steps, save its state, and end it."""
    original, done = Training.train_step, []

    def step(self, item):
        if len(done) == steps:
            raise Cut
        done.append(item)
        original(self, item)

    monkeypatch.setattr(Training, "train_step", step)


@functools.cache
def few_digits():
    """Enough for three steps an epoch, the last one uneven."""
    whole = data.load("digits")
    sizes = {"train": 130, "val": 30, "test": 30}
    splits = {name: whole.splits[name].subset(np.arange(n), name) for name, n in sizes.items()}
    return data.Dataset("few", whole.classes, splits, whole.color)


def trained(name, tmp_path, **changes):
    return sigak.train(
        "vgg3-dropout-bn", few_digits(), **RECIPE | {"epochs": 2, "batch": 48} | changes,
        **({"out": str(tmp_path / name)} if "resume" not in changes else {}),
    )  # fmt: skip


def test_a_run_cut_in_the_middle_of_an_epoch_goes_on_exactly(tmp_path):
    trained("whole", tmp_path)
    for cuts, name in (((1, 1), "early"), ((4,), "late")):
        where = {}
        for steps in cuts:
            with pytest.MonkeyPatch.context() as patch:
                cut_after(patch, steps)
                with pytest.raises(Cut):
                    trained(name, tmp_path, **where)
            where = {"resume": str(tmp_path / name)}
        trained(name, tmp_path, **where)
        assert outcome(tmp_path / name) == outcome(tmp_path / "whole")


def test_a_finished_run_can_be_made_longer(tmp_path):
    first = trained("run", tmp_path, epochs=1, schedule="constant")
    longer = trained("run", tmp_path, resume=str(first.folder), epochs=2, schedule="constant")
    whole = trained("whole", tmp_path, epochs=2, schedule="constant")
    assert longer.history["loss"].tolist() == whole.history["loss"].tolist()
    assert outcome(longer.folder)[0] == outcome(whole.folder)[0]


def test_a_run_cut_before_its_first_state_starts_over(tmp_path):
    (tmp_path / "run").mkdir()
    resumed = trained("run", tmp_path, resume=str(tmp_path / "run"), epochs=1)
    assert outcome(resumed.folder) == outcome(trained("whole", tmp_path, epochs=1).folder)


def test_a_damaged_state_is_refused(tmp_path):
    run = trained("run", tmp_path, epochs=1)
    state = run.folder / "resume.safetensors"
    state.write_bytes(state.read_bytes()[:5000])
    with pytest.raises(SigakError, match="not a whole safetensors file"):
        trained("run", tmp_path, resume=str(run.folder), epochs=2)


def test_decoding_threads_do_not_change_the_result(folder, tmp_path):
    pets = folder(count=20, suffix=".jpg", size=(40, 50))
    ends = [
        sigak.train(
            "vgg1", pets, epochs=2, size=16, batch=8, augment="medium", threads=threads, quiet=True,
            out=str(tmp_path / str(threads)),
        ).folder
        for threads in (1, 4)
    ]  # fmt: skip
    assert outcome(ends[0]) == outcome(ends[1])
