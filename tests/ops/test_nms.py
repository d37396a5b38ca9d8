"""Suppression: against one written out plainly, torchvision's, and the worked example."""

from __future__ import annotations

import math

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st

from sigak.ops.boxes import iou as box_iou
from sigak.ops.nms import _apart, _suppress, nms, soft_nms
from sigak.structures import SigakError


def crowded(count: int, classes: int = 3, seed: int = 0):
    """Boxes in heaps, scores with many ties, labels."""
    random = torch.Generator().manual_seed(seed)
    heaps = torch.rand(max(count // 8, 1), 2, generator=random) * 200
    place = torch.randint(len(heaps), (count,), generator=random)
    middle = heaps[place] + torch.randn(count, 2, generator=random) * 3
    sides = torch.rand(count, 2, generator=random) * 20 + 15
    boxes = torch.cat([middle - sides / 2, middle + sides / 2], 1)
    scores = (torch.rand(count, generator=random) * 20).round() / 20
    return boxes, scores, torch.randint(classes, (count,), generator=random)


def plain(boxes, scores, labels, iou):
    """Sort; keep the best; drop what overlaps it; repeat."""
    overlap = box_iou(boxes, boxes)
    left = sorted(range(len(boxes)), key=lambda i: -scores[i].item())
    kept = []
    while left:
        best, *rest = left
        kept.append(best)
        left = [i for i in rest if labels[i] != labels[best] or overlap[best, i] <= iou]
    return kept


def test_the_worked_example() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [0, 0, 10, 10], [30, 30, 40, 40]])
    scores = torch.tensor([0.8, 0.9, 0.7, 0.6])
    # IoU of the first two is 90 / 110; the third is of another class.
    assert nms(boxes, scores, torch.tensor([0, 0, 1, 0]), 0.5).tolist() == [1, 2, 3]
    assert nms(boxes, scores, None, 0.5).tolist() == [1, 3]
    assert nms(boxes, scores, None, 0.82).tolist() == [1, 0, 3]  # the third equals the first
    assert nms(boxes, scores, torch.tensor([0, 0, 1, 0]), 0.5, most=2).tolist() == [1, 2]


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 60),
    st.integers(1, 5),
    st.integers(0, 10**6),
    st.sampled_from([0.0, 0.3, 0.5, 0.9, 1.0]),
)
def test_it_is_the_plain_algorithm(count, classes, seed, iou) -> None:
    boxes, scores, labels = crowded(count, classes, seed)
    assert nms(boxes, scores, labels, iou).tolist() == plain(boxes, scores, labels, iou)
    no_labels = torch.zeros_like(labels)
    assert nms(boxes, scores, None, iou).tolist() == plain(boxes, scores, no_labels, iou)


@pytest.mark.parametrize("count", [500, 6000])
def test_it_keeps_what_torchvision_keeps(count) -> None:
    boxes, _, labels = crowded(count, 20)
    scores = torch.randperm(count).float() / count  # without ties
    assert torch.equal(
        nms(boxes, scores, labels, 0.6), torchvision.ops.batched_nms(boxes, scores, labels, 0.6)
    )
    assert torch.equal(nms(boxes, scores, None, 0.6), torchvision.ops.nms(boxes, scores, 0.6))


@pytest.mark.parametrize("most", [1, 7, 300, 5000])
def test_the_first_of_all_that_are_kept(most) -> None:
    boxes, scores, labels = crowded(5000, 4)
    for kinds in (labels, None):
        everything = nms(boxes, scores, kinds, 0.5)
        assert torch.equal(nms(boxes, scores, kinds, 0.5, most), everything[:most])


def test_a_first_look_that_finds_too_little_is_not_the_last() -> None:
    # 3,000 copies of one box come before ten others.
    boxes = torch.tensor([[0.0, 0, 10, 10]]).repeat(3010, 1)
    boxes[3000:] += torch.arange(1, 11)[:, None] * 100
    scores = torch.linspace(1, 0.5, 3010)
    assert nms(boxes, scores, None, 0.5, most=5).tolist() == [0, 3000, 3001, 3002, 3003]


def test_classes_do_not_meet_and_small_boxes_are_not_moved() -> None:
    """Shifting the classes apart in float32 would lose the digits of the small boxes."""
    small = torch.tensor([[0.0, 0, 0.01, 0.01], [0.004, 0, 0.014, 0.01], [1e5, 1e5, 2e5, 2e5]])
    boxes = small.repeat(80, 1)
    labels = torch.arange(80).repeat_interleave(3)
    scores = torch.linspace(1, 0.1, 240)
    assert len(nms(boxes, scores, labels, 0.5)) == 240
    assert len(nms(boxes, scores, labels, 0.4)) == 160
    # The way for devices: all classes at once.
    apart = _apart(boxes, labels)
    assert torch.equal(_suppress(apart, 0.5), torch.arange(240))
    assert torch.equal(_suppress(apart, 0.4), nms(boxes, scores, labels, 0.4))
    assert _apart(boxes[:0], labels[:0]).shape == (0, 4)


def test_equal_scores_keep_their_order() -> None:
    boxes, _, labels = crowded(400, 2)
    kept = nms(boxes, torch.full((400,), 0.5), labels, 0.5)
    assert kept.tolist() == sorted(kept.tolist())
    assert torch.equal(kept, nms(boxes, torch.full((400,), 0.5), labels, 0.5))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_precision_is_taken(dtype) -> None:
    boxes = torch.tensor([[0.0, 0, 16, 16], [0, 0, 16, 15], [64, 64, 80, 80]], dtype=dtype)
    scores = torch.tensor([0.25, 0.5, 0.75], dtype=dtype)
    assert nms(boxes, scores, torch.zeros(3, dtype=torch.int64), 0.5).tolist() == [2, 1]
    found, lowered = soft_nms(boxes, scores)
    assert found.tolist()[:2] == [2, 1]
    assert lowered.dtype == dtype


def plain_soft(boxes, scores, labels, factor, least):
    scores = scores.tolist()
    left = list(range(len(scores)))
    kept = []
    while left:
        best = max(left, key=lambda i: scores[i])
        if scores[best] < least:
            break
        left.remove(best)
        kept.append((best, scores[best]))
        for i in left:
            if labels[i] == labels[best]:
                scores[i] *= factor(box_iou(boxes[best][None], boxes[i][None]).item())
    return sorted(kept, key=lambda pair: -pair[1])


@pytest.mark.parametrize("decay", ["linear", "gaussian"])
@pytest.mark.parametrize("seed", range(3))
def test_soft_suppression_is_the_plain_algorithm(decay, seed) -> None:
    boxes, _, labels = crowded(40, 2, seed)
    boxes = boxes.double()
    scores = torch.rand(40, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    factors = {
        "linear": lambda overlap: 1 - overlap if overlap > 0.3 else 1,
        "gaussian": lambda overlap: math.exp(-(overlap**2) / 0.5),
    }
    expected = plain_soft(boxes, scores, labels, factors[decay], 0.05)
    found, lowered = soft_nms(boxes, scores, labels, iou=0.3, decay=decay, sigma=0.5, least=0.05)
    assert found.tolist() == [place for place, _ in expected]
    assert torch.allclose(lowered, torch.tensor([s for _, s in expected], dtype=torch.float64))
    first, _ = soft_nms(boxes, scores, labels, decay=decay, least=0.05, most=3)
    assert first.tolist() == found.tolist()[:3]
    everything, _ = soft_nms(boxes, scores, None, decay=decay, least=0)
    assert sorted(everything.tolist()) == list(range(40))


def test_what_is_given_stays_as_it_was() -> None:
    boxes, scores, labels = crowded(50)
    copies = boxes.clone(), scores.clone(), labels.clone()
    nms(boxes, scores, labels)
    soft_nms(boxes, scores, labels)
    assert all(map(torch.equal, (boxes, scores, labels), copies))


def test_nothing_is_kept_of_nothing() -> None:
    boxes, scores, labels = torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64)
    for kinds in (labels, None):
        for kept in (nms(boxes, scores, kinds), soft_nms(boxes, scores, kinds)[0]):
            assert kept.shape == (0,)
            assert kept.dtype == torch.int64


def test_mistakes_are_named() -> None:
    boxes, scores, labels = crowded(5)
    with pytest.raises(SigakError, match=r"received shapes \(5, 4\), \(4,\), \(5,\)"):
        nms(boxes, scores[:4], labels)
    with pytest.raises(SigakError, match="between 0 and 1, received 45"):
        nms(boxes, scores, labels, 45)
    with pytest.raises(SigakError, match="linear or gaussian and sigma above 0"):
        soft_nms(boxes, scores, labels, sigma=0)
