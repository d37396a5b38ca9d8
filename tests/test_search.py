"""A sweep searches what it is told to, resumes as if never cut off, and says how to train again."""

import json
import shlex
from pathlib import Path

import pytest
import torch

import sigak
from sigak.cli import _parser
from sigak.recipe import Recipe
from sigak.search import Trial, _space, _words, sweep

pytest.importorskip("optuna")

SMALL = {"size": 8, "epochs": 1, "quiet": True}
OVER = ["lr=1e-4..1e-1", "batch=32,64"]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)  # the networks are tiny


def facts(found):
    return [(t.number, t.params, t.state, t.value, t.values) for t in found.trials]


def test_a_sweep_goes_on_as_if_it_had_not_been_cut_off():
    whole = sweep("mlp", "digits", OVER, trials=3, out="whole", **SMALL)
    first = sweep("mlp", "digits", OVER, trials=1, out="parts", **SMALL)
    parts = sweep("mlp", "digits", OVER, trials=3, out="parts", **SMALL)
    assert facts(first) == facts(whole)[:1]
    assert facts(parts) == facts(whole)
    assert all(1e-4 <= t.params["lr"] <= 1e-1 for t in whole.trials)
    assert {t.params["batch"] for t in whole.trials} <= {32, 64}
    done = [t for t in whole.trials if t.state == "complete"]
    assert whole.best.value == min(t.value for t in done)
    again = json.loads(Path("whole/sweep.json").read_text())
    assert again["trials"] == whole.asdict()["trials"]
    with pytest.raises(sigak.SigakError, match="its over differs"):
        sweep("mlp", "digits", ["lr=1e-4..1e-2"], out="whole", **SMALL)
    with pytest.raises(sigak.SigakError, match="its recipe differs"):
        sweep("mlp", "digits", OVER, out="whole", **SMALL, momentum=0.5)


def test_the_command_trains_the_best_trial_again():
    over = {"lr": "1e-3,1e-2"}
    found = sweep("mlp", "digits", over, trials=2, monitor="val_accuracy", out="s", **SMALL)
    words = shlex.split(found.command)
    said = vars(_parser().parse_args(words[1:]))
    assert said["lr"] == found.best.params["lr"]
    changes = {k: said[k] for k in ("lr", "size", "epochs")}
    run = sigak.train("mlp", "digits", out="again", quiet=True, **changes)
    assert run.history["val_accuracy"].max() == found.best.value


def test_a_failed_trial_is_told_of_and_the_others_go_on():
    found = sweep("vgg3", "digits", {"size": "4,8"}, trials=4, epochs=1, quiet=True, out="s")
    states = {t.params["size"]: t.state for t in found.trials}
    assert states[4] == "failed"
    assert states.get(8, "complete") in ("complete", "pruned")
    assert "at least 8x8" in next(t.reason for t in found.trials if t.params["size"] == 4)


def test_a_hopeless_trial_is_given_up():
    """Four good trials are on record; the fifth has hardly any learning rate left."""
    sweep("mlp", "digits", {"lr": "1e-2"}, trials=1, out="s", size=8, epochs=3, quiet=True)
    path = Path("s/sweep.json")
    saved = json.loads(path.read_text())
    good = saved["trials"][0]
    saved["trials"] = [good | {"number": i} for i in range(4)]
    saved["over"] = {"lr": "1e-9,1e-2"}
    path.write_text(json.dumps(saved))
    over = {"lr": "1e-9,1e-2"}
    found = sweep("mlp", "digits", over, trials=9, out="s", size=8, epochs=3, quiet=True)
    poor = [t for t in found.trials if t.params["lr"] == 1e-9]
    assert poor
    assert all(t.state == "pruned" and len(t.values) == 2 for t in poor)
    assert found.best.params["lr"] == 1e-2


def test_ranges_and_choices():
    recipe = Recipe()
    space = _space(_words(["lr=1e-5..1e-1", "momentum=0.5..0.9", "epochs=2..9",
                           "label-smoothing=0,0.1", "optimizer=adam,sgd"]), recipe)  # fmt: skip
    assert space["lr"].log
    assert not space["momentum"].log
    assert space["epochs"].whole
    assert space["label_smoothing"].choices == (0.0, 0.1)
    assert space["optimizer"].choices == ("adam", "sgd")
    assert space["lr"].rounded(0.0123456) == 0.0123


@pytest.mark.parametrize(
    ("over", "sentence"),
    [
        ([], "received nothing"),
        (["lr"], "received lr="),
        (["rate=1..2"], "no field 'rate'"),
        (["lr=1e-2..1e-4"], "first end must be below"),
        (["epochs=1.5..3"], "expects whole numbers"),
        (["momentum=0.5..2"], "--momentum must be between 0 and 1"),
        (["optimizer=adam,adm"], "no optimiser called 'adm'"),
    ],
)
def test_a_mistake_is_refused_before_any_work(over, sentence):
    with pytest.raises(sigak.SigakError, match=sentence):
        sweep("mlp", "no-such-data", over)


def test_the_verb(sigak_cli):
    words = ("sweep", "mlp", "digits", "--over", "lr=1e-3..1e-1", "--over", "batch=64,128")
    said = sigak_cli(*words, "--size", 8, "--epochs", 1, "--trials", 2, "--quiet")
    assert said.code == 0
    assert said.out.startswith("trial")
    assert "sigak train mlp digits" in said.out
    assert Path("runs/sweep-mlp-digits/trial-001/report.html").exists()
    assert sigak_cli(*words, "--resume", "x").code == 2
    assert sigak_cli("sweep", "mlp", "digits").code == 2


def test_a_trial_is_plain_values():
    trial = Trial(0, {"lr": 0.1}, "failed", None, [], 1.0, "it broke")
    assert Trial(**json.loads(json.dumps(trial.__dict__))) == trial
