"""Segmentation that adapts: the whole training with two domains, and what must never reach it."""

import dataclasses
import json
import sys

import numpy as np
import pytest
import torch

import sigak
from sigak import tasks
from sigak.io import image, index_map
from sigak.io import weights as files
from sigak.models import adaptsegnet
from sigak.recipe import Recipe
from sigak.structures import Batch, Sample, SigakError
from sigak.training import Training

NAME = "adaptsegnet-tiny"
TINY = dataclasses.replace(
    adaptsegnet.MODELS["adaptsegnet-small"],
    args={"backbone": "resnet18", "widths": (4, 8, 8, 8), "pool": False, "width": 2},
)
RECIPE = {
    "size": 32, "batch": 4, "lr": 5e-3, "epochs": 2, "ema": 0.5, "augment": "flip=h,noise=0.02",
    "schedule": "cosine", "loss": "ce", "precision": "float32", "save_every": 0.0, "quiet": True,
}  # fmt: skip
COLORS = [(0, 0, 0), (250, 10, 10), (10, 10, 250)]


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    monkeypatch.setitem(adaptsegnet.MODELS, NAME, TINY)
    torch.set_num_threads(1)  # the networks are tiny


def painted(root, counts, dark=1, seed=0, spoil=()):
    """Blocks of classes told by their tones, `dark` times darker; the maps of the splits in `spoil`
    are wrong.
    """
    rng = np.random.default_rng(seed)
    for split, count in counts.items():
        for i in range(count):
            blocks = rng.integers(0, 3, (4, 4)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
            pixels = (np.array([20, 130, 240])[blocks] // dark).astype(np.uint8)
            image.save(root / f"{split}/images/{i}.png", pixels[..., None].repeat(3, 2))
            told = (blocks + 1) % 3 if split in spoil else blocks
            index_map.save(root / f"{split}/masks/{i}.png", told, COLORS)
    (root / "classes.txt").write_text("ground\ncat\ndog\n", encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A bright source, a dark target, and the same target with wrong maps."""
    root = tmp_path_factory.mktemp("domains")
    counts = {"train": 9, "val": 3}
    painted(root / "day", counts)
    painted(root / "night", counts, 3, 1)
    painted(root / "poisoned", counts, 3, 1, ("train",))
    return root


def trained(out, places, target="night", **changes):
    where = {} if "resume" in changes else {"out": str(out)}
    asked = RECIPE | {"target": str(places / target)} | where | changes
    return sigak.train(NAME, str(places / "day"), **asked)


@pytest.fixture(scope="module")
def run(tmp_path_factory, places):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(adaptsegnet.MODELS, NAME, TINY)
        yield trained(tmp_path_factory.mktemp("runs") / "whole", places)


# ------------------------------------------------------------------ one step


def test_a_step_is_the_segmenters_and_then_the_discriminators():
    shown = []

    def network(images, targets, *, part):
        shown.append((part, images, targets))
        if part == "main":
            logits = torch.zeros(2, 3, 4, 4)
            return [(1.0, logits), (0.1, logits)], torch.tensor(0.25), ("own", "other")
        return torch.tensor(2.0)

    maps = np.zeros((4, 4), np.uint8)
    batch = Batch.of([Sample(np.zeros((4, 4, 3), np.uint8), class_map=maps)] * 2).floating()
    batch.targets = torch.ones(2, 3, 4, 4)
    steps = list(tasks.create("segment", ["a", "b", "c"], Recipe()).steps(network, batch))
    (first, found), (second, judged) = steps
    assert (first, second) == ("main", "discriminators")
    assert float(found["segmentation_loss"]) == pytest.approx(1.1 * np.log(3))
    assert float(found["loss"]) == pytest.approx(1.1 * np.log(3) + 0.25)
    assert float(found["pixel_accuracy"]) == 1.0
    assert float(judged["loss"]) == float(judged["discriminator_loss"]) == 2.0
    assert [part for part, *_ in shown] == ["main", "discriminators"]
    assert shown[0][1] is batch.images
    assert shown[0][2] is batch.targets
    assert shown[1][1:] == ("own", "other")


# ------------------------------------------------------------------ the whole


def test_training_says_what_it_did(run):
    history = run.history
    both = history["segmentation_loss"] + history["adversarial_loss"]
    assert history["loss"] == pytest.approx(both + history["discriminator_loss"])
    assert history["segmentation_loss"][-1] < history["segmentation_loss"][0]
    assert run.best_epoch == 1 + int(np.argmax(history["val_miou"]))
    told = json.loads((run.folder / "recipe.json").read_text(encoding="utf-8"))
    assert told["data"] == "day-to-night"
    assert "--target" in told["command"]
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    assert "target" in page


def test_it_is_measured_on_the_target(run, places):
    figures = sigak.evaluate(run.folder, places / "night", split="val")
    assert figures["miou"] == pytest.approx(run.evaluation["miou"])
    other = sigak.evaluate(run.folder, places / "day", split="val")
    assert other["miou"] != figures["miou"]


def state(run):
    """The network as it ended, with its optimisers, and the figures that are no times."""
    tensors = files.read(run.folder / "resume.safetensors")[0]
    timed = ("seconds", "images_per_second")
    figures = {k: v.tolist() for k, v in run.history.items() if k not in timed}
    return {k: v.numpy().tobytes() for k, v in tensors.items()}, figures


def test_the_targets_truth_is_never_learnt_from(run, places, tmp_path):
    """Every map of its training pictures is wrong, and every bit is the same."""
    assert state(trained(tmp_path / "run", places, "poisoned")) == state(run)


def test_without_the_targets_truth_the_weights_are_the_same(run, places, tmp_path):
    """A folder of the training pictures alone; only the epochs' figures are the source's then."""
    alone = trained(tmp_path / "run", places, "night/train/images")
    ours, theirs = state(alone), state(run)
    assert ours[1]["loss"] == theirs[1]["loss"]
    assert ours[1]["val_miou"] != theirs[1]["val_miou"]
    ours, theirs = (
        {k: v for k, v in tensors.items() if k.startswith("/network/")}
        for tensors in (ours[0], theirs[0])
    )
    assert len(ours) > 100
    assert ours == theirs


def test_the_target_is_learnt_from(run, places, tmp_path):
    other = trained(tmp_path / "run", places, "day/val/images")
    assert other.history["loss"].tolist() != run.history["loss"].tolist()


class Cut(Exception):  # noqa: N818 - an event, not an error
    """Raised in the middle of a run, as a power cut would."""


def test_a_run_that_was_cut_goes_on_exactly(run, places, tmp_path):
    original, done = Training.train_step, []

    def step(self, item):
        if len(done) in (2, 5):
            done.append(None)
            raise Cut
        done.append(item)
        original(self, item)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "train_step", step)
        with pytest.raises(Cut):
            trained(tmp_path / "cut", places)
        with pytest.raises(Cut):
            trained("", places, resume=str(tmp_path / "cut"))
        again = trained("", places, resume=str(tmp_path / "cut"))
    assert state(again) == state(run)
    ours, theirs = (files.read(r.checkpoint)[0] for r in (again, run))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_a_target_that_changed_is_noticed(places, tmp_path):
    target = painted(tmp_path / "night", {"train": 5}, 3)
    first = trained(tmp_path / "run", places, epochs=1, target=str(target))
    (target / "train/images/0.png").unlink()
    with pytest.raises(SigakError, match="the data is not what"):
        trained("", places, resume=str(first.folder), epochs=2, target=str(target))


def test_parts_of_a_batch_give_its_gradient(places, tmp_path):
    """--accumulate, with the batch norm of a trained network kept, as the parts have others."""
    first = trained(tmp_path / "first", places, epochs=1)
    same = {"pretrained": str(first.checkpoint), "freeze": "backbone", "unfreeze_at": 1,
            "backbone_lr": 1.0, "augment": "none", "epochs": 1, "ema": 0.0,
            "optimizer": "sgd"}  # fmt: skip
    whole = trained(tmp_path / "whole", places, **same)
    parts = trained(tmp_path / "parts", places, **same, accumulate=2)
    ours, theirs = (files.read(r.checkpoint)[0] for r in (whole, parts))
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name], value, atol=2e-5, rtol=1e-3)


def test_prediction_and_export_take_the_segmenter_alone(run, places, tmp_path, monkeypatch):
    found = sigak.predict(run.folder, places / "night/val/images")
    judges = sigak.load(run.folder).network.discriminators
    monkeypatch.setattr(type(judges[0]), "forward", None)
    again = sigak.predict(run.folder, places / "night/val/images")
    assert all(np.array_equal(a.class_map, b.class_map) for a, b in zip(found, again, strict=True))
    done = sigak.export(run.folder, "onnx", out=tmp_path / "a.onnx", data=str(places / "night"))
    weights = sum(p.numel() for p in sigak.load(run.folder).network.segmenter.parameters())
    assert done.difference < 1e-4
    assert done.file.stat().st_size < 4 * weights + 60_000


# ------------------------------------------------------------------ what is asked wrongly


def test_mistakes_of_asking_are_told(places, tmp_path, sigak_cli):
    (tmp_path / "empty").mkdir()
    day, out = places / "day", ["--out", tmp_path / "run"]
    cases = [
        ([NAME, day], "there are none; name their folder with --target"),
        (["unet", day, "--target", day], "leave it out"),
        ([NAME, day, "--target", tmp_path / "empty"], "no picture found"),
        ([NAME, day, "--target", "nights"], "there is no data set and no folder called 'nights'"),
        ([NAME, day, "--target", "scenes:4@32"], "have classes that day has not"),
        ([NAME, day, "--target", day, "--l2", "1e-3"], "--l2 is not for networks with"),
        ([NAME, day, "--target", day, "--size", "16"], "at least 32 pixels, received 16x16"),
        ([NAME, "digits", "--target", day], "segmentation learns from class maps"),
    ]
    for words, sentence in cases:
        said = sigak_cli("train", *words, *out, "--quiet")
        assert said.code == 2, words
        assert sentence in said.err, said.err
        assert said.err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_learning_rate_is_found_with_a_target(places, sigak_cli):
    words = ("--target", places / "night", "--size", 32, "--batch", 4, "--steps", 10)
    said = sigak_cli("find-lr", NAME, places / "day", *words, "--json")
    assert said.code == 0, said.err
    assert json.loads(said.out)["suggestion"] > 0


def test_targets_of_other_channels_and_sizes_are_fitted(places, tmp_path):
    for i in range(3):
        image.save(tmp_path / f"wild/{i}.png", np.full((20 + i, 50, 1), 40, np.uint8))
    run = trained(tmp_path / "run", places, target=str(tmp_path / "wild"), epochs=1)
    assert np.isfinite(run.history["loss"]).all()


# ------------------------------------------------------------------ many processes

TWO = """
import dataclasses, json, sys, torch, sigak
from sigak.models import adaptsegnet
torch.set_num_threads(1)
args, recipe = map(json.loads, sys.argv[1:])
small = adaptsegnet.MODELS["adaptsegnet-small"]
adaptsegnet.MODELS["adaptsegnet-tiny"] = dataclasses.replace(small, args=args)
sigak.train("adaptsegnet-tiny", device="cpu", **recipe)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="gloo over torchrun is not supported there")
def test_two_processes_learn_what_one_does(places, tmp_path, in_two_processes):
    """With the batch norm of a trained network kept, as each process has other pictures."""
    first = trained(tmp_path / "first", places, epochs=1)
    recipe = RECIPE | {
        "pretrained": str(first.checkpoint), "freeze": "backbone", "unfreeze_at": 1,
        "backbone_lr": 1.0, "augment": "none", "optimizer": "sgd",
        "dataset": str(places / "day"), "target": str(places / "night"),
    }  # fmt: skip
    (tmp_path / "two.py").write_text(TWO, encoding="utf-8")
    in_two_processes("two.py", json.dumps(TINY.args), json.dumps(recipe | {"out": "two"}))
    one = sigak.train(NAME, **recipe, out=str(tmp_path / "one"))
    ours, theirs = (files.read(tmp_path / name)[0] for name in ("one", "two"))
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name], value, atol=2e-5, rtol=1e-3)
    counted = json.loads((tmp_path / "two/evaluation.json").read_text(encoding="utf-8"))
    assert counted["miou"] == pytest.approx(one.evaluation["miou"], abs=1e-3)
