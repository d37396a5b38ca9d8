"""Generation: losses, the distance, samples, and a whole training with two optimisers."""

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

import sigak
from sigak import tasks
from sigak.io import image
from sigak.io import weights as files
from sigak.models import dcgan
from sigak.recipe import Recipe
from sigak.structures import Sample, SigakError
from sigak.tasks.generate import Distance, RandomFeatures, kid, latents, tile
from sigak.training import Training

# A network for the tests, small enough to learn something of the digits in seconds.
TINY = dataclasses.replace(dcgan.MODELS["dcgan"], args={"width": 8})
RECIPE = {
    "size": 16, "batch": 32, "lr": 2e-3, "epochs": 2, "ema": 0.5, "augment": "shift=0.1",
    "precision": "float32", "save_every": 0.0, "quiet": True,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    monkeypatch.setitem(dcgan.MODELS, "dcgan-tiny", TINY)


def task(**changes):
    return tasks.create("generate", ["any"], Recipe(**changes))


def batch(pictures):
    samples = [Sample(p, f"x#{i}", i, 0) for i, p in enumerate(pictures)]
    return task().collate(samples).floating()


@pytest.fixture(scope="module")
def digits():
    """600 digits in 2 splits, enough to learn from and to measure on."""
    data = sigak.load_data("digits", val=0)
    train, test = data.splits["train"], data.splits["test"]
    data.splits = {
        "train": train.subset(np.arange(400), "train"),
        "val": test.subset(np.arange(200), "val"),
    }
    return data


def trained(place, digits, **changes):
    torch.set_num_threads(1)  # the networks are tiny
    where = {} if "resume" in changes else {"out": str(place)}
    return sigak.train("dcgan-tiny", digits, **RECIPE | where | changes)


@pytest.fixture(scope="module")
def run(tmp_path_factory, digits):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(dcgan.MODELS, "dcgan-tiny", TINY)
        place, threads = tmp_path_factory.mktemp("runs") / "whole", torch.get_num_threads()
        yield trained(place, digits, batch=20, epochs=5)
        torch.set_num_threads(threads)


# ------------------------------------------------------------------ the losses


def judges(real, made, fooled):
    """A network whose discriminator gives these logits."""

    def network(latents, images=None, *, part):
        count = len(latents)
        if part == "discriminator":
            return torch.full((count,), real), torch.full((count,), made)
        return torch.full((count,), fooled)

    return network


def test_losses_are_those_of_the_paper():
    pictures = batch(np.zeros((4, 8, 8, 1), np.uint8))
    steps = list(task().steps(judges(2.0, -1.0, 0.5), pictures))
    assert [name for name, _ in steps] == ["discriminator", "generator"]

    def softplus(x):
        return math.log1p(math.exp(x))

    (_, first), (_, second) = steps
    assert float(first["loss"]) == pytest.approx(softplus(-2.0) + softplus(-1.0))
    assert float(second["loss"]) == pytest.approx(softplus(-0.5))
    assert first["discriminator_loss"] is first["loss"]
    assert second["generator_loss"] is second["loss"]
    # One-sided smoothing: the real pictures' target is .9, that of made ones stays 0.
    (_, smooth), _ = task(label_smoothing=0.1).steps(judges(2.0, -1.0, 0.5), pictures)
    assert float(smooth["loss"]) == pytest.approx(softplus(-2.0) + 0.1 * 2.0 + softplus(-1.0))


def test_what_is_not_for_generators_is_refused():
    for changes in ({"l2": 1e-3}, {"freeze": "backbone"}):
        with pytest.raises(SigakError, match=f"--{next(iter(changes))}"):
            task(**changes)


def test_a_generator_needs_held_out_pictures(tmp_path):
    with pytest.raises(SigakError, match=r"judged by held-out pictures.*--val 0\.1"):
        sigak.train("dcgan-tiny", "digits", val=0, out=str(tmp_path / "run"), quiet=True)
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------ the distance


def test_kid_is_the_unbiased_estimate():
    random = np.random.default_rng(0)
    real, made = random.normal(size=(5, 3)), random.normal(1, 2, size=(4, 3))

    def kernel(x, y):
        return (x @ y / 3 + 1) ** 3

    within = [
        np.mean([kernel(x, y) for i, x in enumerate(rows) for j, y in enumerate(rows) if i != j])
        for rows in (real, made)
    ]
    between = np.mean([kernel(x, y) for x in real for y in made])
    expected = sum(within) - 2 * between
    assert kid(torch.from_numpy(real), torch.from_numpy(made)) == pytest.approx(expected)
    with pytest.raises(SigakError, match="2 pictures of each kind, received 1 and 4"):
        kid(torch.ones(1, 3), torch.ones(4, 3))


def test_kid_is_cut_into_blocks_exactly(monkeypatch):
    real, made = torch.randn(10, 4), torch.randn(7, 4)
    whole = kid(real, made)
    monkeypatch.setattr("sigak.tasks.generate._BLOCK", 3)
    assert kid(real, made) == pytest.approx(whole, abs=1e-12)


def distance(real, made):
    results = [SampleResult(p) for p in made]
    found = Distance()
    found.update(results, batch(real))
    return found.compute()["kid"]


@dataclasses.dataclass
class SampleResult:
    image: np.ndarray


def test_the_distance_grows_as_pictures_get_worse():
    pixels = sigak.load_data("digits", val=0).splits["train"].pixels
    pixels = np.random.default_rng(0).permutation(pixels)
    real, other = pixels[:300], pixels[300:600]
    random = np.random.default_rng(0)

    def noisy(spread):
        return (other + random.normal(0, spread, other.shape)).clip(0, 255).astype(np.uint8)

    few = np.repeat(other[:5], 60, axis=0)  # a generator that makes five pictures only
    distances = [distance(real, made) for made in (other, noisy(30), noisy(90))]
    assert abs(distances[0]) < 0.05
    assert distances[0] + 0.05 < distances[1] < distances[2]
    assert distance(real, few) > 0.3


def test_the_distance_of_processes_together_is_that_of_one():
    random = np.random.default_rng(1)
    real, made = random.integers(0, 256, (2, 12, 8, 8, 3), dtype=np.uint8)
    whole = distance(real, made)
    first, second = Distance(), Distance()
    first.update([SampleResult(p) for p in made[:7]], batch(real[:7]))
    second.update([SampleResult(p) for p in made[7:]], batch(real[7:]))
    first.merge(second)
    assert first.compute()["kid"] == pytest.approx(whole, abs=1e-6)
    assert first.compute()["count"] == 12
    lone = Distance()
    lone.update([SampleResult(made[0])], batch(real[:1]))
    assert math.isnan(lone.compute()["kid"])


def test_the_features_are_fixed_and_leave_no_trace():
    before = torch.random.get_rng_state()
    pictures = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    first, second = RandomFeatures()(pictures), RandomFeatures()(pictures.repeat(1, 3, 1, 1))
    torch.random.set_rng_state(before)
    assert first.shape == (2, 512)
    assert torch.equal(first, second)  # gray is RGB of three equal channels
    distance(np.zeros((2, 8, 8, 1), np.uint8), np.zeros((2, 8, 8, 1), np.uint8))
    assert torch.equal(torch.random.get_rng_state(), before)


# ------------------------------------------------------------------ samples


def test_latents_are_a_function_of_seed_and_place():
    many = latents(3, range(2000))
    assert many.shape == (2000, 100)
    assert torch.equal(latents(3, [7, 2]), many[[7, 2]])
    assert not torch.equal(latents(4, [7]), many[[7]])
    assert many.mean().abs() < 0.01
    assert many.std().item() == pytest.approx(1.0, abs=0.01)
    with pytest.raises(SigakError, match="--seed must be at least 0, received -1"):
        latents(-1, [0])


def test_tiles_lie_in_rows():
    pictures = [np.full((2, 3, 1), 10 * i, np.uint8) for i in range(5)]
    sheet = tile(pictures, margin=1)
    assert sheet.shape == (2 * 3 + 1, 3 * 4 + 1, 1)
    assert sheet[4, 5, 0] == 40
    assert sheet[1:3, 9:12, 0].tolist() == [[20] * 3] * 2
    assert (sheet[4:6, 9:12] == 255).all()  # the place of a sixth
    assert (sheet[0] == 255).all()


def test_samples_are_the_same_for_the_same_seed(run, tmp_path, sigak_cli):
    made = sigak.load(run.folder).generate(9, seed=4, batch=4)
    again = sigak.load(run.folder).generate(9, seed=4, batch=9)
    assert all(np.array_equal(a.image, b.image) for a, b in zip(made, again, strict=True))
    said = sigak_cli(
        "predict", run.folder, "--samples", 9, "--seed", 4, "--save", tmp_path / "made", "--json"
    )
    assert said.code == 0, said.err
    told = json.loads(said.out)
    assert told["seed"] == 4
    assert len(told["files"]) == 11
    assert sorted(told["files"]) == sorted(str(p) for p in (tmp_path / "made").iterdir())
    for place, result in enumerate(made):
        written = image.read(tmp_path / "made" / f"{place + 1:04d}.png", color="gray")
        assert np.array_equal(written, result.image)
    assert image.read(tmp_path / "made" / "sheet.png").shape == (3 * 18 + 2, 3 * 18 + 2, 3)
    other = sigak.load(run.folder).generate(1, seed=5)
    assert not np.array_equal(other[0].image, made[0].image)


def test_mistakes_of_asking_are_told(run, digits_run, tmp_path, sigak_cli):
    cases = [
        ((run.folder, "--samples", 4), "--save FOLDER"),
        ((run.folder, "x.png", "--samples", 4, "--save", "out"), "leave out the pictures"),
        ((run.folder, "--samples", -1, "--save", "out"), "at least 1, received -1"),
        ((run.folder, "--samples", 4, "--seed", -1, "--save", "out"), "--seed must be at least 0"),
        ((run.folder, "x.png"), "give --samples 64"),
        ((run.folder,), "give --samples 64"),
        ((digits_run.folder, "--samples", 4, "--save", "out"), "leave out --samples"),
        ((digits_run.folder,), "expected pictures, videos or folders"),
    ]
    for words, sentence in cases:
        said = sigak_cli("predict", *words)
        assert (said.code, said.out) == (2, ""), words
        assert sentence in said.err
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------ the whole


def test_the_pictures_come_nearer(run):
    history = run.history
    assert run.best_epoch == 1 + int(np.argmin(history["val_kid"]))
    assert history["val_kid"].min() < history["val_kid"][0] / 2
    both = history["discriminator_loss"] + history["generator_loss"]
    assert history["loss"] == pytest.approx(both)
    assert run.evaluation["kid"] == pytest.approx(history["val_kid"].min())
    assert run.evaluation["features"] == RandomFeatures.about
    sheets = [image.read(run.folder / "samples" / f"epoch-{e:04d}.png") for e in range(1, 6)]
    assert {sheet.shape for sheet in sheets} == {(8 * 18 + 2, 8 * 18 + 2, 3)}
    assert not np.array_equal(sheets[0], sheets[-1])


def test_the_report_shows_both_losses_and_the_sheets(run):
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    for words in ("Kernel distance", "discriminator", "generator", "epoch 5", 'id="pictures"'):
        assert words in page
    assert "The pictures came nearest to held-out ones in epoch" in page
    assert page.count('class="sheet"') == 5


def test_evaluation_is_that_of_the_training(run, digits, sigak_cli):
    figures = sigak.evaluate(run.folder, digits, split="val")
    assert figures["kid"] == pytest.approx(run.evaluation["kid"], rel=1e-6)
    assert figures["count"] == 200


def test_both_halves_are_in_the_checkpoint(run):
    tensors, header = files.read(run.checkpoint)
    assert {name.split(".")[0] for name in tensors} == {"generator", "discriminator"}
    assert header["task"] == "generate"


def test_pictures_of_a_folder_and_weights_to_begin_with(folder, tmp_path):
    """RGB pictures of any size, and a second training that takes up what a first has learnt."""
    pets = folder(count=12, size=(20, 24), suffix=".jpg")
    first = trained(tmp_path / "first", pets, epochs=1, batch=8, val=0.3)
    tensors = files.read(first.checkpoint)[0]
    assert tensors["generator.6.weight"].shape[1] == 3
    second = trained(
        tmp_path / "second", pets, epochs=1, batch=8, val=0.3, lr=0.0, ema=0.0,
        pretrained=str(first.checkpoint),
    )  # fmt: skip
    again = files.read(second.checkpoint)[0]
    for name, value in tensors.items():
        if name.endswith("weight"):
            assert torch.equal(again[name], value), name


class Cut(Exception):  # noqa: N818 - an event, not an error
    """Raised in the middle of a run, as a power cut would."""


def outcome(folder):
    """Every figure that is not a time, the sheets, the best weights and the resume state."""
    table = np.genfromtxt(folder / "metrics.csv", delimiter=",", names=True)
    timed = ("seconds", "images_per_second")
    figures = {name: table[name].tolist() for name in table.dtype.names if name not in timed}
    sheets = [path.read_bytes() for path in sorted((folder / "samples").iterdir())]
    best, state = (files.read(folder / name)[0] for name in (files.BEST, "resume.safetensors"))
    return figures, sheets, *({k: v.numpy().tobytes() for k, v in t.items()} for t in (best, state))


def test_a_run_that_was_cut_goes_on_exactly(tmp_path, digits):
    """Both networks, both optimisers, the averaged weights and the noise of the sheets."""
    trained(tmp_path / "whole", digits)
    original, done = Training.train_step, []

    def step(self, item):
        if len(done) in (5, 17):
            done.append(None)
            raise Cut
        done.append(item)
        original(self, item)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "train_step", step)
        with pytest.raises(Cut):
            trained(tmp_path / "cut", digits)
        with pytest.raises(Cut):
            trained(tmp_path / "cut", digits, resume=str(tmp_path / "cut"))
        trained(tmp_path / "cut", digits, resume=str(tmp_path / "cut"))
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")


ONE = """
import json, sys, torch, sigak
torch.set_num_threads(1)
sigak.train("dcgan", "digits", **json.loads(sys.argv[1]))
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="SIGKILL is POSIX's")
def test_a_run_that_was_killed_goes_on_exactly(tmp_path, run_environment):
    def start(**where):
        asked = RECIPE | {"size": 8, "batch": 128} | where
        command = [sys.executable, "-c", ONE, json.dumps(asked)]
        return subprocess.Popen(command, cwd=tmp_path, env=run_environment)

    assert start(out="whole").wait(300) == 0
    process, state = start(out="cut"), tmp_path / "cut" / "resume.safetensors"
    while not state.exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL
    assert not (tmp_path / "cut" / "report.html").exists()
    assert start(resume="cut").wait(300) == 0
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")


def test_what_is_kept_are_the_averaged_weights(tmp_path, digits):
    kept = trained(tmp_path / "ema", digits, epochs=1, ema=0.9)
    last = trained(tmp_path / "plain", digits, epochs=1, ema=0.0)
    state = files.read(kept.folder / "resume.safetensors")[0]
    plain, averaged = (files.read(r.checkpoint)[0] for r in (last, kept))
    name = "generator.0.weight"
    assert any(torch.equal(value, plain[name]) for value in state.values())  # trained alike
    assert not torch.equal(averaged[name], plain[name])


TWO = """
import dataclasses, sys, torch, sigak
from sigak.models import dcgan
from sigak.training import Training
torch.set_num_threads(1)
dcgan.MODELS["dcgan-tiny"] = dataclasses.replace(dcgan.MODELS["dcgan"], args={"width": 8})
ended = Training._end_epoch
def end(self, logs):
    ended(self, logs)
    tensors = self.network.state_dict()
    rank = self.accelerator.process_index
    torch.save({"tensors": tensors, "kid": logs["val_kid"]}, f"rank{rank}.pt")
Training._end_epoch = end
sigak.train("dcgan-tiny", "digits", size=8, batch=128, epochs=1, ema=0.9, precision="float32",
            device="cpu", out="two", quiet=True, val=0.3)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="gloo over torchrun is not supported there")
def test_two_processes_end_with_the_same_networks(tmp_path, in_two_processes):
    (tmp_path / "two.py").write_text(TWO, encoding="utf-8")
    in_two_processes("two.py")
    ours, theirs = (torch.load(tmp_path / f"rank{r}.pt", weights_only=True) for r in (0, 1))
    assert ours["kid"] == theirs["kid"]
    for name, value in ours["tensors"].items():
        assert torch.equal(value, theirs["tensors"][name]), name
