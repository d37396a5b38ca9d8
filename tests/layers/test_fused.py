"""The fused blocks against the stock modules: outputs, gradients, statistics, names, fall-backs."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from sigak.layers.fused import Dropout, FusedSequential, _ConvReLUNorm, _match


def _layers(bias: bool = True, channels: int = 5, **conv: int) -> list[nn.Module]:
    conv = {"kernel_size": 3, "padding": 1} | conv
    return [
        nn.Conv2d(3, channels, bias=bias, **conv),
        nn.ReLU(),
        nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01),
        nn.Conv2d(channels, 4, 3, padding=1),
        nn.ReLU(),
        nn.BatchNorm2d(4, momentum=0.1),
        nn.MaxPool2d(2),
    ]


def _pair(layers: list[nn.Module]) -> tuple[nn.Sequential, FusedSequential]:
    torch.manual_seed(0)
    for layer in layers:
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 2.0)
            nn.init.normal_(layer.bias)
    return nn.Sequential(*copy.deepcopy(layers)), FusedSequential(*layers)


def _step(network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Output and input gradient of one step whose loss weighs every output differently."""
    images = images.clone().requires_grad_()
    out = network(images)
    weights = torch.linspace(-1, 1, out.numel()).view_as(out)
    (out.float() * weights).sum().backward()
    return out.detach(), images.grad


def _assert_same(
    stock: nn.Module, fused: nn.Module, images: Tensor, tolerance: float = 1e-5
) -> None:
    def close(a: Tensor, b: Tensor) -> None:
        scale = max(1.0, b.abs().max().item())
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * scale)

    for a, b in zip(_step(fused, images), _step(stock, images), strict=True):
        close(a, b)
    for (name, a), (other, b) in zip(
        fused.named_parameters(), stock.named_parameters(), strict=True
    ):
        assert name == other
        close(a.grad, b.grad)
    assert fused.state_dict().keys() == stock.state_dict().keys()
    for key, value in fused.state_dict().items():
        close(value.float(), stock.state_dict()[key].float())


def _is_fused(network: nn.Module, images: Tensor) -> bool:
    """Whether the graph of a forward pass holds the fused node."""
    nodes, seen = [network(images).grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if "ConvReLUNorm" in node.name():
            return True
        nodes += [parent for parent, _ in node.next_functions]
    return False


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(1, 3, 4, 6), (2, 3, 7, 5), (3, 3, 9, 8)])
@pytest.mark.parametrize(
    "conv",
    [
        {},
        {"bias": False},
        {"stride": 2},
        {"dilation": 2, "padding": 2},
        {"kernel_size": 1, "padding": 0},
    ],
)
def test_equals_the_stock_modules(shape, memory, conv):
    if conv.get("stride") and shape[2] < 7:
        pytest.skip("the picture is smaller than the layers need")
    stock, fused = _pair(_layers(**conv))
    stock, fused = stock.to(memory_format=memory), fused.to(memory_format=memory)
    images = torch.randn(shape).to(memory_format=memory)
    assert _is_fused(copy.deepcopy(fused), images)
    _assert_same(stock, fused, images)


@pytest.mark.parametrize("gain", [-1.0, 0.0])
def test_gains_that_do_not_commute_with_the_pool(gain):
    stock, fused = _pair(_layers())
    for network in (stock, fused):
        network[5].weight.data[1] = gain
    assert not _match(list(fused)[3:]).pool
    _assert_same(stock, fused, torch.randn(2, 3, 6, 6))


def test_three_steps_of_sgd_stay_together():
    stock, fused = _pair(_layers())
    for network in (stock, fused):
        torch.manual_seed(1)
        optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9)
        for _ in range(3):
            optimizer.zero_grad()
            _step(network, torch.randn(2, 3, 8, 8))
            optimizer.step()
    for a, b in zip(fused.state_dict().values(), stock.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_gradcheck_in_double_precision():
    torch.manual_seed(0)
    conv, relu, norm, pool = _layers()[3:]
    unit = _match([conv.double(), relu, norm.double(), pool])
    leaves = [
        torch.randn(2, 5, 4, 4, dtype=torch.double),
        conv.weight,
        conv.bias,
        norm.weight,
        norm.bias,
    ]
    leaves = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    for unit_ in (unit, unit._replace(pool=False)):
        assert torch.autograd.gradcheck(lambda *p, u=unit_: _ConvReLUNorm.apply(*p, u), leaves)


def test_autocast_agrees_with_stock_autocast():
    stock, fused = _pair(_layers())
    images = torch.randn(4, 3, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert _is_fused(copy.deepcopy(fused), images)
        out = fused(images)
        expected = stock(images)
    assert out.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(out, expected, rtol=0.05, atol=0.05)
    out.float().square().mean().backward()
    expected.float().square().mean().backward()
    for a, b in zip(fused.parameters(), stock.parameters(), strict=True):
        assert a.grad.dtype == torch.float32
        error = (a.grad - b.grad).norm() / (b.grad.norm() + 1e-2)
        assert error < 0.1


def test_evaluation_is_the_stock_path_bit_for_bit():
    stock, fused = _pair(_layers())
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(fused.eval()(images), stock.eval()(images))
    program = torch.export.export(fused, (images,))
    assert not [n for n in program.graph.nodes if "ConvReLUNorm" in str(n.target)]
    assert torch.equal(program.module()(images), stock(images))


def test_hooked_or_frozen_children_run_one_by_one():
    images = torch.randn(2, 3, 8, 8)
    hooked, frozen, still = (FusedSequential(*_layers()[:3]) for _ in range(3))
    seen: list[torch.Size] = []
    hooked[1].register_forward_hook(lambda module, args, out: seen.append(out.shape))
    frozen[2].requires_grad_(False)
    still[2].eval()
    for network in (hooked, frozen, still):
        assert not _is_fused(network, images)
    assert seen == [torch.Size([2, 5, 8, 8])]
    with torch.no_grad():
        assert FusedSequential(*_layers())(images).grad_fn is None


def test_too_few_values_raise_as_stock_does():
    for network in _pair(_layers()[:3]):
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            network(torch.randn(1, 3, 1, 1))


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
