"""DarkNet: the layers of the papers' tables, and timm's published weights of DarkNet-53."""

import pytest
import timm
import torch
from torch import nn

from sigak import models
from sigak.models import darknet


def convolutions(network):
    return [m for m in network.modules() if isinstance(m, nn.Conv2d)]


def test_darknet19_is_table_6():
    with torch.device("meta"):
        network = models.create("darknet19")
    layers = [(m.out_channels, m.kernel_size[0]) for m in convolutions(network)]
    assert layers == [
        (32, 3), (64, 3), (128, 3), (64, 1), (128, 3), (256, 3), (128, 1), (256, 3),
        (512, 3), (256, 1), (512, 3), (256, 1), (512, 3),
        (1024, 3), (512, 1), (1024, 3), (512, 1), (1024, 3),
    ]  # fmt: skip
    assert len([m for m in network.modules() if isinstance(m, nn.MaxPool2d)]) == 5


def test_darknet53_has_52_convolutions_and_a_dense_layer():
    with torch.device("meta"):
        network = models.create("darknet53")
    assert len(convolutions(network)) == 52
    assert len([m for m in convolutions(network) if m.stride == (2, 2)]) == 5
    assert len([m for m in network.modules() if isinstance(m, darknet.Residual)]) == 23


@pytest.mark.parametrize("name", ["darknet19", "darknet53"])
def test_32_pixels_become_one(name):
    with torch.device("meta"):
        network = models.create(name)
        x = torch.zeros(1, 3, 96, 64)
        x = network.stages(network.stem(x) if name == "darknet53" else x)
    assert x.shape == (1, 1024, 3, 2)


def test_leaky_relus_have_the_slope_they_are_told():
    network = models.create("darknet53", width=1 / 16, slope=0.1)
    assert {m.negative_slope for m in network.modules() if isinstance(m, nn.LeakyReLU)} == {0.1}


def test_timm_weights_give_timm_answers():
    torch.manual_seed(0)
    theirs = timm.create_model("darknet53", num_classes=3).eval()
    ours = models.create("darknet53", classes=3, mean=(0.0,) * 3, std=(1.0,) * 3).eval()
    (weights,) = models.entry("darknet53").weights
    ours.load_state_dict(weights.convert(theirs.state_dict()), strict=True)
    images = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), atol=1e-5, rtol=1e-4)
