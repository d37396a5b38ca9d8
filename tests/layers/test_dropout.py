"""Dropout: share, mean, independence, repeatability, edges, and the stock layer elsewhere."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sigak.layers.dropout import Dropout


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(40, 6, 9, 11), (4001,), (63, 65)])
def test_dropout_keeps_the_stated_share_and_the_mean(shape, dtype):
    torch.manual_seed(0)
    layer = Dropout(0.3)
    images = torch.ones(shape, dtype=dtype).requires_grad_()
    out = layer(images)
    out.sum().backward()
    kept = (out > 0).double().mean().item()
    spread = (0.3 * 0.7 / out.numel()) ** 0.5
    assert abs(kept - 0.7) < 5 * spread
    assert out.dtype == dtype
    torch.testing.assert_close(out.max().item(), 1 / 0.7, rtol=5e-3, atol=0)
    assert torch.equal(images.grad, out.detach())


def test_dropout_is_repeatable_and_independent_of_memory_order():
    images = torch.ones(4, 8, 6, 6)
    layer = Dropout(0.5)
    torch.manual_seed(3)
    first, second = layer(images), layer(images)
    torch.manual_seed(3)
    assert torch.equal(layer(images), first)
    assert not torch.equal(first, second)
    last = layer(images.to(memory_format=torch.channels_last))
    assert last.is_contiguous(memory_format=torch.channels_last)


def test_dropout_is_white():
    """Neighbouring elements share a random word; their masks must be independent all the same."""
    torch.manual_seed(0)
    mask = (Dropout(0.4)(torch.ones(2**18)) > 0).double() - 0.6
    for lag in range(1, 9):
        correlation = (mask[lag:] * mask[:-lag]).mean().item() / 0.24
        assert abs(correlation) < 5 / 2**9


def test_dropout_edges():
    images = torch.randn(5, 3)
    assert torch.equal(Dropout(0.3).eval()(images), images)
    assert torch.equal(Dropout(0.0)(images), images)
    assert torch.equal(Dropout(1.0)(images), torch.zeros(5, 3))
    assert Dropout(0.5)(images[:0]).shape == (0, 3)
    strided = torch.ones(6, 10)[:, ::2]
    assert Dropout(0.5)(strided).shape == (6, 5)


def test_every_gap_of_an_overlapping_view_has_its_own_mask():
    """An expanded tensor repeats memory; its elements are dropped one by one all the same."""
    torch.manual_seed(0)
    out = Dropout(0.5)(torch.ones(1, 4).expand(1000, 4))
    assert out.sum(1).unique().numel() == 5


def test_works_under_autocast_and_backward_uses_the_same_mask():
    images = torch.randn(4, 6, requires_grad=True)
    network = nn.Sequential(nn.Linear(6, 5000), Dropout(0.25))
    with torch.autocast("cpu", torch.bfloat16):
        out = network(images)
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    mask = (out != 0).float()
    torch.testing.assert_close(network[0].bias.grad, mask.sum(0) / 0.75, rtol=0.01, atol=0.01)


def test_export_and_state_dict_are_those_of_the_stock_layer():
    network = nn.Sequential(nn.Linear(3, 2), Dropout(0.5)).eval()
    images = torch.randn(2, 3)
    program = torch.export.export(network, (images,))
    assert torch.equal(program.module()(images), network(images))
    assert list(network.state_dict()) == ["0.weight", "0.bias"]
    assert repr(Dropout(0.5)) == repr(nn.Dropout(0.5))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_runs_the_stock_layer():
    images = torch.ones(1000, device="cuda")
    torch.manual_seed(0)
    ours = Dropout(0.5)(images)
    torch.manual_seed(0)
    assert torch.equal(ours, nn.Dropout(0.5)(images))
