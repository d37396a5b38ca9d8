"""Tracking: objects keep their numbers."""

import numpy as np
import pytest
import torch

from sigak.structures import Instances, Sample, SigakError
from sigak.tasks.detect import Detections
from sigak.tracking import Tracker, followed


def found(*rows):
    """Instances of rows (x, y, score, label): boxes of 20 x 20 pixels at their upper left."""
    table = torch.tensor([row[:3] for row in rows], dtype=torch.float32).reshape(-1, 3)
    boxes = torch.cat([table[:, :2], table[:, :2] + 20], 1)
    labels = torch.tensor([row[3] if len(row) > 3 else 0 for row in rows], dtype=torch.int64)
    return Instances(boxes, labels, scores=table[:, 2])


def ids(tracker, *rows):
    return tracker.update(found(*rows)).ids.tolist()


def test_two_that_cross_keep_their_numbers():
    tracker = Tracker()
    seen = [ids(tracker, (5 * t, 50, 0.9), (150 - 5 * t, 62, 0.8)) for t in range(31)]
    assert seen == [[1, 2]] * 31


def test_the_order_of_the_boxes_does_not_matter():
    tracker = Tracker()
    assert ids(tracker, (0, 0, 0.9), (100, 0, 0.8)) == [1, 2]
    assert ids(tracker, (102, 0, 0.8), (2, 0, 0.9)) == [2, 1]


def test_a_hidden_object_comes_back_where_it_was_heading():
    tracker = Tracker(memory=10)
    for t in range(10):
        assert ids(tracker, (6 * t, 50, 0.9)) == [1]
    for _ in range(8):
        assert ids(tracker) == []
    assert ids(tracker, (6 * 18, 50, 0.9)) == [1]  # 48 pixels on: no overlap with the last box


def test_what_is_hidden_for_long_is_forgotten():
    tracker = Tracker(memory=3)
    assert ids(tracker, (0, 0, 0.9)) == [1]
    for _ in range(4):
        tracker.update(found())
    assert ids(tracker, (0, 0, 0.9)) == []  # a first sight again
    assert ids(tracker, (0, 0, 0.9)) == [2]


def test_poor_boxes_continue_tracks_and_begin_none():
    tracker = Tracker(start=0.5)
    assert ids(tracker, (0, 0, 0.9), (100, 0, 0.3)) == [1]
    for score in (0.2, 0.15, 0.3):
        assert ids(tracker, (1, 0, score), (100, 0, 0.3)) == [1]
    assert ids(tracker, (1, 0, 0.05)) == []  # below what continues


def test_a_new_object_is_shown_from_its_second_frame():
    tracker = Tracker()
    assert ids(tracker, (0, 0, 0.9)) == [1]
    assert ids(tracker, (0, 0, 0.9), (100, 0, 0.9)) == [1]
    assert ids(tracker, (0, 0, 0.9), (100, 0, 0.9)) == [1, 2]
    assert ids(tracker, (0, 0, 0.9), (100, 0, 0.9), (200, 0, 0.9)) == [1, 2]
    assert ids(tracker, (0, 0, 0.9), (100, 0, 0.9)) == [1, 2]  # seen once: a mistake
    assert ids(tracker, (0, 0, 0.9), (200, 0, 0.9)) == [1]


def test_an_object_keeps_its_class():
    tracker = Tracker()
    assert ids(tracker, (0, 0, 0.9, 0), (2, 0, 0.8, 1)) == [1, 2]
    assert ids(tracker, (2, 0, 0.8, 1), (1, 0, 0.9, 0)) == [2, 1]


def test_all_fields_travel_and_the_given_is_left_alone():
    tracker, given = Tracker(), found((0, 0, 0.2), (50, 0, 0.9))
    given.areas = torch.tensor([1.0, 2.0])
    kept = tracker.update(given)
    assert kept.areas.tolist() == [2.0]
    assert len(given) == 2
    assert given.ids is None


def test_the_filter_is_that_of_eight_numbers():
    """Four filters of two numbers are the paper's one of eight, whose noise is diagonal."""
    from sigak.tracking import _Track

    rng = np.random.default_rng(0)
    box = np.array([50.0, 60, 20, 30])
    track = _Track.begin(0, box)
    scale = np.array([20, 30, 20, 30.0])
    mean = np.concatenate([box, np.zeros(4)])
    cov = np.diag(np.concatenate([(scale / 10) ** 2, (scale / 16) ** 2]))
    step, see = np.eye(8) + np.eye(8, k=4), np.eye(4, 8)
    for _ in range(5):
        sides = np.tile(mean[2:4], 2)
        track.predict()
        mean = step @ mean
        noise = np.diag(np.concatenate([(sides / 20) ** 2, (sides / 160) ** 2]))
        cov = step @ cov @ step.T + noise
        box = box + np.array([3, 1, 0.5, 0.2]) + rng.normal(0, 0.5, 4)
        track.correct(box)
        s = see @ cov @ see.T + np.diag((np.tile(box[2:], 2) / 20) ** 2)
        gain = cov @ see.T @ np.linalg.inv(s)
        mean = mean + gain @ (box - see @ mean)
        cov = cov - gain @ see @ cov
    assert np.concatenate([track.value, track.speed]) == pytest.approx(mean)
    assert track.covariance[:, 0, 1] == pytest.approx(np.diag(cov, 4))


def test_mistakes_are_answered():
    with pytest.raises(SigakError, match="a score between 0 and 1"):
        Tracker(start=0)
    with pytest.raises(SigakError, match="boxes with scores"):
        Tracker().update(Instances(torch.zeros(1, 4), torch.zeros(1, dtype=torch.int64)))


def results(count):
    for t in range(count):
        sample = Sample(np.zeros((4, 4, 3), np.uint8), f"{t}.png", t)
        yield sample, Detections(f"{t}.png", found((t, 0, 0.9)), ("dog",), (100, 100))


def test_pictures_that_follow_each_other_are_tracked():
    numbered = [result for _, result in followed(results(3), 0.25)]
    assert [r.instances.ids.tolist() for r in numbered] == [[1]] * 3
    assert numbered[0].asdict()["objects"][0]["id"] == 1


def test_for_supervision():
    supervision = pytest.importorskip("supervision")
    (_, result), *_ = followed(results(1), 0.25)
    made = result.to_supervision()
    assert isinstance(made, supervision.Detections)
    assert made.xyxy.tolist() == [[0, 0, 20, 20]]
    assert made.tracker_id.tolist() == [1]
    assert made.class_id.tolist() == [0]
    assert made.confidence == pytest.approx([0.9])
    assert made.data["class_name"].tolist() == ["dog"]
    nothing = Detections("a", found(), ("dog",), (9, 9)).to_supervision()
    assert len(nothing) == 0
