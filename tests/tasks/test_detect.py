"""Detection's task: from raw answers on a canvas to boxes in the file."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sigak import tasks
from sigak.data.objects import Objects, to_instances
from sigak.io import image
from sigak.models._detector import Detector, candidates
from sigak.recipe import Recipe
from sigak.structures import Instances, Sample, SigakError
from sigak.tasks.detect import coco_rows, yolo_lines

CLASSES = ["cat", "dog", "fox"]


class Told(Detector):
    """A detector whose raw output is what it says: rows of x1, y1, x2, y2 and a score a class."""

    nms_iou = 0.5

    def __init__(self, rows):
        super().__init__()
        self.rows = torch.tensor(rows, dtype=torch.float32)

    def raw(self, images):
        return self.rows.expand(len(images), *self.rows.shape)

    def decode(self, raw, size, conf):
        return candidates(raw[..., :4], raw[..., 4:], conf)


class Ran:
    def __init__(self, network):
        self.network = network

    def __call__(self, images):
        return self.network(images)


def sample(fit="letterbox", size=(64, 64), frame=(40, 80), objects=None):
    preparation = image.Preparation(size, fit=fit)
    pixels, matrix, whole = image.load(np.zeros((*frame, 3), np.uint8), preparation)
    made = Sample(pixels, "folder/7.jpg", 0, matrix=matrix, size=whole)
    if objects is not None:
        made.truth = to_instances(objects)
        made.instances = to_instances(objects, matrix, pixels.shape[:2])
    return made


def task(**choices):
    return tasks.create("detect", CLASSES, Recipe()).answering(**choices)


def answer(rows, made, **choices):
    told = task(**choices)
    return told.predict(Ran(Told(rows)), told.collate([made]).floating())[0]


def test_boxes_come_back_into_the_file():
    # 40 x 80 in 64 x 64: scale .8, 16 rows of gray above.
    found = answer([[8.0, 24.0, 40.0, 40.0, 0.1, 0.9, 0.2]], sample())
    assert found.instances.boxes.tolist() == [[10.0, 10.0, 50.0, 30.0]]
    assert found.instances.labels.tolist() == [1]
    assert found.size == (40, 80)


@pytest.mark.parametrize("fit", ["letterbox", "corner", "rect", "squash"])
def test_every_fit_comes_back(fit):
    objects = Objects(np.array([[10.0, 5.0, 70.0, 38.0]]), np.array([2]))
    made = sample(fit, objects=objects)
    canvas = made.instances.boxes[0].tolist()
    found = answer([[*canvas, 0.0, 0.0, 1.0]], made)
    np.testing.assert_allclose(found.instances.boxes, objects.boxes, atol=1e-4)


def test_boxes_stay_inside_the_file():
    found = answer([[-50.0, -50.0, 500.0, 500.0, 0.9, 0.0, 0.0]], sample())
    assert found.instances.boxes.tolist() == [[0.0, 0.0, 80.0, 40.0]]


def test_doubled_boxes_go_by_class_and_threshold():
    rows = [
        [10.0, 20.0, 30.0, 40.0, 0.9, 0.0, 0.0],
        [10.0, 20.0, 30.0, 39.0, 0.8, 0.7, 0.0],  # overlap .95; another class stays
        [10.0, 20.0, 30.0, 32.0, 0.6, 0.0, 0.0],  # overlap .6
        [40.0, 20.0, 50.0, 40.0, 0.2, 0.0, 0.0],  # below the default confidence
    ]

    def scores(**choices):
        return [round(s, 2) for s in answer(rows, sample(), **choices).scores.tolist()]

    assert scores() == [0.9, 0.7]
    assert scores(iou=0.7) == [0.9, 0.7, 0.6]
    assert scores(conf=0.1) == [0.9, 0.7, 0.2]
    assert scores(conf=0.75, iou=0.99) == [0.9, 0.8]
    assert scores(classes=["dog"]) == [0.7]


def test_choices_are_checked():
    with pytest.raises(SigakError, match="--conf must be between 0 and 1, received 25"):
        task(conf=25)
    with pytest.raises(SigakError, match=r"--classes names 'cow'.*it knows cat, dog, fox"):
        task(classes=["cow"])
    with pytest.raises(
        SigakError, match="--conf says nothing to a checkpoint of the task classify"
    ):
        tasks.create("classify", CLASSES, Recipe()).answering(conf=0.5)


def test_said_in_words_and_files(tmp_path):
    rows = [[8.0, 24.0, 40.0, 40.0, 0.0, 0.9, 0.0], [0.0, 16.0, 8.0, 24.0, 0.0, 0.5, 0.0]]
    found = answer(rows, sample())
    assert str(found) == "2 dog 90.0%"
    assert str(answer([[0.0] * 7], sample())) == "nothing found"
    first = found.asdict()["objects"][0]
    assert first == {
        "label": "dog",
        "class_id": 1,
        "score": pytest.approx(0.9),
        "box": [10, 10, 50, 30],
    }
    assert yolo_lines(found).splitlines()[0] == "1 0.375000 0.500000 0.500000 0.500000 0.900000"
    assert coco_rows([found])[0]["image_id"] == 7
    assert coco_rows([found])[0]["bbox"] == [10.0, 10.0, 40.0, 20.0]
    paths = task().save([found], tmp_path, ["txt", "coco"])
    assert sorted(p.relative_to(tmp_path).as_posix() for p in paths) == [
        "coco.json", "labels/7.txt", "predictions.json",
    ]  # fmt: skip
    assert json.loads((tmp_path / "predictions.json").read_text())[0]["size"] == [40, 80]
    assert Path(tmp_path / "labels/7.txt").read_text() == yolo_lines(found)


def test_drawn_on_the_file():
    found = answer([[8.0, 24.0, 40.0, 40.0, 0.0, 0.9, 0.0]], sample())
    drawn = task().draw(np.zeros((40, 80, 3), np.uint8), found)
    assert drawn.shape == (40, 80, 3)
    assert drawn[29, 30].any()  # the lower edge of the box
    assert not drawn[35, 70].any()


def test_crowds_are_not_learnt():
    seen = []

    class Watched(Told):
        def loss(self, raw, truth, size):
            seen.extend(truth)
            return {"loss": raw.sum()}

    objects = Objects(
        np.array([[0.0, 0.0, 40.0, 20.0], [20.0, 5.0, 60.0, 30.0]]),
        np.array([0, 1]),
        crowd=np.array([True, False]),
    )
    made = task()
    batch = made.collate([sample(objects=objects)]).floating()
    ((name, losses),) = made.steps(Watched([[0.0] * 7]), batch)
    assert name == "main"
    assert "loss" in losses
    assert seen[0].labels.tolist() == [1]


def test_pictures_without_boxes_cannot_teach():
    with pytest.raises(SigakError, match="detection learns from boxes"):
        list(task().steps(Told([[0.0] * 7]), task().collate([sample()]).floating()))


def test_a_perfect_answer_scores_one():
    objects = Objects(np.array([[10.0, 5.0, 70.0, 38.0], [1.0, 2.0, 9.0, 12.5]]), np.array([2, 0]))
    made = sample(objects=objects)
    told, metric = task(), task().metric()
    batch = told.collate([made]).floating()
    rows = [
        [*box, *(float(k == label) for k in range(3))]
        for box, label in zip(made.instances.boxes.tolist(), made.instances.labels.tolist())
    ]
    metric.update(told.predict(Ran(Told(rows)), batch), batch)
    figures = metric.compute()
    assert figures["map"] == figures["map50"] == 1.0


def test_candidates_may_be_of_several_classes():
    boxes = torch.arange(8.0).reshape(1, 2, 4)
    found = candidates(boxes, torch.tensor([[[0.9, 0.6], [0.1, 0.3]]]), 0.5)[0]
    assert isinstance(found, Instances)
    assert found.labels.tolist() == [0, 1]
    assert found.boxes.tolist() == [[0, 1, 2, 3], [0, 1, 2, 3]]
