"""Detection numbers: against pycocotools, against each other, by hand, merged and pickled."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import replace

import numpy as np
import pycocotools.mask as reference
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from sigak.metrics import Detection, _details, evaluate_files
from sigak.metrics._matching import match
from sigak.metrics.detection import report
from sigak.structures import Instances, Masks, SigakError

TWELVE = ("map", "map50", "map75", "map_small", "map_medium", "map_large", "ar1", "ar10", "ar100",
          "ar_small", "ar_medium", "ar_large")  # fmt: skip


def pycocotools_of(known: dict, found: list, kind: str = "bbox") -> COCOeval:
    table = COCO()
    table.dataset = copy.deepcopy(known)
    table.createIndex()
    result = COCOeval(table, table.loadRes(copy.deepcopy(found)), kind)
    result.evaluate()
    result.accumulate()
    result.summarize()
    return result


def check_against_pycocotools(known: dict, found: list, ours: dict) -> None:
    theirs = pycocotools_of(known, found)
    stats = [None if value == -1 else value for value in theirs.stats]
    assert [ours[name] for name in TWELVE] == pytest.approx(stats, abs=1e-6)
    precision = theirs.eval["precision"][..., 0, 2]
    for label, row in enumerate(ours["per_class"]):
        assert row["ap"] == pytest.approx(precision[:, :, label].mean(), abs=1e-6)
        assert row["ap50"] == pytest.approx(precision[0, :, label].mean(), abs=1e-6)


def test_the_numbers_are_those_of_pycocotools(made_up, fed) -> None:
    known, found = made_up(200)
    ours = fed(known, found).compute(detail=False)
    check_against_pycocotools(known, found, ours)
    assert 0.1 < ours["map"] < 0.9
    assert (ours["count"], ours["detections"]) == (200, len(found))
    assert ours["objects"] + ours["crowds"] == len(known["annotations"])
    assert ours["crowds"] > 20


@pytest.mark.slow
def test_the_numbers_are_those_of_pycocotools_on_5000_pictures(made_up, fed) -> None:
    known, found = made_up(5000, classes=20, seed=1)
    rows = {picture["id"]: ([], []) for picture in known["images"]}
    for row in known["annotations"]:
        rows[row["image_id"]][0].append(row)
    for row in found:
        rows[row["image_id"]][1].append(row)
    metric = Detection([row["name"] for row in known["categories"]])
    for picture in known["images"]:
        objects, detections = rows[picture["id"]]
        one = {"images": [picture], "categories": known["categories"], "annotations": objects}
        metric.merge(fed(one, detections))
    check_against_pycocotools(known, found, metric.compute(detail=False))


@pytest.mark.parametrize("seed", range(4))
def test_our_matches_are_cocos(made_up, fed, seed) -> None:
    """The curves and intervals stand on our matches, the numbers on COCO's: both agree."""
    metric = fed(*made_up(60, classes=5, seed=seed))
    truth, found = metric._tables()
    numbers = report(truth, found, 60, metric.classes, detail=True)
    mean = _details._Resampled(match(truth, found), 5)
    assert mean(np.ones(60, np.int64)) == pytest.approx((numbers["map"], numbers["map50"]))
    curves = numbers["curves"]
    assert np.mean(curves["precision"]) == pytest.approx(numbers["map50"], abs=1e-5)
    for row, line in zip(numbers["per_class"], curves["per_class"]):
        assert np.mean(line) == pytest.approx(row["ap50"], abs=1e-5)


def test_pictures_that_count_twice_are_two_pictures(made_up, fed) -> None:
    known, found = made_up(12, classes=3)
    truth, boxes = fed(known, found)._tables()
    weights = np.arange(12) % 3
    twice = Detection(["class 1", "class 2", "class 3"])
    for place, weight in enumerate(weights):
        one = known | {
            "images": [known["images"][place]],
            "annotations": [r for r in known["annotations"] if r["image_id"] == place + 1],
        }
        for _ in range(weight):
            twice.merge(fed(one, [row for row in found if row["image_id"] == place + 1]))
    numbers = twice.compute(detail=False)
    mean = _details._Resampled(match(truth, boxes), 3)
    assert mean(weights) == pytest.approx((numbers["map"], numbers["map50"]))


def test_the_confusion_matrix_agrees_with_precision_and_recall(made_up, fed) -> None:
    numbers = fed(*made_up(100)).compute()
    counts = np.array(numbers["confusion"])
    assert counts.shape == (9, 9)
    assert counts[8, 8] == 0
    for label, row in enumerate(numbers["per_class"]):
        right = counts[label, label]
        assert counts[label].sum() == row["support"]
        assert row["precision"] == pytest.approx(right / counts[:, label].sum())
        assert row["recall"] == pytest.approx(right / row["support"])
        harmonic = 2 / (1 / row["precision"] + 1 / row["recall"])
        assert row["f1"] == pytest.approx(harmonic)
    right = np.trace(counts)
    assert numbers["precision"] == pytest.approx(right / counts[:, :8].sum())
    assert numbers["recall"] == pytest.approx(right / numbers["objects"])
    assert counts[:8, :8].sum() > right  # some were taken for another class


def picture(*rows: tuple) -> Instances:
    """Rows of label, box and, for detections, score."""
    return Instances(
        boxes=torch.tensor([row[1] for row in rows], dtype=torch.float64).reshape(-1, 4),
        labels=torch.tensor([row[0] for row in rows], dtype=torch.int64),
        scores=torch.tensor([row[2] for row in rows], dtype=torch.float64)
        if rows and len(rows[0]) == 3
        else None,
    )


CAT, DOG = 0, 1
LEFT, RIGHT, FAR = (0, 0, 40, 40), (100, 0, 150, 50), (300, 300, 320, 320)


def test_confusion_by_hand() -> None:
    metric = Detection(["cat", "dog"])
    truth = picture((CAT, LEFT), (DOG, RIGHT), (DOG, (200, 0, 230, 30)))
    predicted = picture(
        (CAT, LEFT, 0.9),  # right
        (DOG, LEFT, 0.85),  # its object is taken: background
        (CAT, RIGHT, 0.8),  # a dog taken for a cat
        (DOG, (201, 0, 231, 30), 0.6),  # right, and the score from which on F1 is highest
        (DOG, FAR, 0.1),  # below it
    )
    metric.add(predicted, truth, "a.jpg")
    numbers = metric.compute()
    assert numbers["confidence"] == pytest.approx(0.6)
    assert numbers["confusion"] == [[1, 0, 0], [1, 1, 0], [0, 1, 0]]
    assert numbers["f1"] == pytest.approx(2 * 2 / (4 + 3))
    kinds = {name: error["count"] for name, error in numbers["errors"].items()}
    assert kinds == {"cls": 2, "loc": 0, "both": 0, "dupe": 0, "bkg": 1, "miss": 0}


def test_equal_scores_come_and_go_together() -> None:
    metric = Detection(["cat"])
    metric.add(picture((CAT, LEFT, 0.5), (CAT, FAR, 0.5)), picture((CAT, LEFT)), "a.jpg")
    numbers = metric.compute()
    assert numbers["confidence"] == 0.5
    assert numbers["precision"] == 0.5
    assert numbers["confusion"] == [[1, 0], [1, 0]]


def test_perfect_predictions_score_exactly_one(made_up, fed) -> None:
    known, _ = made_up(40)
    found = [row | {"score": 0.9} for row in known["annotations"]]
    numbers = fed(known, found).compute()
    for name in ("map", "map50", "map75", "map_small", "map_medium", "map_large", "ar100",
                 "map50_voc", "map50_voc11", "precision", "recall", "f1"):  # fmt: skip
        assert numbers[name] == 1.0, name
    assert all(row["ap"] == row["precision"] == row["recall"] == 1 for row in numbers["per_class"])
    assert numbers["interval"]["map"] == [1.0, 1.0]
    assert all(error["gain"] == 0 for error in numbers["errors"].values())


def test_a_crowd_forgives() -> None:
    truth = picture((CAT, LEFT), (CAT, (200, 200, 400, 400)))
    truth.crowd = torch.tensor([False, True])
    metric = Detection(["cat"])
    inside = [(CAT, (210 + 40 * k, 210, 240 + 40 * k, 240), 0.95) for k in range(4)]
    metric.add(picture(*inside, (CAT, LEFT, 0.9)), truth, "a.jpg")
    numbers = metric.compute()
    assert (numbers["map"], numbers["precision"], numbers["crowds"]) == (1.0, 1.0, 1)
    assert numbers["confusion"] == [[1, 0], [0, 0]]


def test_the_areas_of_objects_are_their_own() -> None:
    truth = picture((CAT, (0, 0, 60, 60)))
    found = picture((CAT, (0, 0, 60, 60), 0.9))
    for areas, small, medium in ((None, None, 1.0), (torch.tensor([500.0]), 1.0, None)):
        truth.areas = areas
        metric = Detection(["cat"])
        metric.add(found, truth, "a.jpg")
        numbers = metric.compute(detail=False)
        assert (numbers["map_small"], numbers["map_medium"]) == (small, medium)


def test_neither_order_nor_parts_nor_pickling_matter(made_up, fed) -> None:
    known, found = made_up(30)
    whole = fed(known, found)
    parts = []
    for remainder in (2, 0, 1):
        images = [p for p in known["images"] if p["id"] % 3 == remainder]
        parts.append(pickle.loads(pickle.dumps(fed(known | {"images": images[::-1]}, found))))
    first, *others = parts
    for other in others:
        first.merge(other)
    assert json.dumps(first.compute()) == json.dumps(whole.compute())


def test_nothing_is_computed_from_nothing() -> None:
    empty, unscored = picture(), picture((CAT, LEFT))
    none = Instances(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0))
    for pictures in ([], [(none, empty)], [(picture((CAT, LEFT, 0.9)), empty)]):
        metric = Detection(["cat", "dog"])
        for place, (predicted, truth) in enumerate(pictures):
            metric.add(predicted, truth, str(place))
        numbers = json.loads(json.dumps(metric.compute(), allow_nan=False))
        assert numbers["count"] == len(pictures)
        for name in (*TWELVE, "confidence", "recall", "map50_voc"):
            assert numbers[name] is None
        assert numbers["interval"]["map"] is None
    metric = Detection(["cat", "dog"])
    metric.add(none, unscored, "a.jpg")
    numbers = metric.compute()
    assert (numbers["map"], numbers["recall"], numbers["confidence"]) == (0, 0, None)
    assert numbers["confusion"] == [[0, 0, 1], [0, 0, 0], [0, 0, 0]]


def test_calibration_by_hand() -> None:
    metric = Detection(["cat"])
    metric.add(
        picture((CAT, LEFT, 0.8), (CAT, FAR, 0.6), (CAT, FAR, 0.1)), picture((CAT, LEFT)), "a"
    )
    calibration = metric.compute()["calibration"]
    assert calibration["ece"] == pytest.approx((abs(0.8 - 1) + 0.6) / 2)
    filled = {b["high"]: b["count"] for b in calibration["bins"] if b["count"]}
    assert filled == {0.8: 1, 0.6: 1, 0.1: 1}


def test_mistakes_are_named() -> None:
    metric = Detection(["cat", "dog"])
    truth, found = picture((CAT, LEFT)), picture((CAT, LEFT, 0.9))
    with pytest.raises(SigakError, match="at least one class"):
        Detection([])
    with pytest.raises(SigakError, match=r"a\.jpg: predicted boxes need scores"):
        metric.add(truth, truth, "a.jpg")
    with pytest.raises(SigakError, match=r"a\.jpg: labels must be 0 to 1, received 2 to 2"):
        metric.add(found, picture((2, LEFT)), "a.jpg")
    with pytest.raises(SigakError, match="scores must be numbers"):
        metric.add(picture((CAT, LEFT, float("nan"))), truth, "a.jpg")
    with pytest.raises(SigakError, match="boxes must be numbers"):
        metric.add(picture((CAT, (0, 0, float("inf"), 1), 0.5)), truth, "a.jpg")
    with pytest.raises(SigakError, match="same classes in the same order"):
        metric.merge(Detection(["dog", "cat"]))
    assert metric.compute(detail=False)["count"] == 0


# ------------------------------------------------------------------ masks


def made_up_masks(pictures: int, seed: int = 0, size: tuple[int, int] = (60, 80)):
    """(objects, detections) of each picture as `Instances` with ragged masks, crowds, areas that
    are not the mask's, wrong classes, and scores with many ties.
    """
    rng = np.random.default_rng(seed)

    def blob() -> np.ndarray:
        plane = np.zeros(size, bool)
        (y, x), (h, w) = rng.integers(0, (size[0] - 4, size[1] - 4)), rng.integers(3, 50, 2)
        plane[y : y + h, x : x + w] = True
        return plane & (rng.random(size) > rng.uniform(0, 0.3))

    def told(planes: list, labels: list, **more) -> Instances:
        masks = Masks.of(np.stack(planes) if planes else np.zeros((0, *size), bool))
        corners = torch.from_numpy(masks.corners).double()
        sides = torch.tensor([p.shape[::-1] for p in masks.patches]).reshape(-1, 2)
        boxes = torch.cat([corners, corners + sides], dim=1)
        return Instances(boxes, torch.tensor(labels, dtype=torch.int64), masks=masks, **more)

    rows = []
    for _ in range(pictures):
        count = int(rng.integers(0, 7))
        planes, labels = [blob() for _ in range(count)], rng.integers(0, 3, count).tolist()
        areas = [plane.sum() * rng.uniform(0.8, 20) for plane in planes]
        found = [
            (np.roll(plane, rng.integers(-4, 5), 1) & (rng.random(size) > 0.1), label)
            for plane, label in zip(planes, labels)
            for _ in range(rng.integers(0, 3))
        ] + [(blob(), int(rng.integers(0, 3))) for _ in range(rng.integers(0, 4))]
        scores = torch.from_numpy(rng.random(len(found)).round(1))
        crowd = torch.from_numpy(rng.random(count) < 0.15)
        truth = told(planes, labels, crowd=crowd, areas=torch.tensor(areas).double())
        rows.append((truth, told([p for p, _ in found], [k for _, k in found], scores=scores)))
    return rows


def as_coco(rows: list) -> tuple[dict, list]:
    known: dict = {"images": [], "annotations": [], "categories": []}
    known["categories"] = [{"id": k, "name": name} for k, name in enumerate("abc", 1)]
    found: list = []
    for picture, (truth, detections) in enumerate(rows, 1):
        known["images"].append({"id": picture, "height": 60, "width": 80})
        for target, one in ((known["annotations"], truth), (found, detections)):
            for i, plane in enumerate(one.masks.planes().numpy()):
                code = reference.encode(np.asfortranarray(plane.astype(np.uint8)))
                code["counts"] = code["counts"].decode()
                row = {"image_id": picture, "category_id": int(one.labels[i]) + 1}
                row |= {"segmentation": code}
                if one is truth:
                    row |= {"id": len(target) + 1, "iscrowd": int(one.crowd[i])}
                    row |= {"area": float(one.areas[i]), "bbox": reference.toBbox(code).tolist()}
                else:
                    row |= {"score": float(one.scores[i])}
                target.append(row)
    return known, found


def test_numbers_of_masks_are_those_of_pycocotools(tmp_path) -> None:
    rows = made_up_masks(60)
    known, found = as_coco(rows)
    theirs = pycocotools_of(known, found, "segm")
    metric = Detection(["a", "b", "c"])
    for i, (truth, detections) in enumerate(rows):
        metric.add(detections, truth, f"{i:03}")
    figures = metric.compute(detail=False)
    ours = [figures[f"mask_{name}"] for name in TWELVE]
    assert ours == pytest.approx(list(theirs.stats), abs=1e-6)
    assert ours[1] > 0.1
    precision = theirs.eval["precision"][..., 0, 2]
    for label, row in enumerate(figures["per_class"]):
        assert row["mask_ap"] == pytest.approx(precision[:, :, label].mean(), abs=1e-6)
    for name, content in (("truth.json", known), ("found.json", found)):
        (tmp_path / name).write_text(json.dumps(content), encoding="utf-8")
    of_files = evaluate_files(tmp_path / "truth.json", tmp_path / "found.json")
    assert {name: of_files[name] for name in of_files if name.startswith("mask_")} == {
        name: pytest.approx(figures[name]) for name in figures if name.startswith("mask_")
    }
    assert of_files["per_class"][0]["mask_ap"] == pytest.approx(figures["per_class"][0]["mask_ap"])
    assert of_files["map50"] > 0.1  # boxes, which are those of the masks


def test_masks_are_measured_where_all_pictures_have_them() -> None:
    rows = made_up_masks(4)
    metric, other = Detection(["a", "b", "c"]), Detection(["a", "b", "c"])
    for i, (truth, detections) in enumerate(rows):
        (metric if i % 2 else other).add(detections, truth, f"{i:03}")
    metric.merge(other)
    assert "mask_map" in metric.compute(detail=False)
    metric.add(replace(rows[0][1], masks=None), rows[0][0], "last")
    figures = metric.compute(detail=False)
    assert "map" in figures
    assert "mask_map" not in figures
    assert "mask_ap" not in figures["per_class"][0]
