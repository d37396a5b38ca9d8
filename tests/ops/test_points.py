import pytest
import torch

from sigak.ops.points import swap_points, transform_points, transform_xy
from sigak.structures import SigakError

MIRROR = torch.tensor([[-1.0, 0.0, 20.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]).double()


def test_points_move_and_those_outside_lose_their_visibility() -> None:
    points = torch.tensor([[[3.0, 4.0, 2.0], [25.0, 4.0, 2.0], [5.0, 12.0, 1.0]]])
    moved = transform_points(points, MIRROR, (10, 20))
    assert moved.tolist() == [[[17, 4, 2], [-5, 4, 0], [15, 12, 0]]]


def test_matrix_then_inverse_is_identity_with_perspective() -> None:
    matrix = torch.tensor([[1.1, 0.2, 3.0], [-0.1, 0.9, 2.0], [0.001, -0.002, 1.0]]).double()
    xy = torch.rand(7, 2, generator=torch.Generator().manual_seed(0)).double() * 50
    assert torch.allclose(transform_xy(transform_xy(xy, matrix), matrix.inverse()), xy)


def test_swap_exchanges_names() -> None:
    points = torch.arange(9.0).reshape(1, 3, 3)
    assert swap_points(points, [1, 0, 2])[0, 0].tolist() == [3, 4, 5]
    with pytest.raises(SigakError, match="each of the 3 points once"):
        swap_points(points, [1, 1, 2])
