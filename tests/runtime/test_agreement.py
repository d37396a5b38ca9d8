"""When two engines say the same."""

import numpy as np
import pytest
import torch

from sigak.io.image import Preparation
from sigak.recipe import Recipe
from sigak.runtime import agreement
from sigak.structures import Instances, Masks
from sigak.tasks import create
from sigak.tasks.classify import Classification
from sigak.tasks.detect import Detections


def shares(ours, theirs, count=2):
    return [d.share for d in agreement.differences(ours, theirs, ["a", "b"][:count])]


def test_differences_are_shares_of_the_largest_number():
    ours = torch.tensor([[1.0, -4.0], [2.0, 0.0]])
    theirs = torch.tensor([[1.0, -4.0], [2.0, 1.0]])
    assert shares(ours, theirs) == [0.0, 0.25]
    assert shares([ours, ours], (ours, theirs)) == [0.0, 0.25]


@pytest.mark.parametrize(
    "theirs", [torch.zeros(2, 3), torch.full((2, 2), torch.nan), [torch.ones(2, 2)] * 2]
)
def test_what_cannot_be_compared_is_infinitely_far(theirs):
    assert shares(torch.ones(2, 2), theirs) == [torch.inf] * 2


def answer(*scores):
    scores = np.array(scores)
    best = int(scores.argmax())
    return Classification("x", "abc"[best], float(scores[best]), scores, tuple("abc"))


def test_classes_are_the_same_to_a_hundredth():
    task = create("classify", list("abc"), Recipe())
    one = answer(0.5, 0.3, 0.2)
    assert agreement.same_answers(task, [one], [answer(0.505, 0.295, 0.2)])
    assert not agreement.same_answers(task, [one, one], [one, answer(0.52, 0.28, 0.2)])
    assert not agreement.same_answers(task, [answer(0.4, 0.399, 0.2)], [answer(0.399, 0.4, 0.2)])


def found(*rows):
    """Rows of x1, y1, x2, y2, label, score."""
    table = torch.tensor(rows, dtype=torch.float64).view(-1, 6)
    objects = Instances(table[:, :4], table[:, 4].long(), table[:, 5])
    return Detections("x", objects, ("a", "b"), (200, 200))


BOX, FAINT = (10, 10, 110, 110, 0, 0.9), (50, 50, 150, 150, 1, 0.255)


@pytest.mark.parametrize(
    ("ours", "theirs", "verdict"),
    [
        ([BOX], [(10, 10, 110, 110.4, 0, 0.905)], True),
        ([BOX], [(10, 10, 110, 112, 0, 0.9)], False),
        ([BOX], [(10, 10, 110, 110, 1, 0.9)], False),
        ([BOX], [(10, 10, 110, 110, 0, 0.85)], False),
        ([BOX], [BOX, FAINT], True),  # it may have missed the threshold just so
        ([BOX], [BOX, FAINT, (0, 0, 50, 50, 0, 0.5)], False),
        ([BOX], [], False),
        ([FAINT], [], True),
        ([], [], None),
    ],
)
def test_boxes_find_their_like(ours, theirs, verdict):
    task = create("detect", ["a", "b"], Recipe()).answering()
    assert agreement.same_answers(task, [found(*ours)], [found(*theirs)]) is verdict
    assert agreement.same_answers(task, [found(*theirs)], [found(*ours)]) is verdict


@pytest.mark.parametrize("color", ["gray", "rgb", "rgba"])
def test_drawn_pictures_are_prepared(color):
    preparation = Preparation((32, 48), color, "rect")
    batches = agreement.together(agreement.drawn(preparation, 5), 2)
    assert [len(batch) for batch in batches] == [2, 2, 1]
    assert batches[0].images.shape[1] == preparation.channels
    assert batches[0].images.max() <= 1
    assert len({picture.sum().item() for batch in batches for picture in batch.images}) == 5


def test_noise_is_repeated_and_names_itself():
    batch = agreement.noise((3, 4, 6), 2)
    assert torch.equal(batch.images, agreement.noise((3, 4, 6), 2).images)
    assert batch.sources[1] == "noise 4x6 of 2, 2"
    assert agreement.noise((100,), 3).images.shape == (3, 100)


def test_masks_are_the_same_but_for_their_borders():
    task = create("instances", ["cat", "dog"], Recipe())
    boxes, labels = torch.tensor([[0.0, 0, 30, 30], [10, 10, 40, 40]]), torch.tensor([0, 1])

    def masked(*edges):
        planes = np.zeros((2, 50, 50), bool)
        for plane, edge in zip(planes, edges):
            plane[2:edge, 2:28] = True
        scores = torch.tensor([0.9, 0.8])
        return Detections("x", Instances(boxes, labels, scores, Masks.of(planes)), ("cat", "dog"),
                          (50, 50))  # fmt: skip

    one = masked(28, 30)
    assert agreement.same_answers(task, [one], [one]) is True
    assert agreement.same_answers(task, [one], [masked(28, 31)]) is True
    assert agreement.same_answers(task, [one], [masked(28, 20)]) is False
    assert agreement.same_answers(task, [masked(2, 2)], [masked(2, 2)]) is True  # no pixel either
