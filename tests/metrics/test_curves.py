"""Average precision by hand and against scikit-learn's curve."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import precision_recall_curve

from sigak.metrics import average_precision, precision_recall
from sigak.structures import SigakError


def test_the_worked_example() -> None:
    # Right, wrong, right, wrong; 4 objects.
    scores = np.array([0.9, 0.8, 0.7, 0.6])
    right = np.array([True, False, True, False])
    precision, recall = precision_recall(scores, right, 4)
    assert precision.tolist() == [1, 1 / 2, 2 / 3, 1 / 2]
    assert recall.tolist() == [1 / 4, 1 / 4, 1 / 2, 1 / 2]
    # Precision 1 up to recall 1/4, 2/3 up to 1/2, nothing beyond.
    assert average_precision(precision, recall, "voc") == pytest.approx(1 / 4 + 2 / 3 / 4)
    # The 101 recalls: 26 up to .25, 25 up to .5. The 11: 0, .1, .2 | .3, .4, .5.
    assert average_precision(precision, recall, "coco") == pytest.approx((26 + 25 * 2 / 3) / 101)
    assert average_precision(precision, recall, "voc11") == pytest.approx((3 + 3 * 2 / 3) / 11)


@pytest.mark.parametrize("reading", ["coco", "voc", "voc11"])
def test_perfect_and_empty(reading) -> None:
    for objects in (1, 3, 7):
        curve = precision_recall(np.linspace(1, 0.5, objects), np.ones(objects, bool), objects)
        assert average_precision(*curve, reading) == 1.0
    nothing = precision_recall(np.zeros(0), np.zeros(0, bool), 3)
    assert average_precision(*nothing, reading) == 0.0
    assert average_precision(*precision_recall(np.ones(2), np.zeros(2, bool), 0), reading) == 0.0


def test_points_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    scores, right = rng.permutation(50) / 50, rng.random(50) < 0.4
    precision, recall = precision_recall(scores, right, int(right.sum()))
    theirs = precision_recall_curve(right, scores)
    assert np.allclose(precision[::-1], theirs[0][:-1])
    assert np.allclose(recall[::-1], theirs[1][:-1])


def test_mistakes_are_named() -> None:
    with pytest.raises(SigakError, match="expected scores and right of one shape"):
        precision_recall(np.zeros(3), np.zeros(4, bool), 1)
    with pytest.raises(SigakError, match="coco, voc or voc11, received 'area'"):
        average_precision(np.ones(1), np.ones(1), "area")
