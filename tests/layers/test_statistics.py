"""Folded batch norms: statistics come back, the answer stays."""

from copy import deepcopy

import torch
from torch import nn

from sigak.layers.conv import ConvNorm
from sigak.layers.statistics import restore_statistics


def test_statistics_are_restored_without_a_change_of_the_answer():
    torch.manual_seed(0)
    network = nn.Sequential(ConvNorm(3, 8, 3), ConvNorm(8, 8, 3, groups=8), ConvNorm(8, 4)).eval()
    for block in network:  # as a folded file leaves it
        nn.init.uniform_(block.norm.bias)
        nn.init.constant_(block.norm.running_var, 1 - block.norm.eps)
    images = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        before = network(images)
        folded = deepcopy(network).train()(images)
        restore_statistics(network, images)
        assert not network.training
        after = network(images)
        learning = network.train()(images)
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-4)
    # In training batch norm takes its statistics from the batch: only now they are those it has.
    assert (folded - before).abs().max() > 0.1
    torch.testing.assert_close(learning, before, atol=1e-3, rtol=1e-2)
