"""Training: it learns, a recipe means what it says, and the folder holds what is promised."""

import csv
import json

import numpy as np
import pytest
import torch
from torch import nn

import sigak
from sigak import models
from sigak.callbacks import Callback
from sigak.evaluation import evaluate
from sigak.io import weights as files
from sigak.losses import l2_penalty
from sigak.prediction import load
from sigak.structures import SigakError
from sigak.training import Training


@pytest.fixture
def fit(folder, tmp_path):
    """Train a small network on two classes of small pictures: fit("name", **changes)."""
    pets = folder(size=(8, 8))

    def run(name="run", model="mlp", data=None, **changes):
        settled = {"epochs": 2, "size": 8, "batch": 8, "quiet": True, "out": str(tmp_path / name)}
        return sigak.train(model, pets if data is None else data, **settled | changes)

    return run


def kernels(run):
    return flat(files.read(run.checkpoint)[0])


def flat(tensors):
    return torch.cat([tensors[name].flatten() for name in sorted(tensors)])


def same(one, other):
    return torch.equal(kernels(one), kernels(other))


# ------------------------------------------------------------------ the whole


def test_digits_are_learnt(digits_run, tmp_path):
    run = sigak.train(
        "mlp", "digits", epochs=6, size=8, lr=0.01, out=str(tmp_path / "run"), quiet=True
    )
    assert run.evaluation["accuracy"] > 0.93
    assert run.evaluation["split"] == "test"
    assert run.history["loss"][-1] < 0.3 * run.history["loss"][0]
    assert digits_run.evaluation["accuracy"] < run.evaluation["accuracy"]


def test_a_run_folder_holds_what_is_promised(digits_run):
    names = {path.name for path in digits_run.folder.iterdir()}
    assert names == {
        "best.safetensors",
        "resume.safetensors",
        "recipe.json",
        "metrics.csv",
        "evaluation.json",
        "report.html",
    }
    with open(digits_run.folder / "metrics.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    for name, values in digits_run.history.items():
        assert [float(row[name]) for row in rows] == values.tolist()
    said = json.loads((digits_run.folder / "recipe.json").read_text(encoding="utf-8"))
    assert said["recipe"]["lr"] == 0.01
    assert said["environment"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    best = int(np.argmin(digits_run.history["val_loss"])) + 1
    assert digits_run.best_epoch == best
    assert "<html" in (digits_run.folder / "report.html").read_text(encoding="utf-8")


def test_a_run_is_a_function_of_its_seed(fit):
    options = {"model": "vgg1", "augment": "medium", "epochs": 1}
    first, again = fit("a", seed=5, **options), fit("b", seed=5, **options)
    other = fit("c", seed=6, **options)
    assert same(first, again)
    assert first.history["loss"] == again.history["loss"]
    assert not same(first, other)


def test_training_leaves_the_callers_generator_alone(fit):
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    fit(epochs=1)
    assert torch.equal(torch.rand(3), expected)


def test_a_data_set_made_by_hand(tmp_path):
    from sigak.data import Dataset, Record, Split

    pixels = np.zeros((12, 6, 6, 1), np.uint8)
    pixels[6:, :3] = 255
    records = [Record(f"made#{i}", i // 6) for i in range(12)]
    made = Dataset("made", ["dark", "bright"], {"train": Split("train", records, pixels)}, "gray")
    run = sigak.train(
        "mlp", made, epochs=10, size=6, batch=4, lr=0.03, quiet=True, out=str(tmp_path / "run")
    )
    assert "val_loss" not in run.history
    assert run.evaluation["split"] == "train"
    assert sigak.predict(run.checkpoint, pixels[7])[0].label == "bright"


# ------------------------------------------------------------------ what the recipe says


def test_the_networks_own_recipe_stands_where_nothing_is_said(fit):
    own = json.loads((fit("a", "vgg1", epochs=1).folder / "recipe.json").read_text("utf-8"))
    assert (own["recipe"]["optimizer"], own["recipe"]["schedule"]) == ("sgd", "constant")
    said = fit("b", "vgg1", epochs=1, optimizer="adam")
    assert json.loads((said.folder / "recipe.json").read_text("utf-8"))["recipe"]["lr"] == 1e-3


def test_accumulated_parts_are_the_batch(fit):
    exactly = {"optimizer": "sgd", "lr": 0.1, "precision": "float32"}
    whole, parts = fit("a", **exactly), fit("b", **exactly, accumulate=3)
    torch.testing.assert_close(kernels(parts), kernels(whole), atol=1e-6, rtol=1e-5)


def test_clipping_bounds_the_step(fit):
    free = fit("a", optimizer="sgd", momentum=0.0, lr=1.0, epochs=1, schedule="constant")
    bound = fit(
        "b", optimizer="sgd", momentum=0.0, lr=1.0, epochs=1, schedule="constant", clip=1e-4
    )
    torch.manual_seed(0)
    origin = flat(models.create("mlp", classes=2, size=(8, 8), color="rgb").state_dict())
    moved = (kernels(bound) - origin).norm()
    assert 0 < moved <= 3 * 1e-4 * 1.01  # three steps of at most lr * clip
    assert (kernels(free) - origin).norm() > 10 * moved


def test_the_l2_penalty_is_shown_apart_and_leaves_the_head_out(fit):
    run = fit(l2=0.1, epochs=1)
    assert run.history["l2"][0] > 0
    network = models.create("vgg1")
    by_hand = sum(
        m.weight.square().sum()
        for n, m in network.named_modules()
        if isinstance(m, nn.Conv2d | nn.Linear) and n != "classifier"
    )
    torch.testing.assert_close(l2_penalty(network, network.head), by_hand)


def test_averaged_weights_lag_behind(fit):
    fast, slow = fit("a", lr=0.05), fit("b", lr=0.05, ema=0.9)
    assert not same(fast, slow)
    state = files.read(slow.folder / "resume.safetensors")[0]
    (live,) = [value for name, value in state.items() if name.endswith("network/classifier.weight")]
    assert not torch.equal(live, files.read(slow.checkpoint)[0]["classifier.weight"])


def test_pictures_are_standardised_by_the_data(fit):
    run = fit(standardize="data", epochs=1)
    normalize = load(run.checkpoint).network.normalize
    assert normalize.active
    assert 0.2 < normalize.mean.mean().item() < 0.8
    assert run.evaluation["accuracy"] == sigak.evaluate(run.checkpoint, run_data(run))["accuracy"]


def run_data(run):
    """The folder that a run was trained on."""
    return run.folder.parent / "pets"


def test_the_last_batch_may_be_one_picture(fit):
    """Batch norm has no spread to measure there."""
    run = fit(model="vgg3-dropout-bn", batch=17, epochs=2, val=0.1)  # 18 pictures to train on
    assert np.isfinite(run.history["loss"]).all()


def test_bfloat16_learns_too(fit):
    assert np.isfinite(fit(precision="bfloat16").history["loss"]).all()


@pytest.mark.parametrize("color", ["gray", "rgb", "rgba"])
def test_colours_are_the_datas_unless_said(color, folder, tmp_path):
    mode = {"gray": "L", "rgb": "RGB", "rgba": "RGBA"}[color]
    pets = folder("p", mode=mode, count=5)
    own = sigak.train("mlp", pets, epochs=1, size=8, quiet=True, out=str(tmp_path / "own"))
    assert load(own.checkpoint).preparation.color == ("gray" if color == "gray" else "rgb")
    said = sigak.train(
        "mlp", pets, epochs=1, size=8, color=color, quiet=True, out=str(tmp_path / "said")
    )
    assert load(said.checkpoint).preparation.color == color


def test_anchors_are_fitted_and_survive_the_checkpoint(fit, capsys):
    run = fit(model="yolov4-tiny", data="scenes:8@64", size=64, batch=8, epochs=1, quiet=False)
    assert "anchors fitted to the training pictures" in "".join(capsys.readouterr())
    header = files.read(run.checkpoint)[1]
    assert "anchors=10.00,14.00," in header["arguments"]["cfg"]  # the one that no head uses stays
    predictor = load(run.checkpoint)
    heads = list(predictor.engine.network.heads.values())
    used = [pair for head in heads for pair in head.anchors[1:]]
    assert max(max(pair) for pair in used) < 64  # the published ones reach 344
    again = fit("again", model="yolov4-tiny", data="scenes:9@96", size=96, batch=9, epochs=1,
                pretrained=str(run.checkpoint))  # fmt: skip
    others = load(again.checkpoint).engine.network.heads.values()
    assert [head.anchors for head in others] == [head.anchors for head in heads]


def test_anchors_of_pretrained_weights_stay(fit):
    how = {"model": "yolov5n", "data": "scenes:8@64", "size": 64, "batch": 8, "epochs": 1}
    run = fit(**how)
    state, header = files.read(run.checkpoint)
    state["detect.anchors"] = state["detect.anchors"] * 100  # which fit nothing here
    files.write(run.folder / "far.safetensors", state, header)
    kept = fit("kept", pretrained=str(run.folder / "far.safetensors"), **how)
    found = files.read(kept.checkpoint)[0]["detect.anchors"]
    torch.testing.assert_close(found, state["detect.anchors"])


def test_all_objects_as_one_class(fit):
    run = fit(model="localizer", data="scenes:8@64", size=64, epochs=1, single_class=True)
    header = files.read(run.checkpoint)[1]
    assert header["classes"] == ["object"]
    assert header["arguments"]["classes"] == 1
    figures = evaluate(run.checkpoint, "scenes:8@64")  # knows how the objects were taken
    assert [row["name"] for row in figures["per_class"]] == ["object"]
    with pytest.raises(SigakError, match="--single-class is for pictures with boxes"):
        fit("b", single_class=True)


def test_a_frozen_backbone_stays_until_it_is_let_go(fit, folder):
    start = fit("start", "vgg3-dropout-bn", epochs=1)
    options = {"model": "vgg3-dropout-bn", "pretrained": str(start.checkpoint), "lr": 0.05}
    frozen = files.read(fit("a", **options, freeze="backbone").checkpoint)[0]
    origin = files.read(start.checkpoint)[0]
    changed = {
        name
        for name in origin
        if not torch.equal(origin[name], frozen[name]) and "num_batches" not in name
    }
    assert changed == {"classifier.weight", "classifier.bias"}
    run = fit("b", **options, freeze="backbone", unfreeze_at=2, monitor="loss", epochs=3)
    if run.best_epoch > 1:
        let_go = files.read(run.checkpoint)[0]
        assert not torch.equal(origin["blocks.0.0.weight"], let_go["blocks.0.0.weight"])
        # Its batch norm keeps what it knew.
        name = "blocks.0.2.running_mean"
        assert torch.equal(origin[name], let_go[name])


def test_a_recipe_refuses_unknown_fields(fit):
    with pytest.raises(SigakError, match="no field 'learning_rate'"):
        fit(learning_rate=0.1)
    with pytest.raises(SigakError, match="did you mean epochs"):
        fit(epoch=1)


# ------------------------------------------------------------------ callbacks in a run


class Notes(Callback):
    """Writes down what it sees; stops after `last` epochs."""

    def __init__(self, last=99):
        self.seen, self.last = [], last

    def on_epoch_end(self, run, epoch, logs):
        self.seen.append((epoch, set(logs)))
        run.stop = epoch == self.last


def test_callbacks_see_every_epoch_and_may_stop(fit):
    notes = Notes(last=2)
    run = fit(epochs=5, callbacks=[notes])
    figures = {"loss", "accuracy", "val_loss", "val_accuracy", "lr", "seconds", "images_per_second"}
    assert notes.seen == [(1, figures), (2, figures)]
    assert len(run.history["loss"]) == 2


def test_early_stopping_and_the_plateau_act_in_a_run(fit):
    run = fit(epochs=9, lr=0.0, schedule="constant", early_stop=3)
    assert len(run.history["loss"]) == 4
    assert run.best_epoch == 1
    slower = fit("b", epochs=4, lr=1e-9, schedule="constant", reduce_lr=1, reduce_factor=0.5)
    assert slower.history["lr"][-1] < slower.history["lr"][0]


def test_the_best_checkpoint_is_the_one_that_is_measured(fit):
    run = fit(epochs=4, lr=0.5, optimizer="sgd", schedule="constant")
    header = files.read(run.checkpoint)[1]
    assert header["scores"]["val_loss"] == run.history["val_loss"].min()
    assert run.evaluation["loss"] == pytest.approx(run.history["val_loss"].min(), abs=1e-9)


def test_folders_are_numbered_never_overwritten(fit, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    places = [fit(out="", epochs=1).folder.as_posix() for _ in range(3)]
    assert places == ["runs/mlp-pets", "runs/mlp-pets-2", "runs/mlp-pets-3"]


def test_an_interrupted_run_says_how_to_go_on(fit, monkeypatch):
    def interrupted(self, step):
        raise KeyboardInterrupt

    monkeypatch.setattr(Training, "train_step", interrupted)
    with pytest.raises(sigak.Failure, match="interrupted in epoch 1; go on with --resume"):
        fit()
