import math

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st

from sigak.ops import boxes
from sigak.structures import SigakError

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


# ---------------------------------------------------------------- agreement of two boxes

KINDS = ("iou", "giou", "diou", "ciou")
TORCHVISION = {
    "giou": torchvision.ops.generalized_box_iou_loss,
    "diou": torchvision.ops.distance_box_iou_loss,
    "ciou": torchvision.ops.complete_box_iou_loss,
}


def pairs_of_boxes(count: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """Boxes that overlap, touch, lie apart and lie in each other."""
    random = torch.Generator().manual_seed(3)
    middle = torch.rand(count, 4, generator=random, dtype=torch.float64) * 60
    sides = torch.rand(count, 4, generator=random, dtype=torch.float64) * 80 + 0.5
    made = [
        torch.cat([middle[:, k : k + 2] - sides[:, k : k + 2] / 2,
                   middle[:, k : k + 2] + sides[:, k : k + 2] / 2], 1)
        for k in (0, 2)
    ]  # fmt: skip
    made[1][:5] = made[0][:5]
    made[1][5:9] += 1000
    return [boxes_.to(dtype).requires_grad_() for boxes_ in made]


@pytest.mark.parametrize("kind", TORCHVISION)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_agreement_and_its_gradient_are_those_of_torchvision(kind, dtype) -> None:
    ours, theirs = pairs_of_boxes(300, dtype), pairs_of_boxes(300, dtype)
    value = 1 - boxes.aligned_iou(*ours, kind)
    expected = TORCHVISION[kind](*theirs)
    assert torch.allclose(value, expected, atol=1e-6, rtol=0)
    value.sum().backward()
    expected.sum().backward()
    apart = slice(5, None)  # at equal boxes the largest of two equal corners may share differently
    for one, other in zip(ours, theirs):
        assert torch.allclose(one.grad[apart], other.grad[apart], atol=1e-6, rtol=1e-4)


def test_agreement_by_hand() -> None:
    # Two 4 x 2 boxes side by side with a gap of 2: the hull is 10 x 2, the centres are 6 apart.
    first, second = torch.tensor([0.0, 0, 4, 2]), torch.tensor([6.0, 0, 10, 2])
    assert boxes.aligned_iou(first, second).item() == 0
    assert boxes.aligned_iou(first, second, "giou").item() == pytest.approx(-4 / 20)
    assert boxes.aligned_iou(first, second, "diou").item() == pytest.approx(-36 / 104)
    assert boxes.aligned_iou(first, second, "ciou").item() == pytest.approx(-36 / 104)
    # A square in a 1 x 4 box, around one centre.
    tall = torch.tensor([1.5, 0, 2.5, 4])
    square = torch.tensor([1.5, 1.5, 2.5, 2.5])
    v = 4 / math.pi**2 * (math.atan(1 / 4) - math.atan(1)) ** 2
    assert boxes.aligned_iou(tall, square, "diou").item() == pytest.approx(1 / 4)
    expected = 1 / 4 - v * v / (1 - 1 / 4 + v)
    assert boxes.aligned_iou(tall, square, "ciou").item() == pytest.approx(expected)


@pytest.mark.parametrize("kind", KINDS)
def test_every_pair_is_the_aligned_form_of_all_pairs(kind) -> None:
    first, second = (b.detach() for b in pairs_of_boxes(20, torch.float64))
    every = getattr(boxes, kind)(first, second[:7])
    assert every.shape == (20, 7)
    one_by_one = [[boxes.aligned_iou(a, b, kind) for b in second[:7]] for a in first]
    assert torch.allclose(every, torch.tensor(one_by_one, dtype=torch.float64))
    assert getattr(boxes, kind)(first[:0], second).shape == (0, 20)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_boxes_agree_wholly_at_every_scale(kind) -> None:
    for scale in (1e-3, 1.0, 1e4):
        box = torch.tensor([[0.2, 0.3, 0.9, 0.5]]) * scale
        assert boxes.aligned_iou(box, box, kind).item() == 1
        half = box.half().float()
        assert boxes.aligned_iou(box.half(), box.half(), kind).dtype == torch.float32
        assert boxes.aligned_iou(half, half, kind).item() == 1


@pytest.mark.parametrize("kind", KINDS)
def test_boxes_without_area_have_finite_gradients(kind) -> None:
    point = torch.tensor([[5.0, 5, 5, 5], [0, 0, 0, 8], [9, 9, 3, 3]], requires_grad=True)
    other = torch.tensor([[5.0, 5, 5, 5], [0, 0, 4, 4], [1, 1, 2, 2]])
    value = boxes.aligned_iou(point, other, kind)
    value.sum().backward()
    assert value.isfinite().all()
    assert point.grad.isfinite().all()


def test_the_weight_of_the_shape_gets_no_gradient() -> None:
    wide = torch.tensor([0.0, 0, 8, 2], dtype=torch.float64, requires_grad=True)
    tall = torch.tensor([0.0, 0, 2, 8], dtype=torch.float64)
    terms = boxes.aligned_iou(wide, tall, "diou") - boxes.aligned_iou(wide, tall, "ciou")
    terms.backward()
    slopes = torch.atan((wide[2] - wide[0]) / (wide[3] - wide[1])) - math.atan(2 / 8)
    v = 4 / math.pi**2 * slopes**2
    alpha = (v / (1 - boxes.aligned_iou(wide, tall) + v)).item()
    (expected,) = torch.autograd.grad(alpha * v, wide)
    assert torch.allclose(wide.grad, expected)


def test_an_unknown_kind_is_refused() -> None:
    box = torch.zeros(1, 4)
    with pytest.raises(SigakError, match="kind must be one of iou, giou, diou or ciou"):
        boxes.aligned_iou(box, box, "eiou")
