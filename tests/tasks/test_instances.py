"""Instance segmentation's task: masks from the canvas to the file, and what is said of them."""

import json
from dataclasses import replace

import numpy as np
import pycocotools.mask as reference
import pytest
import torch

from sigak import data, draw, tasks
from sigak.data import Record, Split
from sigak.data.feed import Pictures
from sigak.data.objects import Objects, to_instances
from sigak.io import image
from sigak.models._detector import Detector
from sigak.models._prototypes import Mixed
from sigak.recipe import Recipe
from sigak.structures import Batch, Instances, Masks, Sample, SigakError
from sigak.tasks.detect import Detections, coco_rows, yolo_lines

CLASSES = ["cat", "dog", "fox"]
FRAME = (40, 80)
# A step: the upper half of its box is only half as wide.
STEP = np.array([[20.0, 10], [40, 10], [40, 20], [60, 20], [60, 30], [20, 30]])


class Told(Detector):
    """Says the boxes of the truth, and prototypes at a quarter of the canvas that are its masks."""

    nms_iou = 0.5

    def __init__(self, truth):
        super().__init__()
        self.truth = truth

    def raw(self, images):
        planes = torch.nn.functional.avg_pool2d(self.truth.masks.planes().float(), 4) - 0.5
        return [torch.cat([planes, torch.zeros(32 - len(planes), *planes.shape[1:])])[None]]

    def decode(self, raw, size, conf):
        count = len(self.truth)
        soft = Mixed(torch.eye(32)[:count], raw[0][0])
        scores = torch.linspace(0.9, 0.7, count)
        return [Instances(self.truth.boxes, self.truth.labels, scores, soft=soft)]

    def loss(self, raw, truth, size):
        return {"loss": raw[0].sum()}


class Ran:
    def __init__(self, network):
        self.network = network

    def __call__(self, images):
        return self.network(images)


def sample(outlines, boxes, fit="letterbox", size=(64, 64), crowd=None):
    preparation = image.Preparation(size, fit=fit)
    pixels, matrix, whole = image.load(np.zeros((*FRAME, 3), np.uint8), preparation)
    made = Sample(pixels, "folder/7.jpg", 0, matrix=matrix, size=whole)
    objects = Objects(np.array(boxes, float), np.arange(len(boxes)), outlines=outlines, crowd=crowd)
    made.truth = to_instances(objects, None, whole, masks=True)
    made.instances = to_instances(objects, matrix, pixels.shape[:2], masks=True)
    return made


def task(**choices):
    return tasks.create("instances", CLASSES, Recipe()).answering(**choices)


def answer(made, **choices):
    told = task(**choices)
    batch = told.collate([made]).floating()
    return told.predict(Ran(Told(made.instances)), batch)[0], batch


def step():
    return sample([[STEP]], [[20.0, 10, 60, 30]])


@pytest.mark.parametrize("fit", ["letterbox", "corner", "rect", "squash"])
def test_masks_come_back_into_the_file(fit):
    made = sample([[STEP]], [[20.0, 10, 60, 30]], fit, (160, 160))
    found, _ = answer(made)
    assert found.instances.masks.size == FRAME
    [mine], [theirs] = found.instances.masks.planes(), made.truth.masks.planes()
    assert (mine & theirs).sum() / (mine | theirs).sum() > 0.9


def test_a_good_answer_scores_one():
    made = step()
    found, batch = answer(made)
    metric = task().metric()
    metric.update([found], batch)
    figures = metric.compute()
    assert figures["map"] == figures["mask_map50"] == 1.0
    assert figures["per_class"][0]["mask_ap50"] == 1.0
    assert figures["per_class"][1]["mask_ap"] is None
    followed = metric.compute(detail=False)
    assert {"map", "mask_map", "mask_map50"} <= followed.keys()
    assert task().monitor(validated=True) == "val_mask_map"


def test_said_in_files(tmp_path):
    found, _ = answer(step())
    [one] = found.asdict()["objects"]
    [polygon] = one["polygons"]
    corners = np.array(polygon).reshape(-1, 2)
    assert np.abs(corners.min(0) - [20, 10]).max() <= 1
    assert np.abs(corners.max(0) - [60, 30]).max() <= 1
    line = yolo_lines(found).split()
    assert line[0] == "0"
    assert float(line[-1]) == pytest.approx(0.9)
    shares = np.array(line[1:-1], float).reshape(-1, 2)
    np.testing.assert_allclose(shares * [80, 40], corners, atol=1e-3)
    [row] = coco_rows([found])
    plane = found.instances.masks.planes()[0].numpy()
    assert reference.area(row["segmentation"]) == plane.sum()
    assert row["bbox"] == [20.0, 10.0, 40.0, 20.0]
    paths = task().save([found], tmp_path, ["txt", "coco"])
    assert sorted(p.name for p in paths) == ["7.txt", "coco.json", "predictions.json"]
    assert json.loads((tmp_path / "coco.json").read_text()) == [row]


def test_drawn_over_the_picture():
    found, _ = answer(step())
    black = np.zeros((*FRAME, 3), np.uint8)
    drawn = draw.masks(black, found.instances.masks, [0])
    assert 0 < drawn[25, 50].max() < 200  # the colour lies over the picture, which shows through
    assert not drawn[14, 52].any()  # in the box, not in the mask
    assert (drawn.any(2) == found.instances.masks.planes()[0].numpy()).all()
    assert task().draw(black, found)[12:29, 20:40].any(2).mean() > 0.9
    with pytest.raises(SigakError, match="masks of 40 x 80 do not fit a picture of 8 x 8"):
        task().draw(np.zeros((8, 8, 3), np.uint8), found)


def test_handed_to_supervision():
    pytest.importorskip("supervision")
    found, _ = answer(step())
    theirs = found.to_supervision()
    assert theirs.mask.shape == (1, *FRAME)
    assert (theirs.mask == found.instances.masks.planes().numpy()).all()


def test_masks_go_with_their_boxes():
    two = sample([[STEP], [STEP + np.array([10.0, 0])]], [[20.0, 10, 60, 30], [30, 10, 70, 30]])
    found, _ = answer(two, classes=["dog"])
    assert found.instances.labels.tolist() == [1]
    mine = found.instances.masks.planes()[0]
    theirs = two.truth.masks.planes()[1]
    assert (mine & theirs).sum() / (mine | theirs).sum() > 0.85


def test_objects_without_an_outline_are_crowds():
    made = sample([[STEP], []], [[20.0, 10, 60, 30], [0, 0, 8, 6]], crowd=np.array([False, False]))
    assert made.truth.crowd.tolist() == made.instances.crowd.tolist() == [False, True]
    assert made.truth.masks.areas()[1] == 48
    seen = []

    class Watched(Told):
        def loss(self, raw, truth, size):
            seen.extend(truth)
            return super().loss(raw, truth, size)

    told = task()
    list(told.steps(Watched(made.instances), told.collate([made]).floating()))
    assert seen[0].labels.tolist() == [0]
    bare = replace(made, instances=replace(made.instances, masks=None))
    with pytest.raises(SigakError, match="learns from outlines"):
        list(told.steps(Watched(made.instances), told.collate([bare]).floating()))


def test_a_set_of_boxes_alone_is_refused():
    objects = Objects(np.array([[1.0, 1, 5, 5]]), np.array([0]))
    split = Split("train", [Record("x#0", objects=objects)], np.zeros((1, 8, 8, 3), np.uint8))
    with pytest.raises(SigakError, match=r"train: expected objects with outlines.*boxes alone"):
        Pictures(split, image.Preparation((8, 8)), Batch.of, masks=True)
    assert len(Pictures(split, image.Preparation((8, 8)), Batch.of).load()) == 1


def test_masks_are_made_only_where_they_are_asked_for():
    split = data.load("scenes:2@32").splits["train"]
    preparation = image.Preparation((32, 32))
    plain = Pictures(split, preparation, Batch.of).load().resident
    assert all(one.masks is None for one in [*plain.instances, *plain.truth])
    filled = Pictures(split, preparation, Batch.of, masks=True).load().resident
    for one, record in zip(filled.truth, split.records):
        assert one.masks.areas().tolist() == record.objects.areas.tolist()


def test_a_picture_of_one_pixel():
    whole = np.array([[0.0, 0], [1, 0], [1, 1], [0, 1]])
    objects = Objects(np.array([[0.0, 0, 1, 1]]), np.array([0]), outlines=[[whole]])
    preparation = image.Preparation((32, 32))
    pixels, matrix, frame = image.load(np.zeros((1, 1, 3), np.uint8), preparation)
    made = Sample(pixels, "1.png", 0, matrix=matrix, size=frame)
    made.truth = to_instances(objects, None, frame, masks=True)
    made.instances = to_instances(objects, matrix, (32, 32), masks=True)
    found, _ = answer(made)
    assert found.size == (1, 1)
    assert found.instances.masks.planes().tolist() == [[[True]]]


def test_nothing_found():
    none = Instances(
        torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0),
        masks=Masks.of(np.zeros((0, 4, 4), bool)),
    )  # fmt: skip
    empty = Detections("7.jpg", none, tuple(CLASSES), (4, 4))
    assert empty.asdict()["objects"] == []
    assert yolo_lines(empty) == ""
    assert coco_rows([empty]) == []
    assert not task().draw(np.zeros((4, 4, 3), np.uint8), empty).any()
