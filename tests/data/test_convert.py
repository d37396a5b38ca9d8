"""Sets are written in every format and read again: what the formats carry comes back."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from sigak.data import Dataset, Objects, Record, Split, coco, voc, yolo
from sigak.data.convert import FORMATS, convert
from sigak.structures import SigakError

READ = {"yolo": yolo.read, "coco": coco.read, "voc": voc.read}


def make(root, boxes=((1, 2, 11.5, 12.25),), size=(20, 40), **facts):
    """A set of one picture a split."""
    boxes = np.array(boxes, np.float64).reshape(-1, 4)
    objects = Objects(boxes, np.arange(len(boxes)) % 2, **facts)
    splits = {}
    for name in ("train", "val"):
        source = root / f"{name}-a.png"
        root.mkdir(exist_ok=True)
        Image.new("L", size[::-1]).save(source)
        splits[name] = Split(name, [Record(str(source), objects=objects, size=size)])
    return Dataset("made", ["cat", "no"], splits, root=root)


def first(data, split="train"):
    return data.splits[split].records[0].objects


def texts(folder):
    """Every annotation file below a folder, by name."""
    kinds = (".txt", ".yaml", ".json", ".xml")
    found = sorted(p for p in Path(folder).rglob("*") if p.suffix in kinds)
    return {p.relative_to(folder).as_posix(): p.read_text("utf-8") for p in found}


@pytest.mark.parametrize("to", FORMATS)
def test_what_is_written_is_read_again(tmp_path, to):
    boxes = [[1, 2, 11.5, 12.25], [0, 0, 40, 20], [-0.5, 3, 7, 20.5]]
    done = convert(make(tmp_path / "made", boxes), tmp_path / "out", to)
    assert done.pictures == {"train": 1, "val": 1}
    assert done.objects == {"train": 3, "val": 3}
    assert done.lost == done.problems == []
    data = READ[to](tmp_path / "out", strict=True)
    assert data.classes == ["cat", "no"]
    for split in ("train", "val"):
        np.testing.assert_allclose(first(data, split).boxes, boxes, rtol=0, atol=1e-9)
        assert first(data, split).labels.tolist() == [0, 1, 0]
        assert Path(data.splits[split].records[0].source).name == f"{split}-a.png"


@pytest.mark.parametrize("form", FORMATS)
def test_all_objects_become_one_class(tmp_path, form):
    made = make(tmp_path / "made", [[1, 2, 11.5, 12.25], [0, 0, 40, 20]])
    convert(made, tmp_path / "two", form)
    for source, place in ((made, "of-a-set"), (tmp_path / "two", "of-files")):
        convert(source, tmp_path / place, "coco", single_class=True)
        data = coco.read(tmp_path / place, strict=True)
        assert data.classes == ["object"]
        assert first(data).labels.tolist() == [0, 0]
    assert made.classes == ["cat", "no"]
    assert first(made).labels.tolist() == [0, 1]


corner = st.floats(0, 900, allow_nan=False, width=32)
side = st.floats(0.0625, 90, allow_nan=False, width=32)
rows = st.lists(st.tuples(corner, corner, side, side), min_size=2, max_size=5, unique=True)


@pytest.mark.parametrize("to", FORMATS)
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(rows=rows)
def test_writing_again_gives_the_same_text(tmp_path_factory, to, rows):
    folder = tmp_path_factory.mktemp("trip")
    boxes = [[x, y, x + w, y + h] for x, y, w, h in rows]
    convert(make(folder / "made", boxes, size=(997, 991)), folder / "one", to)
    data = READ[to](folder / "one")
    np.testing.assert_allclose(first(data).boxes, boxes, rtol=0, atol=1e-6)
    convert(folder / "one", folder / "two", to)
    assert texts(folder / "one") == texts(folder / "two")


def test_yolo_text_of_six_digits_survives_every_format(tmp_path):
    convert(make(tmp_path / "made", size=(333, 477)), tmp_path / "start", "yolo")
    line = "0 0.827381 0.485003 0.285714 0.103333\n1 0.39 0.386905 0.72 0.5\n"
    (tmp_path / "start/labels/train/train-a.txt").write_text(line)
    source = tmp_path / "start"
    for step, to in enumerate(("coco", "voc", "yolo")):
        convert(source, tmp_path / str(step), to)
        source = tmp_path / str(step)
    assert (source / "labels/train/train-a.txt").read_text() == line


def test_coco_gets_back_what_it_said(tmp_path):
    shape = [np.array([[1, 2], [11.5, 2], [1, 12.25]])]
    facts = {
        "crowd": np.array([False, True]),
        "areas": np.array([51.17, 9.0]),
        "outlines": [shape, {"size": [20, 40], "counts": [0, 5, 795]}],
        "points": np.array([[[3.0, 4, 2]], [[0, 0, 0]]]),
        "marks": {"id": np.array([31, 17]), "pose": np.array(["Left", ""])},
    }
    made = make(tmp_path / "made", [[1, 2, 11.5, 12.25], [0, 0, 3, 3]], **facts)
    convert(made, tmp_path / "one", "coco")
    again = first(coco.read(tmp_path / "one"))
    assert again.crowd.tolist() == [False, True]
    assert again.areas.tolist() == [51.17, 9.0]
    assert again.outlines[0][0].tolist() == shape[0].tolist()
    assert again.outlines[1] == facts["outlines"][1]
    assert again.points.tolist() == facts["points"].tolist()
    assert again.marks["id"].tolist() == [31, 17]
    assert again.marks["pose"].tolist() == ["Left", ""]


def test_what_yolo_and_voc_lose_is_told(tmp_path):
    shape = [np.array([[1, 2], [11.5, 2], [1, 12.25]])]
    made = make(
        tmp_path / "made",
        [[1, 2, 11.5, 12.25], [0, 0, 3, 3], [5, 5, 9, 9]],
        crowd=np.array([False, True, False]),
        areas=np.ones(3),
        outlines=[shape, {"size": [20, 40], "counts": [800]}, [*shape, *shape]],
        marks={"id": np.arange(3)},
    )
    assert convert(made, tmp_path / "yolo", "yolo").lost == [
        "YOLO has no crowd flag: 2 crowd regions left out",  # one a split
        "2 outlines, of which YOLO has only the boxes",
        "YOLO has no areas of objects",
        "YOLO has no place for id",
    ]
    kept = first(yolo.read(tmp_path / "yolo"))
    np.testing.assert_allclose(kept.boxes, [[1, 2, 11.5, 12.25], [5, 5, 9, 9]], atol=1e-9)
    np.testing.assert_allclose(kept.outlines[0][0], shape[0], atol=1e-9)
    assert convert(made, tmp_path / "voc", "voc").lost == [
        "VOC has no crowd flag: 2 crowd regions left out",
        "VOC has no outlines of objects: 6 left out",
        "VOC has no areas of objects",
        "VOC names only classes that occur: no left out",
    ]


def test_marks_that_cannot_be_elements_stay_out_of_xml(tmp_path):
    marks = {"my key": np.array([1]), "name": np.array(["x"]), "note": np.array(["a<b>&"])}
    made = make(tmp_path / "made", marks=marks)
    assert "VOC has no place for my key, name" in convert(made, tmp_path / "out", "voc").lost
    again = first(voc.read(tmp_path / "out", strict=True))
    assert again.marks["note"].tolist() == ["a<b>&"]


def test_points_go_to_yolo(tmp_path):
    points = np.array([[[3.0, 4, 2], [5, 6, 1]]])
    convert(make(tmp_path / "made", points=points), tmp_path / "out", "yolo")
    np.testing.assert_allclose(first(yolo.read(tmp_path / "out")).points, points, atol=1e-9)


def test_equal_names_are_told_apart_and_decoded_pictures_saved(tmp_path):
    objects = Objects(np.array([[0.0, 0, 2, 2]]), np.array([0]))
    records = []
    for name in ("x/1.png", "y/1.png", "y/1.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name)
        records.append(Record(str(tmp_path / name), objects=objects))
    convert(Dataset("d", ["a"], {"train": Split("train", records)}), tmp_path / "out", "yolo")
    assert sorted(os.listdir(tmp_path / "out/images/train")) == ["1-2.png", "1-3.jpg", "1.png"]
    pixels = np.full((1, 4, 6, 3), 7, np.uint8)
    split = Split("train", [Record("made/train#0", objects=objects)], pixels)
    convert(Dataset("d", ["a"], {"train": split}), tmp_path / "pixels", "voc")
    [record] = voc.read(tmp_path / "pixels").splits["train"].records
    assert record.size == (4, 6)


def test_links_no_pictures_and_refusals(tmp_path):
    made = make(tmp_path / "made")
    convert(made, tmp_path / "linked", "yolo", link=True)
    assert os.path.samefile(
        tmp_path / "linked/images/train/train-a.png", tmp_path / "made/train-a.png"
    )
    convert(made, tmp_path / "bare", "coco", images=False)
    assert sorted(os.listdir(tmp_path / "bare")) == ["annotations"]
    with pytest.raises(SigakError, match="holds something already"):
        convert(made, tmp_path / "bare", "coco")
    with pytest.raises(SigakError, match="did you mean coco"):
        convert(made, tmp_path / "new", "cocoa")
    with pytest.raises(SigakError, match="does not exist"):
        convert(tmp_path / "nowhere", tmp_path / "new", "coco")
    convert(made, tmp_path / "yolo", "yolo")
    with pytest.raises(SigakError, match="lies within"):
        convert(tmp_path / "yolo", tmp_path / "yolo/coco", "coco")
    assert not (tmp_path / "new").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="files have no size limit there")
def test_a_disk_that_is_full_leaves_nothing_behind(tmp_path):
    convert(make(tmp_path / "made"), tmp_path / "yolo", "yolo")
    code = (
        "import resource, sys; from sigak.data.convert import convert\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (60, 60))\n"
        "convert(sys.argv[1], sys.argv[2], 'yolo')"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "yolo"), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "SigakError" in done.stderr
    assert "too large" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.data
def test_real_coco_numbers_come_back_to_the_last_digit(tmp_path):
    source = Path(os.environ["SIGAK_DATA"], "coco-mini/instances.json")
    convert(source, tmp_path / "out", "coco", link=False)
    one = json.loads(source.read_text())
    two = json.loads((tmp_path / "out/annotations/instances_train.json").read_text())
    by_id = {entry["id"]: entry for entry in two["annotations"]}
    assert all(by_id[entry["id"]] == entry for entry in one["annotations"])
    assert two["images"] == one["images"]
    assert two["categories"] == one["categories"]
    assert two["info"] == one["info"]


@pytest.mark.data
def test_real_voc_numbers_come_back(tmp_path):
    source = Path(os.environ["SIGAK_DATA"], "raccoon-voc")
    convert(source, tmp_path / "out", "voc")
    old, new = voc.read(source), voc.read(tmp_path / "out", strict=True)
    boxes = {Path(r.source).name: r.objects.boxes.tolist() for r in old.splits["train"].records}
    assert boxes == {
        Path(r.source).name: r.objects.boxes.tolist() for r in new.splits["train"].records
    }
    assert "<xmin>81</xmin>" in (tmp_path / "out/Annotations/raccoon-1.xml").read_text()
