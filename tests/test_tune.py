"""The range test and the batch finder train real steps, tell the truth and leave nothing behind."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import sigak
from sigak.io.image import describe
from sigak.tune import _judged, draw_rates, find_batch, find_lr

SMALL = {"size": 8, "batch": 32, "quiet": True}


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)  # the networks are tiny


def test_the_suggestion_trains_and_nothing_is_left_behind():
    state = torch.random.get_rng_state()
    test = find_lr("mlp", "digits", low=1e-5, high=100.0, steps=60, **SMALL)
    assert torch.equal(state, torch.random.get_rng_state())
    assert list(Path().iterdir()) == []
    assert test.rates[0] == pytest.approx(1e-5)
    assert np.all(np.diff(np.log(test.rates)) == pytest.approx(np.log(1e7) / 59))
    assert test.divergence is not None
    assert len(test.losses) < 60  # ended once the loss was lost
    assert 1e-4 < test.suggestion < test.divergence
    run = sigak.train("mlp", "digits", epochs=1, lr=test.suggestion, out="run", **SMALL)
    assert run.evaluation["accuracy"] > 0.6


def test_the_same_test_finds_the_same():
    first, second = (find_lr("mlp", "digits", steps=12, high=0.1, **SMALL) for _ in range(2))
    assert first == second


def bowl(worst=3.0):
    """A loss that stays, falls around 1e-3, stays, and rises from 1e-1 on."""
    rates = np.logspace(-6, 0, 121)
    losses = 2 - np.tanh(2 * np.log10(rates / 1e-3))
    losses = losses + np.where(rates > 0.1, worst * np.log10(rates / 0.1), 0.0)
    return rates.tolist(), losses.tolist()


def test_the_steepest_place_and_the_divergence_are_found():
    test = _judged(*bowl())
    assert test.steepest == pytest.approx(1e-3, rel=0.2)
    assert 0.1 < test.divergence < 0.3
    assert test.suggestion == test.steepest


def test_a_late_descent_is_held_below_the_divergence():
    rates, losses = bowl()
    shifted = [rate * 1e-1 for rate in rates]  # falls at 1e-4
    losses = [loss if rate < 2e-4 else 5.0 for rate, loss in zip(shifted, losses, strict=True)]
    test = _judged(shifted, losses)
    assert test.suggestion == pytest.approx(test.divergence / 10)
    assert test.suggestion < test.steepest


def test_without_divergence_the_steepest_is_taken():
    test = _judged(*bowl(worst=0.0))
    assert test.divergence is None
    assert test.suggestion == test.steepest


def test_a_test_that_never_was_a_number_fails():
    with pytest.raises(sigak.Failure, match="after 2 steps; start lower"):
        _judged([1.0, 2.0], [3.0, 4.0])
    with pytest.raises(sigak.SigakError, match="--low must be above 0"):
        find_lr("mlp", "digits", low=1.0, high=0.1)


def test_the_diagram_is_a_picture(tmp_path):
    draw_rates(_judged(*bowl()), tmp_path / "deep" / "lr.png")
    assert describe(tmp_path / "deep" / "lr.png")["format"] == "PNG"


def test_batches_double_until_they_do_not_pay():
    test = find_batch("mlp", "digits", start=16, size=8, quiet=True)
    assert list(Path().iterdir()) == []
    assert test.sizes == [16 * 2**i for i in range(len(test.sizes))]
    assert test.suggestion in test.sizes
    chosen = test.images_per_second[test.sizes.index(test.suggestion)]
    assert chosen >= max(test.images_per_second) / 1.1
    assert min(test.images_per_second) > 0
    assert test.stopped


def test_a_small_set_ends_the_doubling(folder):
    test = find_batch("mlp", folder(count=10), start=16, size=8, quiet=True)
    assert test.sizes == [16]
    assert test.stopped == "all training pictures are in the batch"


def test_the_verb(sigak_cli):
    words = ("find-lr", "mlp", "digits", "--size", 8, "--steps", 12)
    said = sigak_cli(*words, "--draw", "lr.png", "--json")
    assert said.code == 0
    assert json.loads(said.out)["suggestion"] > 0
    assert Path("lr.png").exists()
    said = sigak_cli(*words)
    assert "\n--lr " in said.out
    said = sigak_cli(*words, "--batch-size")
    assert "\n--batch " in said.out
    assert not Path("runs").exists()
    assert sigak_cli("find-lr", "mpl", "digits").code == 2
