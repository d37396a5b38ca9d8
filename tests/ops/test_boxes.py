import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sigak.ops import boxes

FORMS = [
    (boxes.xyxy_to_cxcywh, boxes.cxcywh_to_xyxy),
    (boxes.xyxy_to_xywh, boxes.xywh_to_xyxy),
    (lambda b: boxes.normalized(b, (40, 80)), lambda b: boxes.denormalized(b, (40, 80))),
]


def test_forms_of_a_known_box() -> None:
    box = torch.tensor([[10.0, 20.0, 30.0, 28.0]])
    assert boxes.xyxy_to_cxcywh(box).tolist() == [[20, 24, 20, 8]]
    assert boxes.xyxy_to_xywh(box).tolist() == [[10, 20, 20, 8]]
    shares = torch.tensor([[0.125, 0.5, 0.375, 0.7]])
    assert torch.allclose(boxes.normalized(box, (40, 80)), shares)


@pytest.mark.parametrize(("there", "back"), FORMS)
@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(*[st.floats(0, 100, width=32)] * 4), max_size=5))
def test_every_form_comes_back(there, back, corners) -> None:
    given_boxes = torch.tensor(corners).reshape(-1, 4)
    assert torch.allclose(back(there(given_boxes)), given_boxes, atol=1e-4)


def test_area_and_clip() -> None:
    box = torch.tensor([[-5.0, 2.0, 5.0, 4.0], [3.0, 3.0, 1.0, 5.0], [0.0, 0.0, 99.0, 99.0]])
    assert boxes.area(box).tolist() == [20, 0, 9801]
    assert boxes.clip(box, (10, 20))[[0, 2]].tolist() == [[0, 2, 5, 4], [0, 0, 20, 10]]


def test_iou_of_all_pairs() -> None:
    first = torch.tensor([[0.0, 0.0, 10.0, 10.0], [5.0, 5.0, 5.0, 5.0]])
    second = torch.tensor([[0.0, 0.0, 10.0, 5.0], [5.0, 0.0, 15.0, 10.0], [20.0, 20.0, 30.0, 30.0]])
    expected = torch.tensor([[0.5, 1 / 3, 0.0], [0.0, 0.0, 0.0]])
    assert torch.allclose(boxes.iou(first, second), expected)
    empty = torch.zeros(1, 4)
    assert boxes.iou(empty, empty).tolist() == [[0.0]]
    assert boxes.iou(first, second[:0]).shape == (2, 0)


def test_a_turned_square_gets_its_hull() -> None:
    cos = sin = math.sqrt(0.5)
    turn = torch.tensor([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
    hull = boxes.transform_boxes(torch.tensor([[-1.0, -1.0, 1.0, 1.0]]), turn)
    reach = math.sqrt(2)
    assert torch.allclose(hull, torch.tensor([[-reach, -reach, reach, reach]]))
    assert boxes.transform_boxes(torch.zeros(0, 4), turn).shape == (0, 4)
