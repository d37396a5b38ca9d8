"""ResNet for 32x32 pictures: the paper's sizes, its shortcut, the published weights."""

import os
from pathlib import Path

import pytest
import torch

import sigak
from sigak import foreign, models
from sigak.models.resnet_cifar import BasicBlock
from sigak.prediction import load

WEIGHTS = Path(os.environ.get("SIGAK_DATA", "")) / "weights" / "resnet20-12fca82f.th"


# Table 6 of the paper, in millions.
@pytest.mark.parametrize(
    ("layers", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)]
)
def test_sizes_are_the_papers(layers, millions):
    row = models.entry(f"resnet{layers}-cifar")
    assert row.parameters[1] / 1e6 == pytest.approx(millions, abs=0.03)
    assert 6 * row.args["blocks"] + 2 == layers


def test_the_shortcut_takes_every_second_pixel_and_adds_zero_channels():
    block = BasicBlock(2, 4, stride=2)
    x = torch.rand(1, 2, 5, 4)
    shortcut = block.shortcut(x)
    assert torch.equal(shortcut[:, 1:3], x[:, :, ::2, ::2])
    assert shortcut[:, [0, 3]].abs().max() == 0
    assert block(x).shape == shortcut.shape == (1, 4, 3, 2)


def test_without_a_change_of_shape_the_shortcut_is_the_input():
    x = torch.rand(1, 4, 5, 5)
    assert torch.equal(BasicBlock(4, 4, stride=1).shortcut(x), x)


@pytest.mark.data
def test_the_published_weights_know_their_classes(tmp_path):
    file = foreign.adopt(WEIGHTS, "resnet20-cifar", classes=None, out=tmp_path / "x.safetensors")
    assert load(file).classes[:2] == ["airplane", "automobile"]


@pytest.mark.data
@pytest.mark.slow
def test_the_published_weights_reach_the_published_accuracy(tmp_path):
    file = foreign.adopt(WEIGHTS, "resnet20-cifar", classes=None, out=tmp_path / "x.safetensors")
    assert sigak.evaluate(file, "cifar10")["accuracy"] == pytest.approx(0.9173, abs=1e-3)
