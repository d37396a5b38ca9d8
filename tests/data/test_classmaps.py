"""Class maps painted from outlines, by COCO's own pixels, and moved with their pictures."""

import numpy as np
import pytest
from pycocotools import mask as reference

from sigak import data
from sigak.augment.pipeline import Pipeline
from sigak.data import scenes
from sigak.data.classmaps import paint
from sigak.data.feed import Pictures
from sigak.data.objects import Objects
from sigak.data.records import Dataset, Record, Split
from sigak.io.image import Preparation
from sigak.structures import IGNORE, Batch, SigakError

SIZE = (40, 60)
# pycocotools is older than NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def objects(*rows, crowd=None):
    """(label, outline) each; boxes around all."""
    return Objects(
        np.tile([0.0, 0.0, 60.0, 40.0], (len(rows), 1)),
        np.array([label for label, _ in rows]),
        outlines=[outline for _, outline in rows],
        crowd=None if crowd is None else np.array(crowd),
    )


def box(x1, y1, x2, y2):
    return [np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]], float)]


def test_small_lies_on_large_and_crowds_below():
    found = paint(
        objects(
            (0, box(10, 10, 20, 20)), (1, box(0, 0, 40, 40)), (2, box(5, 5, 12, 12)),
            crowd=[False, False, True],
        ),
        SIZE,
    )  # fmt: skip
    assert found[15, 15] == 1
    assert found[11, 11] == 1
    assert found[6, 6] == 2  # a crowd is covered even by larger objects
    assert found[39, 59] == 0


def test_polygons_and_codes_are_cocos_pixels():
    rng = np.random.default_rng(0)
    for _ in range(20):
        corners = rng.uniform(-5, 65, (rng.integers(3, 9), 2))  # many cross themselves
        theirs = reference.decode(
            reference.merge(reference.frPyObjects([corners.ravel().tolist()], *SIZE))
        )
        np.testing.assert_array_equal(paint(objects((0, [corners])), SIZE), theirs)
        packed = reference.encode(np.asfortranarray(theirs))
        for code in (packed, packed | {"counts": packed["counts"].decode()}):
            np.testing.assert_array_equal(paint(objects((0, dict(code))), SIZE), theirs)


def test_what_is_known_by_its_box_alone_is_ignored():
    found = paint(Objects(np.array([[5.0, 5.0, 10.0, 10.0]]), np.array([3]), outlines=[[]]), SIZE)
    assert (found == IGNORE).sum() == 25
    assert (found == 0).sum() == 40 * 60 - 25


def test_damaged_codes_are_told():
    for code in ({"size": [4, 4], "counts": [0, 16]}, {"size": [40, 60], "counts": [0, 5]}):
        with pytest.raises(SigakError, match="run-length code"):
            paint(objects((0, code)), SIZE)


def test_scenes_become_class_maps():
    found = data.provide(data.load("scenes:3@64"), ("class_map",))
    assert found.classes == ["background", *scenes.CLASSES]
    assert found.kind == "class_map"
    for at, record in enumerate(found.splits["train"].records):
        _, truth = scenes.render(0, at, (64, 64))
        class_map = record.class_map.read()
        counts = np.bincount(class_map.ravel(), minlength=11)
        for label in range(10):
            assert counts[label + 1] == truth.areas[truth.labels == label].sum()


def test_what_cannot_be_painted_is_told():
    with pytest.raises(SigakError, match="digits has a class for each whole picture"):
        data.provide(data.load("digits"), ("class_map",))
    boxes = Objects(np.array([[0.0, 0.0, 5.0, 5.0]]), np.array([0]))
    split = Split("train", [Record("a.png", objects=boxes, size=SIZE)])
    with pytest.raises(SigakError, match="boxes alone"):
        data.provide(Dataset("set", ["a"], {"train": split}), ("class_map",))
    assert data.provide(Dataset("set", ["a"], {"train": split}), ("objects",)).kind == "objects"


def test_maps_go_where_their_pictures_go():
    """Through the fit to the canvas, and through the augmentation: pixels and classes that agreed
    agree still, and what lies outside is ignored.
    """
    rng = np.random.default_rng(1)
    classes = rng.integers(0, 3, (6, 8)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
    pixels = (classes * 100)[None, ..., None].repeat(3, 3)
    outlines = [
        (label - 1, dict(reference.encode(np.asfortranarray(classes == label)))) for label in (1, 2)
    ]
    records = [Record("set#0", objects=objects(*outlines), size=(48, 64))]
    dataset = Dataset("set", ["one", "two"], {"train": Split("train", records, pixels)})
    split = data.provide(dataset, ("class_map",)).splits["train"]
    np.testing.assert_array_equal(split.records[0].class_map.read(), classes)
    loaded = Pictures(split, Preparation((96, 96), fit="letterbox"), Batch.of).load().resident
    assert loaded.class_maps.shape == (1, 96, 96)
    beside = loaded.class_maps[0].numpy() == IGNORE
    assert beside.sum() == 96 * 24  # the bars above and below
    np.testing.assert_array_equal(loaded.truth_maps[0](), classes)
    for spec in ("none", "flip=h,rotate=20,zoom=0.2,shift=0.1"):
        moved = Pipeline.parse(spec, size=(96, 96))(loaded, 0, 3)
        maps, seen = moved.class_maps[0].numpy(), moved.images[0, 0].numpy()
        known = maps != IGNORE
        agree = (np.rint(seen[known] / 100) == maps[known]).mean()
        assert agree > 0.93  # all but the mixed pixels at edges
    assert not known.all()
