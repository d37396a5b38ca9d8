"""Several processes learn what one would: the same weights, every picture counted once."""

import json
import sys

import numpy as np
import pytest
import torch

import sigak
from sigak.data import load as load_data
from sigak.data.feed import Feed, Pictures
from sigak.io import weights as files
from sigak.io.image import Preparation
from sigak.recipe import Recipe
from sigak.structures import SigakError
from sigak.tasks import create

RECIPE = {
    "epochs": 2, "batch": 64, "lr": 0.01, "optimizer": "sgd", "precision": "float32", "size": 12,
    "augment": "shift=0.1",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="gloo over torchrun is not supported there")
def test_two_processes_learn_what_one_does(tmp_path, in_two_processes):
    flags = [w for k, v in RECIPE.items() for w in (f"--{k}", str(v))]
    done = in_two_processes(
        "-m", "sigak.cli", "train", "lenet5", "digits", "--device", "cpu", "--out", "two", *flags
    )
    assert done.stdout == ""
    assert done.stderr.count("epoch 2/2") == 1  # one of them speaks
    one = sigak.train("lenet5", "digits", **RECIPE, out=str(tmp_path / "one"), quiet=True)
    ours, theirs = (files.read(tmp_path / name)[0] for name in ("one", "two"))
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name], value, atol=1e-5, rtol=1e-4)
    history = np.genfromtxt(tmp_path / "two" / "metrics.csv", delimiter=",", names=True)
    for name in ("loss", "val_loss", "accuracy", "val_accuracy"):
        assert history[name] == pytest.approx(one.history[name], abs=2e-3)
    evaluated = sigak.evaluate(tmp_path / "two", "digits")
    counted = json.loads((tmp_path / "two" / "evaluation.json").read_text(encoding="utf-8"))
    assert counted["count"] == evaluated["count"] == 359
    assert counted["accuracy"] == evaluated["accuracy"]
    assert counted["confusion"] == evaluated["confusion"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one", "two"]


def test_shares_of_an_uneven_batch_are_the_batch():
    """Every picture of every batch in exactly one process, also where a batch is smaller than
    their number.
    """
    data = load_data("digits", val=0)
    few = data.splits["test"].subset(np.arange(33), "few")
    task = create("classify", data.classes, Recipe())
    pictures = Pictures(few, Preparation((8, 8), "gray"), task.collate).load()
    for seed in (None, 5):
        whole = list(Feed(pictures, batch=16, seed=seed).epoch(2))
        shares = [
            list(Feed(pictures, batch=16, seed=seed, share=(r, 4)).epoch(2)) for r in range(4)
        ]
        seen = []
        for step in whole:
            parts = [s for share in shares for s in share if s.number == step.number]
            together = torch.cat([s.batch.indices[: s.own] for s in parts])
            assert together.tolist() == step.batch.indices.tolist()
            assert sum(s.own for s in parts) == step.total
            if seed is not None:
                assert len(parts) == 4  # nobody waits for another in training
            seen += together.tolist()
        assert sorted(seen) == list(range(33))


def test_a_batch_that_cannot_be_shared_is_refused():
    with pytest.raises(SigakError, match="--batch 9 cannot be shared evenly by 2 processes"):
        Feed(None, batch=9, share=(0, 2), seed=1)
