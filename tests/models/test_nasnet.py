"""NASNetMobile: 4 @ 1056, shapes at odd and even sizes, the factorised reduction."""

import pytest
import torch
from torch import nn

from sigak import models
from sigak.models.nasnet import NormalCell, ReductionCell, Separable, Squeeze


def test_it_is_4_at_1056():
    with torch.device("meta"):
        network = models.create("nasnetmobile").eval()
        assert network(torch.zeros(2, 3, 224, 224)).shape == (2, 1000)
    kinds = "".join("N" if isinstance(cell, NormalCell) else "R" for cell in network.cells)
    assert kinds == "RR" + "NNNN" + "R" + "NNNN" + "R" + "NNNN"
    assert network.classifier.in_features == 1056


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (5, 8)])
def test_cells_keep_or_halve_what_they_are_given(size):
    half = tuple((side + 1) // 2 for side in size)
    before, now = torch.rand(1, 6, *size), torch.rand(1, 10, *half)
    assert NormalCell(6, 10, 4, halve=True)(before, now).shape == (1, 24, *half)
    reduced = ReductionCell(6, 6, 4, "none")(before, before)
    assert reduced.shape == (1, 16, *half)


def test_halving_looks_at_even_pixels_and_at_odd_ones():
    squeeze = Squeeze(1, 2, halve=True).eval()
    for conv in (squeeze.conv1, squeeze.conv2):
        nn.init.ones_(conv.weight)
    squeeze.norm.eps = 0.0
    x = torch.arange(1.0, 10.0).view(1, 1, 3, 3)
    even, odd = squeeze(x)[0].tolist()
    assert even == [[1, 3], [7, 9]]
    assert odd == [[5, 0], [0, 0]]  # beyond the last pixel lies a zero


@pytest.mark.parametrize(("side", "expected"), [(4, [2, 4]), (5, [1, 3, 5])])
def test_stride_2_is_centred_as_in_tensorflow(side, expected):
    """What a 3x3 kernel of stride 2 sees in its middle: pixels 1, 3 of four, 0, 2, 4 of five."""
    separable = Separable(1, 1, 3, stride=2)
    nn.init.zeros_(separable.depthwise1.weight)
    separable.depthwise1.weight.data[0, 0, 1, 1] = 1
    seen = []
    separable.depthwise1.register_forward_hook(lambda _, __, output: seen.append(output))
    row = torch.arange(1.0, side + 1).expand(1, 1, side, side)
    separable(row)
    assert seen[0][0, 0, 0].tolist() == expected
