"""Segmentation: losses, answers in the file's frame, views, windows, files, and the whole road."""

import json

import numpy as np
import pytest
import torch
from pycocotools import mask as reference
from torch import nn

import sigak
from sigak import tasks
from sigak.io import image, index_map
from sigak.recipe import Recipe
from sigak.runtime import TorchEngine
from sigak.structures import IGNORE, Batch, Sample, SigakError
from sigak.tasks._windows import Views, best_classes, sliding
from sigak.tasks.segment import Segmentation

CLASSES = ["background", "cat", "dog"]
# pycocotools is older than NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def task(classes=CLASSES, **changes):
    return tasks.create("segment", classes, Recipe(**changes))


class Tones(nn.Module):
    """Each pixel's class by its red tone alone: 0, .5 or 1. `around` first averages its
    surroundings of so many pixels.
    """

    stride = 4

    def __init__(self, around=1):
        super().__init__()
        self.blur = nn.AvgPool2d(around, 1, around // 2, count_include_pad=False)

    def forward(self, images):
        red = self.blur(images[:, :1])
        return torch.cat([-20 * (red - tone) ** 2 for tone in (0.0, 0.5, 1.0)], 1)


def engine(around=1):
    return TorchEngine(Tones(around))


def painted(size, seed=0):
    """A map of blocks of classes, and a picture whose red tones say so."""
    blocks = np.random.default_rng(seed).integers(0, 3, (-(-size[0] // 6), -(-size[1] // 6)))
    classes = blocks.repeat(6, 0).repeat(6, 1)[: size[0], : size[1]].astype(np.uint8)
    pixels = np.zeros((*size, 3), np.uint8)
    pixels[..., 0] = np.array([0, 128, 255], np.uint8)[classes]
    return classes, pixels


def batch(*pixels, maps=None):
    samples = [
        Sample(one, f"x#{i}", i, class_map=None if maps is None else maps[i])
        for i, one in enumerate(pixels)
    ]
    return Batch.of(samples)


def test_the_loss_is_that_of_the_recipe():
    classes, pixels = painted((12, 16))
    classes[0, :4] = IGNORE
    given = batch(pixels, maps=[classes]).floating()
    network = lambda images: Tones()(images)  # noqa: E731
    for spec in ("", "ce", "ce+dice"):
        ((name, found),) = task(loss=spec).steps(network, given)
        assert name == "main"
        assert found["pixel_accuracy"] == 1
        assert 0 < found["loss"] < 0.5
    with pytest.raises(SigakError, match="learns from class maps"):
        next(task().steps(network, batch(pixels).floating()))
    with pytest.raises(SigakError, match="--loss is for segmentation, this task is detect"):
        tasks.create("detect", CLASSES, Recipe(loss="ce"))
    with pytest.raises(SigakError, match="two or more"):
        _ = task(["alone"]).outputs


@pytest.mark.parametrize("fit", ["squash", "letterbox"])
def test_answers_lie_in_the_files_frame(fit):
    classes, pixels = painted((48, 36))
    preparation = image.Preparation((96, 96), fit=fit)
    ready, matrix, size = image.load(pixels, preparation)
    sample = Sample(ready, "a", matrix=matrix, size=size)
    (answer,) = task().predict(engine(), Batch.of([sample]).floating())
    assert answer.class_map.shape == (48, 36)
    inner = np.ones(classes.shape, bool)
    for axis in (0, 1):
        apart = np.diff(classes.astype(int), axis=axis) != 0
        pad = [(0, 0), (0, 0)]
        for ends in ((1, 0), (0, 1)):
            pad[axis] = ends
            inner &= ~np.pad(apart, pad)
    assert (answer.class_map == classes)[inner].all()


def test_large_files_are_answered_in_parts(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(3, 20, 30, generator=generator)
    matrix = np.array([[0.5, 0, 2], [0, 0.4, 1], [0, 0, 1.0]])
    whole = best_classes(scores, matrix, (45, 52))
    monkeypatch.setattr("sigak.tasks._windows._VALUES", 3 * 52 * 7)
    np.testing.assert_array_equal(best_classes(scores, matrix, (45, 52)), whole)


# ------------------------------------------------------------------ views and windows


def test_views_by_hand():
    pixels = torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    network = engine(3)
    plain = network(pixels).softmax(1)
    mirrored = network(pixels.flip(3)).flip(3).softmax(1)
    torch.testing.assert_close(
        Views.parse("mirror").scores(network, pixels), (plain + mirrored) / 2
    )
    large = nn.functional.interpolate(pixels, (24, 36), mode="bilinear")
    large = nn.functional.interpolate(network(large).softmax(1), (16, 24), mode="bilinear")
    torch.testing.assert_close(Views.parse("1.5").scores(network, pixels), (plain + large) / 2)
    assert Views.parse("") == Views()
    for wrong in ("flip", "mirror,9", "nan", "0"):
        with pytest.raises(SigakError, match="--tta takes mirror and scales"):
            Views.parse(wrong)


@pytest.mark.parametrize("size", [(64, 96), (50, 33), (5, 90), (1, 1)])
def test_windows_of_a_network_that_sees_one_pixel_are_the_whole(size):
    classes, pixels = painted(size)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    np.testing.assert_array_equal(sliding(engine(), Views(), tensor, 32), classes)


def test_windows_agree_with_the_whole_picture():
    """What a network sees around a pixel is cut at a window's edge; the blend favours windows that
    show the pixel far from theirs.
    """
    _, pixels = painted((120, 150), 3)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    network = engine(9)
    whole = network(tensor[None].float() / 255)[0].argmax(0).numpy()
    found = sliding(network, Views(), tensor, 48)
    assert (found == whole).mean() > 0.99
    np.testing.assert_array_equal(sliding(network, Views(), tensor[:, :48, :48], 48)[:40, :40],
                                  whole[:40, :40])  # fmt: skip


def test_windows_must_suit_the_network():
    with pytest.raises(SigakError, match="multiple of 4 for this network, received 30"):
        sliding(engine(), Views(), torch.zeros(3, 8, 8, dtype=torch.uint8), 30)
    with pytest.raises(SigakError, match="--tile must be at least 1"):
        task().answering(tile=-1)
    with pytest.raises(SigakError, match="--conf says nothing"):
        task().answering(conf=0.5)


# ------------------------------------------------------------------ answers


@pytest.fixture
def answer():
    classes, _ = painted((12, 18))
    return Segmentation.of("pictures/12.png", classes, CLASSES)


def test_an_answer_tells_its_shares(answer):
    counts = np.bincount(answer.class_map.ravel(), minlength=3)
    assert answer.pixels == counts.tolist()
    assert answer.scores.sum() == pytest.approx(1)
    assert answer.label == CLASSES[1 + int(counts[1:].argmax())]
    rows = answer.asdict()["classes"]
    assert [row["pixels"] for row in rows] == [c for c in counts if c]
    assert "%" in str(answer)
    empty = Segmentation.of("b.png", np.zeros((4, 4), np.uint8), CLASSES)
    assert (empty.label, empty.score) == ("background", 1.0)


def test_saving(tmp_path, answer):
    twin = Segmentation.of("other/12.png", np.zeros((3, 4), np.uint8), CLASSES)
    files = task().save([answer, twin], tmp_path, ["coco"])
    assert [f.name for f in files] == ["12.png", "12-2.png", "predictions.json", "coco.json"]
    np.testing.assert_array_equal(index_map.read(files[0]), answer.class_map)
    assert index_map.palette_of(files[0])[0] == (0, 0, 0)
    rows = json.loads(files[2].read_text())
    assert rows[1]["map"] == "maps/12-2.png"
    codes = json.loads(files[3].read_text())
    assert {row["image_id"] for row in codes} == {12}
    decoded = reference.decode(codes[1]["segmentation"])
    np.testing.assert_array_equal(decoded, answer.class_map == codes[1]["category_id"])
    with pytest.raises(SigakError, match="--txt is for detectors"):
        task().save([answer], tmp_path, ["txt"])


def test_drawing(answer):
    pixels = np.full((12, 18, 3), 100, np.uint8)
    made = task()
    drawn = made.draw(pixels, answer)
    assert (pixels == 100).all()
    background = answer.class_map == 0
    assert (drawn[background][-6:] == 100).all()  # the legend stands at the top left
    own = task()
    own.palette = [(9, 9, 9), (200, 0, 0), (0, 200, 0)]
    corner = answer.class_map[-1, -1]
    mixed = np.rint(0.45 * 100 + 0.55 * np.array(own.palette[corner]))
    assert own.draw(pixels, answer)[-1, -1].tolist() == mixed.tolist()


# ------------------------------------------------------------------ the whole road


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A few steps of a small network on pictures and maps in folders, and the folder."""
    root = tmp_path_factory.mktemp("segment")
    for split, count in (("train", 6), ("val", 2)):
        for i in range(count):
            classes, pixels = painted((40, 64), i)
            image.save(root / f"set/{split}/images/{i}.png", pixels)
            index_map.save(root / f"set/{split}/masks/{i}.png", classes,
                           [(0, 0, 0), (250, 10, 10), (10, 10, 250)])  # fmt: skip
    (root / "set/classes.json").write_text(
        json.dumps([{"name": n, "color": [c, 0, 9]} for n, c in zip(CLASSES, (0, 200, 90))])
    )
    done = sigak.train(
        "deeplabv3plus-mobilenetv2", root / "set", epochs=4, size=64, batch=2, augment="flip=h",
        lr=3e-3, loss="ce+dice", out=str(root / "run"), quiet=True,
    )  # fmt: skip
    return done, root


def test_training_learns_and_says_so(run):
    done, root = run
    assert done.history["loss"][-1] < done.history["loss"][0]
    assert {"val_miou", "val_pixel_accuracy", "val_dice", "val_boundary_f"} <= set(done.history)
    assert done.best_epoch == 1 + int(np.argmax(done.history["val_miou"]))
    figures = sigak.evaluate(root / "run", root / "set")
    assert figures["split"] == "val"
    assert figures["miou"] == pytest.approx(done.evaluation["miou"])
    assert figures["pixels"] == 2 * 40 * 64  # in the files' frame, bars beside them left out
    page = (root / "run/report.html").read_text()
    assert "mean IoU" in page
    assert "boundary F" in page


def test_the_commands(run, sigak_cli, tmp_path):
    _, root = run
    said = sigak_cli(
        "predict", root / "run", root / "set/val/images", "--save", tmp_path / "out", "--coco",
        "--json", "--tta", "mirror,1.5",
    )  # fmt: skip
    assert said.code == 0, said.err
    assert [row["size"] for row in json.loads(said.out)] == [[40, 64], [40, 64]]
    assert index_map.palette_of(tmp_path / "out/maps/0.png")[1] == (200, 0, 9)
    assert (tmp_path / "out/0001-0.png").exists()
    said = sigak_cli("predict", root / "run", root / "set/val/images", "--tile", 32)
    assert said.code == 0, said.err
    said = sigak_cli("data", root / "set", "--draw", tmp_path / "sheet.png")
    assert said.code == 0, said.err
    assert "cat" in said.out
    said = sigak_cli("explain", root / "run", root / "set/val/images/0.png", "--class", "dog",
                     "--out", tmp_path / "why.png")  # fmt: skip
    assert said.code in (0, 2), said.err  # a network this young may not have found a dog
    for words in (
        ["--tile", "30"],
        ["--tta", "sideways"],
        ["--conf", "0.5"],
        ["--txt", "--save", "x"],
    ):
        said = sigak_cli("predict", root / "run", root / "set/val/images", *words)
        assert said.code == 2, words


def test_a_detector_knows_no_tiles(sigak_cli, tmp_path, digits_run):
    image.save(tmp_path / "a.png", np.zeros((8, 8, 1), np.uint8))
    said = sigak_cli("predict", digits_run.checkpoint, tmp_path / "a.png", "--tile", 64)
    assert said.code == 2
    assert "--tile says nothing to a checkpoint of the task classify" in said.err


@pytest.mark.parametrize("to", ["onnx", "openvino"])
def test_export(run, tmp_path, to):
    _, root = run
    suffix = {"onnx": ".onnx", "openvino": ".xml"}[to]
    done = sigak.export(root / "run", to, out=tmp_path / f"a{suffix}", data=str(root / "set"))
    assert done.difference < 1e-4
    assert done.answers == (2, 2)
    ours, theirs = (
        sigak.predict(one, root / "set/val/images", tta="mirror,1.5")
        for one in (root / "run", done.file)
    )
    for a, b in zip(ours, theirs, strict=True):
        assert (a.class_map == b.class_map).mean() > 0.99


def test_explaining(run):
    _, root = run
    found = sigak.explain(root / "run", root / "set/val/images/0.png")
    assert found.target == found.result.label
    assert {heat.method for heat in found.heats} == {"Grad-CAM", "occlusion"}
    assert all(heat.map.shape == (40, 64) for heat in found.heats)
    assert found.sheet().shape[2] == 3


def test_all_pictures_ignored_but_one(tmp_path):
    for i in range(3):
        classes, pixels = painted((32, 32), i)
        image.save(tmp_path / f"set/images/{i}.png", pixels)
        classes = classes if i == 0 else np.full_like(classes, IGNORE)
        index_map.save(tmp_path / f"set/masks/{i}.png", classes, [(i, i, i) for i in range(256)])
    run = sigak.train("deeplabv3plus-mobilenetv2", tmp_path / "set", epochs=1, size=32, batch=1,
                      val=0, augment="none", out=str(tmp_path / "run"), quiet=True)  # fmt: skip
    assert np.isfinite(run.history["loss"]).all()
    assert run.evaluation["ignored"] == 2 * 32 * 32
