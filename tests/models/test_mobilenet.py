"""MobileNet: the paper's two knobs, and timm's published weights."""

import pytest
import timm
import torch
from torch import nn

from sigak import models


def multiply_adds(network, size):
    """Multiplications of the convolutions and dense layers for one picture of (H, W)."""
    counts = []

    def count(module, _, output):
        counts.append(module.weight[0].numel() * output.numel())

    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    with torch.device("meta"):
        network(torch.zeros(1, 3, *size))
    return sum(counts)


# Tables 6, 7 and 9 of the paper: millions of multiply-adds and of parameters.
@pytest.mark.parametrize(
    ("name", "side", "adds", "parameters"),
    [
        ("mobilenet", 224, 569, 4.2),
        ("mobilenet-0.75", 224, 325, 2.6),
        ("mobilenet-0.50", 224, 149, 1.3),
        ("mobilenet-0.25", 224, 41, 0.5),
        ("mobilenet", 128, 186, 4.2),
        ("mobilenet-0.50", 160, 76, 1.32),
    ],
)
def test_width_and_resolution_cost_what_the_paper_says(name, side, adds, parameters):
    with torch.device("meta"):
        network = models.create(name, size=(side, side)).eval()
    assert multiply_adds(network, (side, side)) / 1e6 == pytest.approx(adds, rel=0.02)
    assert models.entry(name).parameters[1] / 1e6 == pytest.approx(parameters, abs=0.05)


def test_timm_weights_give_timm_answers():
    torch.manual_seed(0)
    theirs = timm.create_model("mobilenetv1_100", num_classes=3).eval()
    ours = models.create("mobilenet", classes=3, mean=(0.0,) * 3, std=(1.0,) * 3).eval()
    (weights,) = models.entry("mobilenet").weights
    ours.load_state_dict(weights.convert(theirs.state_dict()), strict=True)
    images = torch.rand(2, 3, 64, 97)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), atol=1e-5, rtol=1e-4)
