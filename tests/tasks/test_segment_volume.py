"""Segmentation of volumes: windows, answers, files, and the verbs from end to end."""

import json
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import torch
from torch import nn

import sigak
from sigak import models, tasks
from sigak.callbacks import Callback
from sigak.io import image
from sigak.io import weights as files
from sigak.recipe import Recipe
from sigak.runtime import TorchEngine
from sigak.structures import IGNORE, Batch, Sample, SigakError
from sigak.tasks import _blocks
from sigak.tasks.segment_volume import SegmentedVolume

CLASSES = ["background", "ellipsoid", "box", "tube"]
QUICK = {"size": 16, "epochs": 1, "batch": 4, "quiet": True}


def engine(function, stride=4):
    """An engine of a plain function of volumes."""
    network = SimpleNamespace(stride=stride, input_shape=(1, 16, 16, 16))
    made = SimpleNamespace(network=network, seen=[])

    class Engine:
        def __call__(self, volumes):
            made.seen.append(tuple(volumes.shape))
            return function(volumes)

    found = Engine()
    found.network, found.seen = network, made.seen
    return found


def thresholds(volumes):
    """Three classes by each voxel alone."""
    return torch.cat([0.5 - volumes, volumes - 0.5, 4 * (volumes - 0.8)], 1) * 9


# ------------------------------------------------------------------ windows


def test_a_window_that_covers_the_volume_answers_as_the_network_does():
    torch.manual_seed(0)
    arguments = models.arguments("unet3d", classes=3, width=4, levels=3, depth=16, size=(16, 24))
    network = models.entry("unet3d").build(**arguments).eval()
    made = TorchEngine(network)
    volume = torch.rand(1, 16, 16, 24)
    whole = network(volume[None].contiguous(memory_format=torch.channels_last_3d))
    found = _blocks.sweep(made, volume, network.input_shape[1:])
    assert np.array_equal(found, whole[0].argmax(0).numpy())
    larger = _blocks.sweep(made, volume, (64, 64, 64))
    assert np.array_equal(found, larger)


@pytest.mark.parametrize(
    "shape", [(16, 16, 16), (17, 40, 33), (1, 20, 30), (5, 3, 2), (50, 16, 7), (1, 1, 1)]
)
def test_windows_meet_without_a_seam(shape):
    """Where a voxel's class depends on the voxel alone, windows change nothing, whatever the size;
    and no window is larger than what the network takes, nor than the volume needs.
    """
    volume = torch.rand(1, *shape, generator=torch.Generator().manual_seed(0))
    made = engine(thresholds)
    found = _blocks.sweep(made, volume, (16, 16, 16))
    assert found.dtype == np.uint8
    assert np.array_equal(found, thresholds(volume[None])[0].argmax(0).numpy())
    [window] = {one[2:] for one in made.seen}
    assert window == tuple(min(16, -(-side // 4) * 4) for side in shape)


def test_windows_blend_as_by_hand():
    """Probabilities weighed by a Gaussian and summed over all windows, with whole volumes of sums;
    here only a band of it is kept.
    """
    rng = torch.Generator().manual_seed(0)
    volume = torch.rand(1, 30, 21, 40, generator=rng)
    kernel = torch.randn(3, 1, 5, 5, 5, generator=rng)
    made = engine(lambda volumes: nn.functional.conv3d(volumes, kernel, padding=2))
    total = torch.zeros(3, 30, 21, 40)
    lines = [torch.exp(-0.5 * ((torch.arange(16) - 7.5) / 2).square())] * 3
    weight = torch.einsum("i,j,k->ijk", *lines)
    for z in (0, 7, 14):
        for y in (0, 5):
            for x in (0, 8, 16, 24):
                part = volume[None, :, z : z + 16, y : y + 16, x : x + 16]
                chances = made(part)[0].softmax(0)
                total[:, z : z + 16, y : y + 16, x : x + 16] += chances * weight
    assert np.array_equal(_blocks.sweep(made, volume, (16, 16, 16)), total.argmax(0).numpy())


def test_where_windows_begin():
    assert _blocks.starts(10, 16) == [0]
    assert _blocks.starts(16, 16) == [0]
    assert _blocks.starts(17, 16) == [0, 1]
    assert _blocks.starts(32, 16) == [0, 8, 16]
    for length in range(17, 99):
        at = np.array(_blocks.starts(length, 16))
        assert at[0] == 0
        assert at[-1] == length - 16
        assert np.diff(at).max() <= 8


def test_weights():
    weight = _blocks.weights((8, 16, 4))
    assert weight.shape == (8, 16, 4)
    assert weight.min() > 0
    assert weight.argmax() in (3 * 64 + 7 * 4 + 1, 4 * 64 + 8 * 4 + 2)
    assert torch.equal(weight, weight.flip(0, 1, 2))


def test_memory_does_not_grow_with_depth():
    """The sums of twice the slices take no more than those of the first."""
    largest = []
    zeros = torch.zeros

    def watched(*shape, **how):
        largest.append(int(np.prod([n for n in shape if isinstance(n, int)])))
        return zeros(*shape, **how)

    for depth in (32, 320):
        volume = torch.rand(1, depth, 16, 16)
        made = engine(thresholds)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "zeros", watched)
            _blocks.sweep(made, volume, (16, 16, 16))
        assert len(made.seen) == depth // 8 - 1
    assert max(largest) == 3 * 16 * 16 * 16


# ------------------------------------------------------------------ the task


def batch(count=2, shape=(5, 6, 7)):
    rng = np.random.default_rng(0)
    samples = []
    for i in range(count):
        labels = rng.integers(0, 4, shape).astype(np.uint8)
        voxels = rng.random((*shape, 1)).astype(np.float32)
        samples.append(Sample(voxels, f"scan-{i}.npy", i, class_map=labels,
                              truth_map=lambda labels=labels: labels))  # fmt: skip
    return Batch.of(samples)


def test_the_loss_is_that_of_every_voxel():
    given = batch()
    given.class_maps[0, 0] = IGNORE
    logits = torch.randn(2, 4, 5, 6, 7, generator=torch.Generator().manual_seed(0))
    for spec in ("ce", "dice", "ce+0.5*lovasz", "focal"):
        task = tasks.create("segment_volume", CLASSES, Recipe(loss=spec))
        [(name, found)] = task.steps(lambda _: logits, given)
        assert name == "main"
        # The same voxels as one row of a picture.
        flat = tasks.create("segment", CLASSES, Recipe(loss=spec))
        given_flat = Batch.of([Sample(np.zeros((1, 420, 1), np.uint8))])
        given_flat.class_maps = given.class_maps.reshape(1, 1, 420)
        row = logits.movedim(1, 0).reshape(1, 4, 1, 420)
        [(_, expected)] = flat.steps(lambda _, row=row: row, given_flat)
        torch.testing.assert_close(found["loss"], expected["loss"])
        torch.testing.assert_close(found["pixel_accuracy"], expected["pixel_accuracy"])


def test_what_cannot_be_learnt_is_told():
    task = tasks.create("segment_volume", ["all"], Recipe())
    with pytest.raises(SigakError, match="needs two or more, received all"):
        _ = task.outputs
    given = batch()
    given.class_maps = None
    with pytest.raises(SigakError, match="learns from masks, and these volumes have none"):
        next(task.steps(lambda images: images, given))
    for choice in ("tile", "tta", "conf"):
        with pytest.raises(SigakError, match=f"--{choice} says nothing to a checkpoint"):
            task.answering(**{choice: 8})


def test_figures_of_a_perfect_answer_and_of_none():
    task = tasks.create("segment_volume", CLASSES, Recipe())
    given = batch()
    measure = task.metric()
    right = [SegmentedVolume.of("x", labels, CLASSES) for labels in given.class_maps.numpy()]
    measure.update(right, given)
    figures = measure.compute()
    assert figures["miou"] == figures["dice"] == figures["boundary_f"] == 1
    assert figures["pixels"] == 2 * 5 * 6 * 7
    measure = task.metric()
    wrong = [SegmentedVolume.of("x", (m + 1) % 4, CLASSES) for m in given.class_maps.numpy()]
    measure.update(wrong, given)
    assert measure.compute()["miou"] == 0


def test_the_metric_sees_surfaces_between_slices():
    """Two slabs, one above the other: their boundary lies across D alone."""
    labels = np.zeros((6, 5, 4), np.uint8)
    labels[3:] = 1
    moved = np.roll(labels, 2, 0)
    measure = tasks.create("segment_volume", CLASSES[:2], Recipe()).metric()
    measure.measure.add(moved, labels)
    by_class = measure.compute()["per_class"]
    assert all(row["boundary_f"] is not None and row["boundary_f"] < 1 for row in by_class)


# ------------------------------------------------------------------ end to end


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "blobs"
    return sigak.train("unet3d-small", "blobs3d:3@16", out=str(out), **QUICK)


@pytest.fixture
def scan(tmp_path):
    """A NIfTI file of 9 x 10 x 21 voxels, askew and with millimetres."""
    values = np.random.default_rng(0).normal(100, 20, (21, 10, 9)).astype(np.float32)
    affine = np.array([[-0.5, 0, 0, 9], [0, 0.5, 0.1, -4], [0, -0.1, 2, 3], [0, 0, 0, 1]])
    nibabel.Nifti1Image(values, affine).to_filename(tmp_path / "head.nii.gz")
    return tmp_path / "head.nii.gz"


def test_a_run_can_be_used_by_its_checkpoint_alone(run):
    predictor = sigak.load(run.checkpoint, device="cpu")
    assert predictor.preparation.depth == 16
    assert predictor.preparation.size == (16, 16)
    assert predictor.preparation.intensity == "percentile"
    assert predictor.network.input_shape == (1, 16, 16, 16)
    assert predictor.classes == CLASSES
    assert "unet3d-small on blobs3d:3@16" in (run.folder / "report.html").read_text("utf-8")


def test_evaluate_repeats_what_training_measured(run):
    figures = sigak.evaluate(run.checkpoint, "blobs3d:3@16")
    assert figures["split"] == "test"
    for name, value in run.evaluation.items():
        assert figures[name] == value, name
    dataset = sigak.load_data("blobs3d:3@16")
    answers = sigak.predict(run.checkpoint, list(dataset.splits["test"].pixels[..., 0]))
    truth = [record.class_map.read() for record in dataset.splits["test"].records]
    right = sum(int((a.class_map == t).sum()) for a, t in zip(answers, truth, strict=True))
    assert right / figures["pixels"] == pytest.approx(figures["pixel_accuracy"])


def test_answers_lie_over_their_files(run, scan, sigak_cli, tmp_path):
    said = sigak_cli("predict", run.checkpoint, scan, "--save", "found", "--json")
    assert said.code == 0, said.err
    [facts] = json.loads(said.out)
    assert facts["size"] == [9, 10, 21]
    assert facts["spacing"] == pytest.approx([2.0025, 0.5099, 0.5], abs=1e-3)
    assert sum(row["voxels"] for row in facts["classes"]) == 9 * 10 * 21
    cube = np.prod(facts["spacing"]) / 1000
    assert all(r["millilitres"] == pytest.approx(r["voxels"] * cube) for r in facts["classes"])
    [row] = json.loads((tmp_path / "found/predictions.json").read_text("utf-8"))
    assert row == facts | {"mask": "masks/head.nii.gz"}
    mask = nibabel.load(tmp_path / "found" / row["mask"])
    np.testing.assert_allclose(mask.affine, nibabel.load(scan).affine, atol=1e-6)
    [answer] = sigak.predict(run.checkpoint, scan)
    assert np.array_equal(np.asarray(mask.dataobj).T, answer.class_map)
    drawn = image.read(tmp_path / "found/0001-head.png")
    assert drawn.shape[0] > 2 * 200
    assert drawn.shape[1] > 3 * 200


@pytest.mark.parametrize("shape", [(1, 20, 30), (9, 11, 13), (30, 8, 3)])
def test_any_shape_is_answered(run, shape):
    [answer] = sigak.predict(run.checkpoint, np.random.default_rng(0).normal(size=shape))
    assert answer.class_map.shape == shape
    assert answer.source == "volume#0"


def test_folders_and_patterns(run, scan, tmp_path, sigak_cli):
    for name in ("b/one.npy", "b/two.npz", ".hidden/three.npy"):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        values = np.random.default_rng(0).normal(size=(5, 6, 7))
        saver = np.save if name.endswith("npy") else np.savez
        saver(tmp_path / "set" / name, values)
    found = sigak.predict(run.checkpoint, [tmp_path / "set", f"{tmp_path}/*.nii.gz"])
    assert [r.source.rpartition("/")[2] for r in found] == ["one.npy", "two.npz", "head.nii.gz"]
    assert found[0].asdict().keys() == {"source", "size", "classes"}
    said = sigak_cli("predict", run.checkpoint, "set", "--save", "out")
    assert said.code == 0, said.err
    labels = np.load(tmp_path / "out/masks/one.npy")
    assert np.array_equal(labels, found[0].class_map)


def test_what_cannot_be_answered_is_named(run, scan, tmp_path, sigak_cli):
    np.save(tmp_path / "bad.npy", np.full((4, 4, 4), np.nan))
    said = sigak_cli("predict", run.checkpoint, "bad.npy", scan)
    assert said.code == 0
    assert "skipped bad.npy: bad.npy: none of its 64 voxels is a finite number" in said.err
    for words, sentence in (
        (["predict", run.checkpoint, tmp_path / "none"], "no volume found"),
        (["predict", run.checkpoint, scan, "--size", "32"], "--size is for networks that take pic"),
        (["predict", run.checkpoint, scan, "--prepare", "mirror"], "none of the pictures could"),
        (["predict", run.checkpoint, scan, "--engine", "onnx"], "answered for by torch"),
        (["explain", run.checkpoint, scan], "explain is for networks that take pictures"),
        (["export", run.checkpoint, "--to", "onnx"], "export is for networks that take pictures"),
        (["train", "unet3d-small", "blobs3d:3@16", "--color", "rgb"], "--color is for pictures"),
        (["train", "unet3d-small", "blobs3d:3@16", "--fit", "crop"], "--fit is for pictures"),
        (
            ["train", "unet3d-small", "blobs3d:3@16", "--size", "12"],
            "cannot take volumes of 12x12x12",
        ),
        (
            ["train", "unet3d-small", "blobs3d:3@16", "--augment", "rotate=9"],
            "--augment of volumes",
        ),
        (["train", "unet3d-small", "digits"], "digits holds pictures"),
        (["train", "unet", "blobs3d:3@16"], "blobs3d:3@16 holds volumes"),
        (["evaluate", run.checkpoint, "digits"], "digits holds pictures"),
    ):
        said = sigak_cli(*words)
        assert said.code == 2, words
        assert sentence in said.err, words
    with pytest.raises(SigakError, match="a volume is a file or an array"):
        sigak.predict(run.checkpoint, 5)


def test_volumes_of_one_slice_are_learnt(tmp_path):
    for i in range(3):
        for kind in ("images", "masks"):
            (tmp_path / kind).mkdir(exist_ok=True)
        values = np.random.default_rng(i).random((1, 12, 20)).astype(np.float32)
        np.save(tmp_path / f"images/{i}.npy", values)
        np.save(tmp_path / f"masks/{i}.npy", (values > 0.5).astype(np.uint8))
    run = sigak.train("unet3d-small", tmp_path, out=str(tmp_path / "run"), **QUICK)
    header = sigak.load(run.checkpoint).header
    assert header["preparation"]["depth"] == 8
    assert header["preparation"]["size"] == [16, 16]
    [answer] = sigak.predict(run.checkpoint, tmp_path / "images/0.npy")
    assert answer.class_map.shape == (1, 12, 20)


class Interrupt(Callback):
    """What a person does who presses Ctrl-C at the end of the first epoch."""

    def __init__(self, pressed):
        self.pressed = pressed

    def on_epoch_end(self, training, epoch, logs):
        if epoch == 1 and self.pressed:
            raise KeyboardInterrupt


def test_a_run_that_was_cut_off_ends_the_same(tmp_path):
    """With averaged weights, accumulated parts and statistics of the data."""
    how = QUICK | {"epochs": 2, "ema": 0.9, "accumulate": 2, "standardize": "data"}
    name, data = "unet3d-small", "blobs3d:3@16"
    whole = sigak.train(name, data, out=str(tmp_path / "whole"), **how)
    with pytest.raises(sigak.Failure, match="interrupted in epoch 1"):
        sigak.train(name, data, out=str(tmp_path / "cut"), save_every=0.0,
                    callbacks=[Interrupt(True)], **how)  # fmt: skip
    rest = sigak.train(
        name, data, resume=str(tmp_path / "cut"), quiet=True, callbacks=[Interrupt(False)]
    )
    one, other = (files.read(run.checkpoint)[0] for run in (whole, rest))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert rest.evaluation == whole.evaluation
    assert np.array_equal(rest.history["loss"], whole.history["loss"])


@pytest.mark.slow
def test_volumes_are_learnt(tmp_path):
    """A part of the run that docs/volumes.md tells of; background alone would give .24."""
    run = sigak.train(
        "unet3d-small", "blobs3d", epochs=2, out=str(tmp_path / "run"), quiet=True
    )  # fmt: skip
    assert run.evaluation["miou"] > 0.4
