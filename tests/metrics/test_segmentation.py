"""Segmentation: overlaps as scikit-learn counts them, boundaries by their definition."""

import math

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, jaccard_score

from sigak.metrics import Segmentation
from sigak.structures import IGNORE, SigakError

CLASSES = ["sky", "sea", "ship", "whale"]


def maps(count=5, size=(20, 26), seed=0):
    """Pairs of blocky maps, truth with ignored pixels; no whale is ever true."""
    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(count):
        truth = rng.integers(0, 3, (5, 7)).repeat(4, 0).repeat(4, 1)[: size[0], : size[1]]
        found = np.where(rng.random(size) < 0.15, rng.integers(0, 4, size), np.roll(truth, 1, 1))
        truth = np.where(rng.random(size) < 0.1, IGNORE, truth)
        pairs.append((found.astype(np.uint8), truth.astype(np.uint8)))
    return pairs


def measured(pairs):
    measure = Segmentation(CLASSES)
    for found, truth in pairs:
        measure.add(found, truth)
    return measure


def test_figures_are_scikit_learns():
    pairs = maps()
    figures = measured(pairs).compute()
    known = [truth != IGNORE for _, truth in pairs]
    truth = np.concatenate([t[k] for (_, t), k in zip(pairs, known)])
    found = np.concatenate([f[k] for (f, _), k in zip(pairs, known)])
    theirs = confusion_matrix(truth, found, labels=range(4))
    assert figures["confusion"] == theirs.tolist()
    ious = jaccard_score(truth, found, labels=range(4), average=None)
    assert [row["iou"] for row in figures["per_class"]] == pytest.approx(ious)
    assert figures["miou"] == pytest.approx(ious.mean())
    assert figures["pixel_accuracy"] == pytest.approx((truth == found).mean())
    dice = 2 * ious / (1 + ious)
    assert figures["dice"] == pytest.approx(dice.mean())
    assert figures["per_class"][0]["f1"] == pytest.approx(dice[0])
    assert figures["pixels"] == len(truth)
    assert figures["ignored"] == sum(int((~k).sum()) for k in known)
    assert figures["count"] == 5


def borders(values, label):
    """Pixels of a class with a neighbour of another, by the definition."""
    points = []
    for y, x in np.argwhere(values == label):
        for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
            inside = 0 <= v < values.shape[0] and 0 <= u < values.shape[1]
            if inside and values[v, u] not in (label, IGNORE):
                points.append((y, x))
                break
    return points


def test_boundaries_by_their_definition():
    pairs = maps(2)
    figures = measured(pairs).compute()
    reach = max(1, 0.0075 * math.hypot(20, 26))
    for label in range(4):
        counts = np.zeros(4)
        for found, truth in pairs:
            ours = borders(np.where(truth == IGNORE, IGNORE, found), label)
            theirs = borders(truth, label)
            counts += (
                len(ours), sum(any(math.dist(a, b) <= reach for b in theirs) for a in ours),
                len(theirs), sum(any(math.dist(a, b) <= reach for b in ours) for a in theirs),
            )  # fmt: skip
        precision = counts[1] / counts[0] if counts[0] else 0
        recall = counts[3] / counts[2] if counts[2] else 0
        f = 2 * precision * recall / (precision + recall) if precision * recall else 0
        assert figures["per_class"][label]["boundary_f"] == pytest.approx(f)


def test_perfect_answers_and_shifted_boundaries():
    truth = np.zeros((100, 100), np.uint8)
    truth[20:60, 20:60] = 1
    assert measured([(truth, truth)]).compute()["boundary_f"] == 1
    near = measured([(np.roll(truth, 1, 1), truth)]).compute()  # the reach is 1.06 pixels
    assert near["boundary_f"] == pytest.approx(1)
    assert near["miou"] < 1
    far = measured([(np.roll(truth, 3, (0, 1)), truth)]).compute()
    assert far["boundary_f"] < 0.2


def test_merging_is_adding():
    pairs = maps()
    whole = measured(pairs)
    part = measured(pairs[:2])
    part.merge(measured(pairs[2:]))
    assert part.compute() == whole.compute()
    with pytest.raises(SigakError, match="same classes"):
        whole.merge(Segmentation(["a", "b"]))


def test_a_picture_of_ignored_pixels_changes_nothing():
    pairs = maps(1)
    blank = np.full((20, 26), IGNORE, np.uint8)
    more = measured([*pairs, (pairs[0][0], blank)]).compute()
    less = measured(pairs).compute()
    for name in ("miou", "pixel_accuracy", "boundary_f", "confusion"):
        assert more[name] == less[name]
    alone = measured([(pairs[0][0], blank)]).compute()
    assert alone["pixels"] == 0
    assert alone["miou"] is alone["pixel_accuracy"] is alone["boundary_f"] is None


def test_one_pixel():
    one = np.array([[1]], np.uint8)
    figures = measured([(one, one)]).compute()
    assert figures["miou"] == figures["pixel_accuracy"] == 1
    assert figures["boundary_f"] is None


def test_what_does_not_fit_is_refused():
    with pytest.raises(SigakError, match="truth's size"):
        measured([(np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8))])
    with pytest.raises(SigakError, match="from 0 to 3, received one of 4"):
        measured([(np.full((2, 2), 4, np.uint8), np.zeros((2, 2), np.uint8))])
