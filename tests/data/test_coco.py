"""COCO: instances files, where their pictures are, everything that can be wrong in them."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pycocotools.mask as reference
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from sigak.data import coco
from sigak.data.objects import to_instances
from sigak.ops.outlines import codes
from sigak.structures import SigakError

CATEGORIES = [{"id": 18, "name": "dog", "supercategory": "animal"}, {"id": 3, "name": "car"}]
TRIANGLE = [4.0, 4.0, 10.0, 4.0, 4.0, 8.5]


def entry(number=1, **changes):
    """An annotation."""
    return {
        "id": number, "image_id": 7, "category_id": 18, "bbox": [4, 4, 6, 4.5], "area": 13.5,
        "iscrowd": 0, "segmentation": [TRIANGLE],
    } | changes  # fmt: skip


def write(root, *annotations, image=(), place="set/a.png", categories=CATEGORIES):
    """A set of one picture, 40 wide and 20 high: the path of its json."""
    target = root / place
    target.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 20)).save(target)
    body = {
        "info": {"year": 2026},
        "images": [{"id": 7, "file_name": "a.png", "height": 20, "width": 40} | dict(image)],
        "annotations": list(annotations),
        "categories": list(categories),
    }
    (root / "set").mkdir(exist_ok=True)
    (root / "set/instances.json").write_text(json.dumps(body), encoding="utf-8")
    return root / "set/instances.json"


def only(data):
    [record] = data.splits["train"].records
    return record


def test_a_file_is_read(tmp_path):
    crowd = {"size": [20, 40], "counts": [0, 5, 795]}
    path = write(tmp_path, entry(5), entry(6, category_id=3, iscrowd=1, segmentation=crowd))
    data, facts = coco.parse(path)
    record = only(data)
    assert data.classes == ["car", "dog"]  # in the order of their ids
    assert record.size == (20, 40)
    assert record.objects.boxes.tolist() == [[4, 4, 10, 8.5], [4, 4, 10, 8.5]]
    assert record.objects.labels.tolist() == [1, 0]
    assert record.objects.crowd.tolist() == [False, True]
    assert record.objects.areas.tolist() == [13.5, 13.5]
    assert record.objects.outlines[0][0].tolist() == [[4, 4], [10, 4], [4, 8.5]]
    assert record.objects.outlines[1] == crowd
    assert record.objects.marks["id"].tolist() == [5, 6]
    assert [category["id"] for category in facts.categories] == [3, 18]
    assert facts.head == {"info": {"year": 2026}}
    assert facts.images[record.source]["id"] == 7


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"category_id": 99}, "category 99 is not in categories"),
        ({"category_id": [1]}, "cannot be understood"),
        ({"image_id": 8}, "there is no image 8"),
        ({"bbox": [1, 2, 3]}, "cannot be understood"),
        ({"bbox": [1, 2, 3, "wide"]}, "cannot be understood"),
        ({"bbox": [1, 2, float("nan"), 4]}, "not finite"),
        ({"bbox": [1, 2, 1e308, 4e307]}, "outside|reaches|not finite"),
        ({"bbox": [50, 2, 3, 4]}, "outside of the picture"),
        ({"bbox": [5, 2, 0, 4]}, "no area"),
        ({}, "the same as"),
        ({"keypoints": [1, 2]}, "expected triples"),
    ],
)
def test_a_bad_annotation_costs_that_annotation(tmp_path, changes, reason):
    path = write(tmp_path, entry(1), entry(2, **changes), entry(3, bbox=[0, 0, 5, 5]))
    data = coco.read(path)
    [problem] = data.problems
    assert problem.source == f"{path}:annotation 2"
    if "clipped" not in problem.action:
        assert only(data).objects.marks["id"].tolist() == [1, 3]
    assert re.search(reason, problem.reason)
    with pytest.raises(SigakError, match="1 mistakes in all, the first in"):
        coco.read(path, strict=True)


def test_a_box_is_found_in_its_outline(tmp_path):
    bare = entry()
    del bare["bbox"]
    assert only(coco.read(write(tmp_path, bare))).objects.boxes.tolist() == [[4, 4, 10, 8.5]]


@pytest.mark.parametrize(
    "place", ["set/a.png", "set/images/a.png", "a.png", "images/a.png", "instances/a.png"]
)
def test_where_pictures_are(tmp_path, place):
    record = only(coco.read(write(tmp_path, entry(), place=place)))
    assert Path(record.source) == tmp_path / place


def test_pictures_that_are_nowhere(tmp_path):
    path = write(tmp_path, entry())
    (tmp_path / "set/a.png").unlink()
    with pytest.raises(SigakError, match="none of the 1 pictures"):
        coco.read(path)
    data, facts = coco.parse(path, pictures=False)
    assert only(data).source == "a.png"
    assert facts.images["a.png"]["id"] == 7


def turned(root, orientation, stated):
    path = write(root, entry(bbox=[0, 0, 10, 5], segmentation=[]), image=stated.items())
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (40, 20)).save(root / "set/a.png", exif=exif)
    return coco.read(path)


# Where the corner (0, 0)-(10, 5) of the stored picture lies in the upright one, 20 wide, 40 high.
CORNERS = {5: [0, 0, 5, 10], 6: [15, 0, 20, 10], 7: [15, 30, 20, 40], 8: [0, 30, 5, 40]}


@pytest.mark.parametrize(("orientation", "box"), CORNERS.items())
def test_boxes_of_the_stored_picture_are_turned_with_it(tmp_path, orientation, box):
    data = turned(tmp_path, orientation, {"height": 20, "width": 40})
    assert only(data).size == (40, 20)
    assert only(data).objects.boxes.tolist() == [box]
    assert data.problems[0].action == "boxes turned with the picture"


def test_boxes_of_the_upright_picture_stay(tmp_path):
    data = turned(tmp_path, 6, {"height": 40, "width": 20})
    assert only(data).objects.boxes.tolist() == [[0, 0, 10, 5]]
    assert data.problems == []


@pytest.mark.parametrize(
    ("stated", "box", "action"),
    [
        ((40, 80), [2, 2, 5, 4.25], "boxes scaled to the picture"),
        ((40, 40), [4, 4, 10, 8.5], "the picture's own size is taken"),
        ((4, 8), [4, 4, 10, 8.5], "the picture's own size is taken"),
    ],
)
def test_a_size_that_is_not_the_picture_s(tmp_path, stated, box, action):
    path = write(tmp_path, entry(), image={"height": stated[0], "width": stated[1]}.items())
    data = coco.read(path)
    assert only(data).objects.boxes.tolist() == [box]
    assert data.problems[0].source == f"{path}:image 7"
    assert data.problems[0].action == action


def test_categories_that_contradict(tmp_path):
    path = write(tmp_path, entry(), categories=[*CATEGORIES, {"id": 20, "name": "dog"}, {"id": 21}])
    data = coco.read(path)
    assert data.classes == ["car", "dog", "dog 2"]
    assert [problem.action for problem in data.problems] == ["left out", "called 'dog 2'"]


@pytest.mark.parametrize("text", ["{", "[]", '{"images": []}', '{"images": 1, "categories": []}'])
def test_a_file_that_is_not_coco(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(SigakError, match=r"x\.json"):
        coco.read(tmp_path / "x.json")


@pytest.mark.data
def test_the_real_sets():
    root = Path(os.environ["SIGAK_DATA"])
    data = coco.read(root / "coco-mini/instances.json")
    objects = [record.objects for record in data.splits["train"].records]
    assert (len(objects), sum(map(len, objects))) == (100, 747)
    assert sum(int(o.crowd.sum()) for o in objects) == 6
    assert data.problems == []
    truth, _ = coco.parse(root / "coco-eval/instances_val2014_100.json", pictures=False)
    assert sum(len(r.objects) for r in truth.splits["train"].records) == 839
    assert np.isfinite(truth.splits["train"].records[0].objects.boxes).all()


# ------------------------------------------------------------------ outlines


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ({"size": [10, 40], "counts": [0, 400]}, "of 10 x 40 pixels, its picture of 20 x 40"),
        ({"size": [20, 40], "counts": [0, 5, 700]}, "cannot be read: its runs make 705"),
        ({"size": [20, 40], "counts": "abcdef"}, "a run-length code cannot be read"),
        ({"counts": [800]}, "a run-length code cannot be read"),
    ],
)
def test_run_lengths_that_do_not_fit_are_left_out(tmp_path, code, reason):
    path = write(tmp_path, entry(1), entry(2, bbox=[1, 2, 3, 4], segmentation=code))
    data = coco.read(path)
    assert [bool(outline) for outline in only(data).objects.outlines] == [True, False]
    first, second = data.problems
    assert re.search(reason, first.reason)
    assert first.action == "outline left out"
    assert second.reason.startswith("1 of 2 objects have no outline")
    with pytest.raises(SigakError, match=re.escape(reason)):
        coco.read(path, strict=True)


def test_outlines_are_filled_as_pycocotools_fills_them(tmp_path):
    crossed = [2.0, 2, 30, 18, 30, 3, 2, 15]
    two = [[1.0, 1, 8, 1, 4, 9], [20.5, 5.2, 35.1, 6, 33, 18.7, 19, 17]]
    path = write(
        tmp_path,
        entry(1),
        entry(2, bbox=[2, 2, 28, 16], segmentation=[crossed]),
        entry(3, bbox=[1, 1, 35, 18], segmentation=two),
        entry(4, bbox=[0, 0, 9, 9], segmentation=[[], [1, 2, 3, 4]]),  # no polygon at all
        entry(5, bbox=[3, 3, 9, 9], segmentation=[[5, 5, 5, 5, 5, 5]]),  # without area
    )
    body = json.loads(path.read_text(encoding="utf-8"))
    found = to_instances(only(coco.read(path)).objects, None, (20, 40), masks=True)
    for place, row in enumerate(body["annotations"][:3]):
        parts = reference.frPyObjects(row["segmentation"], 20, 40)
        assert found.masks.areas()[place] == reference.area(reference.merge(parts))
    assert found.crowd.tolist() == [False, False, False, True, False]
    assert found.masks.areas().tolist()[3:] == [81, 0]


@pytest.mark.data
def test_the_masks_of_coco_are_those_of_pycocotools():
    file = Path(os.environ["SIGAK_DATA"]) / "coco-mini" / "instances.json"
    data, _ = coco.parse(file)
    table = COCO(str(file))
    wrong = compared = 0
    for record in next(iter(data.splits.values())).records:
        found = to_instances(record.objects, None, record.size, masks=True)
        for place, number in enumerate(record.objects.marks["id"].tolist()):
            theirs = table.annToRLE(table.anns[number])
            mine = codes(found.masks[torch.tensor([place])])[0]
            wrong += mine["counts"] != theirs["counts"].decode()
            compared += 1
    assert compared > 100
    assert wrong == 0
