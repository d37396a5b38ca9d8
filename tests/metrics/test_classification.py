"""Classification numbers: against scikit-learn, by hand, exact under any split and merge order."""

from __future__ import annotations

import itertools
import json
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    brier_score_loss,
    confusion_matrix,
    precision_recall_fscore_support,
    top_k_accuracy_score,
)

from sigak.metrics import Classification
from sigak.metrics.classification import _ExactSum
from sigak.structures import UNKNOWN, SigakError


def _random(count: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, count)
    logits = rng.normal(size=(count, classes)) + 1.5 * np.eye(classes)[truth]
    scores = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return scores, truth, -np.log(scores[np.arange(count), truth])


def _names(classes: int) -> list[str]:
    return [f"c{i}" for i in range(classes)]


def _measured(*batches: tuple[np.ndarray, ...], classes: int) -> dict:
    metric = Classification(_names(classes))
    for batch in batches:
        metric.update(*batch)
    return metric.compute()


@pytest.mark.parametrize("classes", [2, 3, 7, 40])
def test_agrees_with_scikit_learn(classes: int) -> None:
    scores, truth, loss = _random(500, classes)
    result = _measured((scores, truth, loss), classes=classes)
    labels = np.arange(classes)
    predicted = scores.argmax(1)

    assert result["confusion"] == confusion_matrix(truth, predicted, labels=labels).tolist()
    theirs = precision_recall_fscore_support(truth, predicted, labels=labels, zero_division=0)
    for key, values in zip(("precision", "recall", "f1", "support"), theirs):
        assert [row[key] for row in result["per_class"]] == pytest.approx(values, abs=1e-12)
    macro = precision_recall_fscore_support(truth, predicted, average="macro", zero_division=0)
    assert list(result["macro"].values()) == pytest.approx(macro[:3], abs=1e-12)
    assert result["accuracy"] == pytest.approx((predicted == truth).mean(), abs=1e-12)
    assert result["loss"] == pytest.approx(loss.mean(), abs=1e-12)
    if classes > 5:
        expected = top_k_accuracy_score(truth, scores, k=5, labels=labels)
        assert result["top5"] == pytest.approx(expected, abs=1e-12)
    else:
        assert "top5" not in result


def test_brier_agrees_with_scikit_learn() -> None:
    scores, truth, _ = _random(300, 2)
    positive_only = brier_score_loss(truth, scores[:, 1])
    result = _measured((scores, truth), classes=2)
    assert result["calibration"]["brier"] == pytest.approx(2 * positive_only, abs=1e-12)

    scores, truth, _ = _random(300, 4)
    one_class_at_a_time = sum(brier_score_loss(truth == k, scores[:, k]) for k in range(4))
    result = _measured((scores, truth), classes=4)
    assert result["calibration"]["brier"] == pytest.approx(one_class_at_a_time, abs=1e-12)


def test_calibration_by_hand() -> None:
    # Confidence 0.9 (bin 13) is right once in two; 0.6 = 9/15 (it closes bin 8) twice in two.
    scores = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.4, 0.6]])
    calibration = _measured((scores, np.array([0, 1, 0, 1])), classes=2)["calibration"]
    filled = {i: b for i, b in enumerate(calibration["bins"]) if b["count"]}
    assert list(filled) == [8, 13]
    assert filled[8] == pytest.approx(
        {"low": 8 / 15, "high": 9 / 15, "confidence": 0.6, "accuracy": 1.0, "count": 2}
    )
    assert filled[13]["accuracy"] == 0.5
    assert calibration["ece"] == pytest.approx(0.5 * 0.4 + 0.5 * 0.4)
    assert calibration["mce"] == pytest.approx(0.4)
    assert calibration["brier"] == pytest.approx((0.02 + 1.62 + 0.32 + 0.32) / 4)
    assert calibration["bins"][0] == {
        "low": 0.0, "high": 1 / 15, "confidence": None, "accuracy": None, "count": 0,
    }  # fmt: skip


def test_certain_predictions_are_perfectly_calibrated() -> None:
    result = _measured((np.eye(3), np.arange(3)), classes=3)
    assert result["calibration"]["bins"][14]["count"] == 3
    assert (result["calibration"]["ece"], result["calibration"]["brier"]) == (0, 0)


def test_unknown_truth_is_left_out_and_counted() -> None:
    scores, truth, loss = _random(60, 4)
    hidden = np.arange(60) % 3 == 0
    loss[hidden] = np.nan
    result = _measured((scores, np.where(hidden, UNKNOWN, truth), loss), classes=4)
    known = _measured((scores[~hidden], truth[~hidden], loss[~hidden]), classes=4)
    assert result["unknown"] == 20
    assert result | {"unknown": 0} == known


def test_class_weights_count_as_their_heaviest_class() -> None:
    scores, truth, loss = _random(50, 4)
    weights = 0.9 * np.eye(4)[truth] + 0.025
    weights[7] = 0
    truth[7] = UNKNOWN
    assert _measured((scores, weights, loss), classes=4) == _measured(
        (scores, truth, loss), classes=4
    )


def test_absent_class_is_none_and_stays_out_of_the_means() -> None:
    scores = np.eye(3)[[0, 0, 2]]  # class 1 never occurs; class 2 is predicted once, wrongly
    result = _measured((scores, np.array([0, 0, 0])), classes=3)
    assert result["per_class"][0] == {
        "name": "c0", "precision": 1.0, "recall": 2 / 3, "f1": 0.8, "support": 3,
    }  # fmt: skip
    for row in result["per_class"][1:]:
        assert (row["precision"], row["recall"], row["f1"], row["support"]) == (None, None, None, 0)
    assert result["macro"] == {"precision": 1.0, "recall": 2 / 3, "f1": 0.8}


def test_class_never_predicted_has_precision_zero() -> None:
    row = _measured((np.eye(2)[[0, 0]], np.array([0, 1])), classes=2)["per_class"][1]
    assert (row["precision"], row["recall"], row["f1"]) == (0.0, 0.0, 0.0)


def test_equal_scores_are_ranked_by_class_index() -> None:
    flat = np.full((7, 7), 1 / 7)
    result = _measured((flat, np.arange(7)), classes=7)
    assert result["accuracy"] == 1 / 7
    assert result["top5"] == 5 / 7


def test_result_is_json_even_without_pictures() -> None:
    empty = Classification(_names(6))
    empty.update(np.zeros((0, 6)), np.zeros(0, np.int64), np.zeros(0))
    assert json.loads(json.dumps(empty.compute(), allow_nan=False)) == empty.compute()
    assert empty.compute()["accuracy"] is None
    full = _measured(_random(20, 6), classes=6)
    assert json.loads(json.dumps(full, allow_nan=False)) == full


def test_loss_is_none_where_none_was_given() -> None:
    scores, truth, _ = _random(10, 3)
    assert _measured((scores, truth), classes=3)["loss"] is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_takes_tensors_of_any_precision(dtype: torch.dtype) -> None:
    scores, truth, loss = _random(64, 10)
    tensor = torch.from_numpy(scores).to(dtype).requires_grad_()
    result = _measured((tensor, torch.from_numpy(truth), torch.from_numpy(loss)), classes=10)
    rounded = tensor.detach().double().numpy()
    assert result == _measured((rounded, truth, loss), classes=10)


def test_takes_arrays_that_cannot_be_written() -> None:
    scores, truth, loss = _random(20, 3)
    expected = _measured((scores, truth, loss), classes=3)
    for array in (scores, truth, loss):
        array.flags.writeable = False
    assert _measured((scores, truth, loss), classes=3) == expected


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 50), max_size=5), st.permutations(range(6)), st.booleans())
def test_any_split_and_any_merge_order_give_the_same_numbers(
    cuts: list[int], order: list[int], columns_first: bool
) -> None:
    batch = _random(50, 7)
    whole = _measured(batch, classes=7)
    bounds = [0, *sorted(cuts), *[50] * (6 - len(cuts))]
    parts = []
    for low, high in itertools.pairwise(bounds):
        part = Classification(_names(7))
        scores = np.asfortranarray(batch[0][low:high]) if columns_first else batch[0][low:high]
        part.update(scores, batch[1][low:high], batch[2][low:high])
        parts.append(part)
    left = Classification(_names(7))
    for i in order:
        left.merge(parts[i])
    assert left.compute() == whole

    # (a + b) + rest and a + (b + rest) are one.
    right = Classification(_names(7))
    for part in parts[1:]:
        right.merge(part)
    parts[0].merge(right)
    assert parts[0].compute() == whole


@given(st.lists(st.floats(-1e300, 1e300), max_size=30), st.integers(0, 30))
def test_exact_sum_is_the_rounded_true_sum(values: list[float], cut: int) -> None:
    total = _ExactSum()
    total.add(values[cut:])
    total.add(values[:cut])
    assert total.total() == float(sum(map(Fraction, values), Fraction()))


def test_merging_other_classes_is_refused() -> None:
    with pytest.raises(SigakError, match="same classes"):
        Classification(["cat", "dog"]).merge(Classification(["dog", "cat"]))


@pytest.mark.parametrize(
    ("scores", "truth", "loss", "message"),
    [
        (np.ones((2, 4)) / 4, [0, 1], None, r"scores must have shape \(B, 3\)"),
        (np.ones(3) / 3, [0, 1], None, r"scores must have shape \(B, 3\)"),
        (np.array([[5.0, -2.0, 1.0]]), [0], None, "apply a softmax first"),
        (np.array([[0.9, 0.9, 0.9]]), [0], None, "adding up to 1"),
        (np.array([[np.nan, 0.5, 0.5]]), [0], None, "diverged"),
        (np.eye(3), [0, 1], None, "truth must be 3 integer class indices"),
        (np.eye(3), [0.0, 1.0, 2.0], None, "truth must be 3 integer class indices"),
        (np.eye(3), [0, 1, 3], None, "class indices must be 0 to 2"),
        (np.eye(3), [0, 1, -2], None, "class indices must be 0 to 2"),
        (np.eye(3), [0, 1, 2], [1.0], "one number per picture"),
        (np.eye(3), [0, 1, 2], [1.0, np.inf, 1.0], "losses must be finite"),
    ],
)
def test_mistakes_are_explained(scores, truth, loss, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(SigakError, match=message):
        _measured((scores, np.array(truth), None if loss is None else np.array(loss)), classes=3)


def test_one_class_is_refused() -> None:
    with pytest.raises(SigakError, match="two classes or more"):
        Classification(["cat"])
