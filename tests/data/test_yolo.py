"""YOLO: layouts of data.yaml, label files, everything that can be wrong in them."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sigak.data import load, yolo
from sigak.structures import SigakError

YAML = "path: .\ntrain: images/train\nval: images/val\nnames: [cat, dog]\n"


def picture(path, size=(40, 20), orientation=None):
    """A picture of (width, height) as it is stored."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size, (len(path.stem), 90, 200))
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    image.save(path, exif=exif.tobytes())


def write(root, files, yaml=YAML):
    """A set below `root`: label text by "split/name"."""
    for name, text in files.items():
        picture(root / f"images/{name}.jpg")
        if text is not None:
            target = root / f"labels/{name}.txt"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")
    (root / "data.yaml").write_text(yaml, encoding="utf-8")
    return root / "data.yaml"


def boxes(data, split="train"):
    return [record.objects.boxes.tolist() for record in data.splits[split].records]


def told(data):
    return [(Path(p.source).name, p.reason, p.action) for p in data.problems]


def test_a_set_is_read(tmp_path):
    path = write(tmp_path, {"train/a": "1 0.5 0.5 0.25 0.5\n0 0.25 0.25 0.5 0.5\n", "val/b": ""})
    data = yolo.read(path)
    assert data.classes == ["cat", "dog"]
    assert data.kind == "objects"
    assert data.root == tmp_path
    assert data.problems == []
    [record] = data.splits["train"].records
    assert record.size == (20, 40)
    assert record.objects.labels.tolist() == [1, 0]
    assert record.objects.boxes.tolist() == [[15, 5, 25, 15], [0, 0, 20, 10]]
    assert boxes(data, "val") == [[]]
    assert boxes(yolo.read(tmp_path)) == boxes(load(path)) == boxes(data)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("2 .5 .5 .2 .2", "class 2 is not one of 0 to 1"),
        ("-1 .5 .5 .2 .2", "class -1"),
        ("0.5 .5 .5 .2 .2", "class as a whole number"),
        ("0 nan .5 .2 .2", "not finite"),
        ("0 inf .5 .2 .2", "shares from 0 to 1"),
        ("0 320 240 50 60", "pixels?"),
        ("0 .5 .5 .2", "received 4"),
        ("0 .5 .5 .2 .2 .9", "received 6"),
        ("0,.5,.5,.2,.2", "expected numbers"),
        ("zebra crossing", "expected numbers"),
        ("0 .5 .5 0 .2", "no area"),
        ("0 1.5 .5 .2 .2", "outside of the picture"),
        ("1 .25 .25 .5 .5", "the same as"),
    ],
)
def test_a_bad_line_costs_that_line(tmp_path, line, reason):
    path = write(tmp_path, {"train/a": f"1 .25 .25 .5 .5\n\n{line}\n0 .5 .5 .5 .5\n", "val/b": ""})
    data = yolo.read(path)
    assert data.splits["train"].records[0].objects.labels.tolist() == [1, 0]
    [(place, why, action)] = told(data)
    assert place == "a.txt:3"
    assert reason in why
    assert action == "left out"
    with pytest.raises(SigakError, match=r"1 mistakes in all, the first in .*a\.txt:3"):
        yolo.read(path, strict=True)


@pytest.mark.parametrize(
    ("line", "box", "action"),
    [
        ("0 .5 .5 -.5 .5", [10, 5, 30, 15], "corners swapped"),
        ("0 .9 .5 .4 .5", [28, 5, 40, 15], "clipped"),
    ],
)
def test_a_box_is_mended(tmp_path, line, box, action):
    data = yolo.read(write(tmp_path, {"train/a": line, "val/b": ""}))
    np.testing.assert_allclose(boxes(data)[0], [box])
    assert told(data)[0][2] == action


def test_rounding_beyond_the_edge_is_no_problem(tmp_path):
    data = yolo.read(write(tmp_path, {"train/a": "0 .5 .5 1.02 1.02\n", "val/b": ""}))
    np.testing.assert_allclose(boxes(data)[0], [[-0.4, -0.2, 40.4, 20.2]])
    assert data.problems == []


def test_an_outline_gives_a_box(tmp_path):
    text = "0 .25 .5 .5 .25 .75 1\n1 .5 .5 .1 .1\n"
    [record] = yolo.read(write(tmp_path, {"train/a": text, "val/b": ""})).splits["train"].records
    np.testing.assert_allclose(record.objects.boxes, [[10, 5, 30, 20], [18, 9, 22, 11]])
    assert record.objects.outlines[0][0].tolist() == [[10, 10], [20, 5], [30, 20]]
    assert record.objects.outlines[1] == []


@pytest.mark.parametrize(
    ("numbers", "seen"), [(3, [[4, 2, 1], [0, 0, 0]]), (2, [[4, 2, 2], [0, 0, 0]])]
)
def test_points(tmp_path, numbers, seen):
    points = "0.1 0.1 1 0 0 0" if numbers == 3 else "0.1 0.1 0 0"
    yaml = YAML + f"kpt_shape: [2, {numbers}]\n"
    text = f"0 .5 .5 .5 .5 {points}\n0 .5 .5 .4 .4\n"
    data = yolo.read(write(tmp_path, {"train/a": text, "val/b": ""}, yaml))
    assert data.splits["train"].records[0].objects.points.tolist() == [seen]
    assert told(data)[0][0] == "a.txt:2"


def test_a_turned_picture_is_read_as_it_is_seen(tmp_path):
    path = write(tmp_path, {"train/a": "0 .5 .25 1 .5\n", "val/b": ""})
    picture(tmp_path / "images/train/a.jpg", orientation=6)
    [record] = yolo.read(path).splits["train"].records
    assert record.size == (40, 20)
    assert record.objects.boxes.tolist() == [[0, 0, 20, 20]]


def test_damaged_and_missing_pictures_are_told(tmp_path):
    path = write(tmp_path, {"train/a": "0 .5 .5 1 1", "train/b": "0 .5 .5 1 1", "val/c": ""})
    (tmp_path / "images/train/b.jpg").write_bytes(b"no picture")
    (tmp_path / "labels/train/lost.txt").write_text("0 .5 .5 1 1")
    data = yolo.read(path)
    assert len(data.splits["train"]) == 1
    assert [action for _, _, action in told(data)] == ["picture skipped", "ignored"]
    assert "lost.txt" in told(data)[1][1]


def test_pictures_without_a_label_file_have_no_objects(tmp_path):
    path = write(tmp_path, {"train/a": "0 .5 .5 1 1", "train/b": None, "val/c": ""})
    data = yolo.read(path, strict=True)  # backgrounds are no mistake
    assert boxes(data) == [[[0, 0, 40, 20]], []]
    assert "1 pictures of train have no label file" in told(data)[0][1]
    (tmp_path / "labels/train/a.txt").unlink()
    with pytest.raises(SigakError, match="no picture of train has a label file"):
        yolo.read(path)


@pytest.mark.parametrize(
    "train",
    [
        "images/train/",
        "[images/train/a.jpg, images/train/b.jpg]",
        "images/train/*.jpg",
        "list.txt",
        "../images/train",
    ],
)
def test_ways_to_name_pictures(tmp_path, train):
    path = write(tmp_path, {"train/a": "0 .5 .5 1 1", "train/b": "", "val/c": ""})
    (tmp_path / "list.txt").write_text("./images/train/a.jpg\nimages/train/b.jpg\n\nlost.jpg\n")
    path.write_text(f"train: {train}\nnames: {{0: cat, 1: dog}}\n")
    data = yolo.read(path)
    assert [os.path.basename(r.source) for r in data.splits["train"].records] == ["a.jpg", "b.jpg"]
    expected = {"list.txt": ["list.txt:4"], "../images/train": ["data.yaml"]}.get(train, [])
    assert [place for place, _, _ in told(data)] == expected


def test_labels_beside_the_pictures_and_a_path_from_the_yaml(tmp_path):
    picture(tmp_path / "set/train/a.png")
    (tmp_path / "set/train/a.txt").write_text("0 .5 .5 1 1")
    (tmp_path / "yaml").mkdir()
    (tmp_path / "yaml/my.yaml").write_text("path: ../set\ntrain: train\nnc: 1\n")
    data = yolo.read(tmp_path / "yaml/my.yaml")
    assert data.classes == ["0"]
    assert boxes(data) == [[[0, 0, 40, 20]]]


@pytest.mark.parametrize(
    ("names", "classes", "problems"),
    [
        ("names: [no, 1]\nnc: 2", ["no", "1"], 0),
        ("names: [cat]\nnc: 3", ["cat", "1", "2"], 1),
        ("names: [cat, dog]\nnc: 1", ["cat", "dog"], 1),
        ("names: {0: cat, 2: dog}", ["cat", "1", "dog"], 1),
        ("names: [cat, cat, cat 2]", ["cat", "cat 3", "cat 2"], 1),
    ],
)
def test_class_names(tmp_path, names, classes, problems):
    path = write(tmp_path, {"train/a": "0 .5 .5 1 1"}, f"train: images/train\n{names}\n")
    data = yolo.read(path)
    assert data.classes == classes
    assert len(data.problems) == problems


def test_a_classes_txt_that_says_otherwise_is_told(tmp_path):
    path = write(tmp_path, {"train/a": "0 .5 .5 1 1", "val/b": ""})
    (tmp_path / "labels/train/classes.txt").write_text("dog\ncat\n")
    [(place, reason, _)] = told(yolo.read(path))
    assert place == "classes.txt"
    assert "(dog, cat)" in reason


def test_single_class(tmp_path):
    data = yolo.read(write(tmp_path, {"train/a": "1 .5 .5 1 1", "val/b": ""}), single_class=True)
    assert data.classes == ["object"]
    assert data.splits["train"].records[0].objects.labels.tolist() == [0]


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("names: [a]\n", "expected train, val or test"),
        ("train: images/train\n", "expected class names"),
        ("train: nowhere\nnames: [a]\n", "names no folder and no file"),
        ("train: [", "cannot be read as YAML"),
        ("just text", "expected keys"),
        (
            "train: images/train\nnames: !!python/object/apply:os.getcwd []\n",
            "expected class names",
        ),
        ("train: images/train\nnc: many\n", "expected nc as a whole number"),
        ("train: images/train\nnc: 1\nkpt_shape: [17]\n", "expected kpt_shape"),
    ],
)
def test_a_yaml_that_cannot_be_used(tmp_path, yaml, message):
    path = write(tmp_path, {"train/a": "0 .5 .5 1 1"}, yaml)
    with pytest.raises(SigakError, match=message):
        yolo.read(path)


def test_a_test_split_that_is_not_there_is_told(tmp_path):
    path = write(tmp_path, {"train/a": "0 .5 .5 1 1", "val/b": ""}, YAML + "test: nowhere\n")
    data = yolo.read(path)
    assert list(data.splits) == ["train", "val"]
    assert [action for _, _, action in told(data)] == ["no test split"]


@pytest.mark.data
def test_the_real_set():
    data = yolo.read(Path(os.environ["SIGAK_DATA"], "guns-yolo/data.yaml"))
    counts = {n: (len(s), sum(len(r.objects) for r in s.records)) for n, s in data.splits.items()}
    assert counts == {"train": (266, 347), "val": (67, 81)}
    assert [(place, action) for place, _, action in told(data)] == [("70.txt:1", "clipped")]
