"""Depth, multiply-adds and memory are what papers and arithmetic say."""

import pytest
import torch
from torch import nn

from sigak import models
from sigak.complexity import measure
from sigak.models._entry import Entry, Input


@pytest.mark.parametrize(
    ("name", "depth"),
    [
        ("lenet5", 5),
        ("alexnet", 8),
        ("vgg16", 16),
        ("vgg19", 19),
        ("googlenet", 22),  # the longest of parallel ways
        ("resnet18", 18),  # a shortcut's convolution lies on no longest way
        ("resnet50", 50),
        ("mobilenet", 28),
        ("mobilenetv2", 53),
        ("squeezenet", 18),
        ("darknet19", 19),
        ("densenet121", 121),
        ("vit-tiny-16", 50),  # patches, 12 blocks of 4, the head
        ("lstm-rows", 2),
    ],
)
def test_depth_is_the_number_in_the_name(name, depth):
    assert measure(name).depth == depth


def test_multiply_adds_are_counted_by_hand():
    cost = measure("mlp")
    assert cost.multiply_adds == 784 * 128 + 128 * 10
    assert cost.widest == 784 * 2  # the picture, and the same standardised
    assert measure("vgg16").multiply_adds == pytest.approx(15.47e9, rel=1e-3)
    assert measure("resnet50").multiply_adds == pytest.approx(4.09e9, rel=1e-3)


class Odd(nn.Module):
    """Two ways of 1 and 2 layers that meet in a list, then attention; weights added as numbers."""

    def __init__(self, **_):
        super().__init__()
        self.short, self.long = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
        self.more = nn.Conv2d(4, 4, 1)
        self.place = nn.Parameter(torch.zeros(1, 16, 8))
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, images):
        both = torch.cat([self.short(images), self.more(self.long(images))], 1)
        tokens = both.flatten(2).transpose(1, 2) + self.place
        return self.attention(tokens, tokens, tokens)[0].mean(1)


def test_the_longest_way_counts(monkeypatch):
    mlp = models.import_module("sigak.models.mlp")
    monkeypatch.setitem(mlp.MODELS, "odd", Entry(Odd, "classify", Input((4, 4)), (0, 0)))
    assert measure("odd").depth == 4
