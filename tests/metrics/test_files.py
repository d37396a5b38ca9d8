"""COCO files: the published numbers, the same as from pictures, and damaged ones refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from sigak.metrics import evaluate_files
from sigak.structures import SigakError

NAMES = ("map", "map50", "map75", "map_small", "map_medium", "map_large", "ar1", "ar10", "ar100",
         "ar_small", "ar_medium", "ar_large")  # fmt: skip
BOXES = [0.505, 0.697, 0.573, 0.586, 0.519, 0.501, 0.387, 0.594, 0.595, 0.640, 0.566, 0.564]


@pytest.fixture
def write(tmp_path):
    """write(name, content) -> the path of a JSON file."""

    def write_(name: str, content: object) -> Path:
        path = tmp_path / name
        path.write_text(json.dumps(content), encoding="utf-8")
        return path

    return write_


@pytest.mark.data
def test_the_published_numbers_come_out() -> None:
    folder = Path(os.environ["SIGAK_DATA"]) / "coco-eval"
    truth = folder / "instances_val2014_100.json"
    numbers = evaluate_files(truth, folder / "instances_val2014_fakebbox100_results.json")
    assert [round(numbers[name], 3) for name in NAMES] == BOXES
    masks = evaluate_files(truth, folder / "instances_val2014_fakesegm100_results.json", "masks")
    assert [round(masks[name], 3) for name in NAMES[:3]] == [0.320, 0.562, 0.299]
    assert masks["per_class"][0]["name"] == "person"


def test_files_give_what_pictures_give(made_up, fed, write) -> None:
    known, found = made_up(30)
    numbers = evaluate_files(write("truth.json", known), write("found.json", found))
    expected = fed(known, found).compute()
    for name in (*NAMES, "confidence", "precision", "recall", "map50_voc", "map50_voc11"):
        assert numbers[name] == pytest.approx(expected[name], abs=1e-9), name
    assert numbers["confusion"] == expected["confusion"]
    assert [row["name"] for row in numbers["per_class"]] == [f"class {k}" for k in range(1, 9)]


def test_rows_may_name_their_picture_and_class(made_up, write) -> None:
    known, found = made_up(30)
    expected = evaluate_files(write("truth.json", known), write("found.json", found))
    names = {row["id"]: row["name"] for row in known["categories"]}
    for row in known["images"]:
        row["file_name"] = f"part/{row['id']}.jpg"
    other = {"image_id": "x", "category_id": 0, "bbox": [0, 0, 9, 9], "score": 1.0}
    named = [{**other, "file_name": "part/1.jpg", "category_name": "unheard of"}]
    for row in found:
        file = f"/photos/part/{row['image_id']}.jpg"
        called = {"file_name": file, "category_name": names[row["category_id"]]}
        named.append(row | {"image_id": "any", "category_id": 77} | called)
    numbers = evaluate_files(write("truth.json", known), write("named.json", named))
    assert numbers["map"] == expected["map"]
    assert numbers["detections"] == expected["detections"]


@pytest.mark.parametrize("wrong", [{"area": "x"}, {"bbox": [1, 1, -5, 5]}, {"category_id": True}])
def test_annotations_that_are_no_numbers_are_named(wrong, made_up, write) -> None:
    known, found = made_up(5)
    known["annotations"][0] |= wrong
    with pytest.raises(SigakError, match="row 0"):
        evaluate_files(write("truth.json", known), write("found.json", found))


def test_an_area_that_is_not_told_is_that_of_the_box(made_up, fed, write) -> None:
    known, found = made_up(20)
    for row in known["annotations"]:
        row["area"] = row["bbox"][2] * row["bbox"][3]
    expected = fed(known, found).compute(detail=False)
    for row in known["annotations"]:
        del row["area"]
    numbers = evaluate_files(write("truth.json", known), write("found.json", found))
    assert numbers["map_medium"] == pytest.approx(expected["map_medium"])


def test_no_detections_at_all(made_up, write) -> None:
    known, _ = made_up(5)
    numbers = evaluate_files(write("truth.json", known), write("found.json", []))
    assert (numbers["map"], numbers["count"], numbers["detections"]) == (0, 5, 0)


def test_damaged_files_are_refused(made_up, write, tmp_path) -> None:
    known, found = made_up(5)
    truth, good = write("truth.json", known), write("found.json", found)

    def refused(message: str, truth_file: Path, found_file: Path, kind: str = "boxes") -> None:
        with pytest.raises(SigakError, match=message):
            evaluate_files(truth_file, found_file, kind)

    (tmp_path / "broken.json").write_text("[{", encoding="utf-8")
    refused("broken.json cannot be read as JSON", truth, tmp_path / "broken.json")
    refused("lost.json cannot be read as JSON", tmp_path / "lost.json", good)
    refused("expected COCO's list of detections", good, truth)
    refused('expected a list "images"', write("bad.json", {"images": 3}), good)
    refused('at least one row in "images"', write("bad.json", known | {"images": []}), good)
    refused('expected a list "annotations"', write("bad.json", known | {"annotations": 1}), good)
    for change, message in (
        ({"image_id": 99}, "row 0 has the image_id 99, which the annotations do not list"),
        ({"category_id": None}, "row 0 has the category_id None"),
        ({"bbox": [1, 2, 3]}, r"row 0 has no usable bbox, received \[1, 2, 3\]"),
        ({"score": "high"}, "row 0 has no usable score"),
        ({"score": float("nan")}, "row 0 has no usable score"),
    ):
        refused(message, truth, write("bad.json", [found[0] | change]))
    refused("row 0 has no usable segmentation, received None", truth, good, "masks")
    refused("row 0 must be an object", truth, write("bad.json", ["a"]))
    refused("boxes or masks, received 'points'", truth, good, "points")
