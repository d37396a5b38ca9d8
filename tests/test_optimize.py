"""Optimisers by name, who decays and at what rate, and schedules as functions of the step."""

import math

import pytest
import torch
from torch import nn

from sigak import models, optimize
from sigak.recipe import Recipe
from sigak.structures import SigakError


def network():
    torch.manual_seed(0)
    return models.create("vgg3-dropout-bn", classes=3, widths=(4, 4, 4), dense=8)


def groups(optimizer, net):
    """{parameter name: (rate, decay)}"""
    names = {id(p): name for name, p in net.named_parameters()}
    return {
        names[id(p)]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for p in group["params"]
    }


def test_kernels_decay_and_a_pretrained_backbone_moves_slowly():
    net = network()
    recipe = Recipe(lr=1.0, backbone_lr=0.1, weight_decay=0.5)
    kernels = {n for n, p in net.named_parameters() if p.ndim > 1}
    fresh = groups(optimize.build(net, net.head, recipe, pretrained=False), net)
    assert fresh == {n: (1.0, 0.5 if n in kernels else 0.0) for n, _ in net.named_parameters()}
    tuned = groups(optimize.build(net, net.head, recipe, pretrained=True), net)
    for name, (rate, decay) in tuned.items():
        assert rate == (1.0 if name.startswith("classifier.") else 0.1)
        assert decay == (0.5 if name in kernels else 0.0)


@pytest.mark.parametrize("name", sorted(optimize.NAMES))
def test_every_optimiser_takes_a_step(name):
    net = network()
    optimizer = optimize.build(net, net.head, Recipe(lr=0.01, optimizer=name), pretrained=False)
    before = net.classifier.weight.detach().clone()
    nn.functional.cross_entropy(net(torch.rand(2, 3, 32, 32)), torch.tensor([0, 1])).backward()
    optimizer.step()
    assert not torch.equal(before, net.classifier.weight)
    assert net.classifier.weight.isfinite().all()


def test_names_have_the_usual_meaning():
    def kind(name):
        net = network()
        return optimize.build(net, net.head, Recipe(optimizer=name, momentum=0.8), False)

    assert isinstance(kind("AdamW"), torch.optim.AdamW)
    for name in ("sgd", "momentum", "rmsprop"):
        assert kind(name).param_groups[0]["momentum"] == 0.8
    with pytest.raises(SigakError, match=r"no optimiser called 'adamm'; did you mean .*adam"):
        optimize.check(Recipe(optimizer="adamm"))


FACTORS = {
    # at the steps 0, 5, 10, 15, 19 of 20
    "constant": [1, 1, 1, 1, 1],
    "linear": [1, 0.75, 0.5, 0.25, 0.05],
    "cosine": [1, 0.5 + math.sqrt(0.125), 0.5, 0.5 - math.sqrt(0.125), 0.006155830],
    "step": [1, 1, 0.1, 0.01, 0.01],
    "exponential": [1, 0.01**0.25, 0.1, 0.01**0.75, 0.01**0.95],
    "onecycle": [0.04, 0.84, 0.811744901, 0.283058130, 0.012536044],
}


@pytest.mark.parametrize("schedule", FACTORS)
def test_schedules(schedule):
    recipe = Recipe(epochs=4, schedule=schedule)
    seen = [optimize.factor(recipe, step, 5) for step in (0, 5, 10, 15, 19)]
    assert seen == pytest.approx(FACTORS[schedule], abs=1e-8)


def test_warmup_is_linear_and_the_schedule_has_the_rest():
    recipe = Recipe(epochs=3, schedule="linear", warmup=1.0)
    seen = [optimize.factor(recipe, step, 4) for step in range(12)]
    assert seen[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert seen[4:] == pytest.approx([1 - i / 8 for i in range(8)])
    shares = optimize.build(network(), ("classifier",), Recipe(lr=2.0), True)
    assert optimize.set_lr(shares, 0.25) == 0.5
    assert {g["lr"] for g in shares.param_groups} == {0.5, 0.05}


def test_freezing_leaves_the_head():
    net = network().train()
    optimize.freeze(net, net.head, frozen=True, norms=True)
    moving = {name for name, p in net.named_parameters() if p.requires_grad}
    assert moving == {"classifier.weight", "classifier.bias"}
    assert not any(m.training for m in net.modules() if isinstance(m, nn.BatchNorm2d))
    net.train()
    optimize.freeze(net, net.head, frozen=False, norms=False)
    assert all(p.requires_grad for p in net.parameters())
    assert all(m.training for m in net.modules())


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "rmsprop", "muon"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_restored_optimiser_goes_on_as_before(name, layout):
    images, labels = torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])

    def step(net, optimizer):
        nn.functional.cross_entropy(net(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    def fresh():
        net = network().eval().to(memory_format=layout)
        return net, optimize.build(net, net.head, Recipe(optimizer=name, lr=0.01), False)

    whole, first = fresh(), fresh()
    for _ in range(4):
        step(*whole)
    for _ in range(2):
        step(*first)
    second = fresh()
    second[0].load_state_dict({k: v.contiguous() for k, v in first[0].state_dict().items()})
    saved = first[1].state_dict()
    for buffers in saved["state"].values():
        buffers.update({k: v.contiguous() for k, v in buffers.items() if torch.is_tensor(v)})
    optimize.restore(second[1], saved)
    for _ in range(2):
        step(*second)
    for ours, theirs in zip(whole[0].parameters(), second[0].parameters()):
        assert torch.equal(ours, theirs)


def test_batch_norm_of_a_lone_picture():
    net = network().train()
    before = {n: b.clone() for n, b in net.named_buffers()}
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        net(torch.rand(1, 3, 32, 32))
    net.load_state_dict(before, strict=False)
    with optimize.norms_for(net, 1):
        assert net(torch.rand(1, 3, 32, 32)).isfinite().all()
    assert all(torch.equal(b, before[n]) for n, b in net.named_buffers())
    assert all(m.training for m in net.modules())
    with optimize.norms_for(net, 2):
        net(torch.rand(2, 3, 32, 32))
    assert not torch.equal(net.dense[3].running_mean, before["dense.3.running_mean"])


# ------------------------------------------------------------------ Muon


@pytest.mark.parametrize("shape", [(16, 54), (16, 144), (24, 6)])
def test_orthogonalising_keeps_directions_and_levels_lengths(shape):
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    found = optimize.orthogonalize(matrix)
    lengths = torch.linalg.svdvals(found)
    assert 0.6 < lengths.min() <= lengths.max() < 1.25
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    across = u.T @ found @ v.T  # diagonal where the singular vectors are the same
    torch.testing.assert_close(across, across.diag().diag(), atol=1e-4, rtol=0)
    assert (across.diag() > 0).all()
    torch.testing.assert_close(optimize.orthogonalize(1e3 * matrix), found, atol=1e-5, rtol=1e-5)


def test_a_matrix_of_zeros_stays_one():
    assert torch.equal(optimize.orthogonalize(torch.zeros(3, 7)), torch.zeros(3, 7))


def sprinter(**changes):
    torch.manual_seed(0)
    net = models.create("sprint", classes=3, widths=(4, 4), size=(12, 12))
    return net, optimize.build(net, net.head, Recipe(optimizer="muon", **changes), False)


def test_muon_knows_kernels_and_the_rest():
    net, optimizer = sprinter(lr=0.1, weight_decay=0.5)
    names = {id(p): name for name, p in net.named_parameters()}
    roles = {names[id(p)]: g["role"] for g in optimizer.param_groups for p in g["params"]}
    assert {roles[n] for n in roles if n.startswith("blocks.")} == {"scale-free", "rest"}
    assert all(
        (roles[n] == "rest") == (p.ndim < 2) for n, p in net.blocks.named_parameters("blocks")
    )
    assert roles["classifier.weight"] == "rest"
    plain = network()
    built = optimize.build(plain, plain.head, Recipe(optimizer="muon"), False)
    assert {g["role"] for g in built.param_groups} == {"kernel", "rest"}


def test_muon_moves_every_direction_of_a_kernel_alike():
    net, optimizer = sprinter(lr=0.1, momentum=0.0)
    kernel = net.blocks[1][0].weight
    with torch.no_grad():
        kernel.mul_(3)
    before = kernel.detach() * (2 / kernel.detach().norm())  # 4 rows: a norm of 2
    net(torch.rand(6, 3, 12, 12)).square().sum().backward()
    gradient = kernel.grad.flatten(1)
    optimizer.step()
    moved = (before - kernel.detach()).flatten(1)
    torch.testing.assert_close(moved, 0.1 * optimize.orthogonalize(gradient), atol=1e-6, rtol=1e-4)


def test_muon_moves_the_rest_by_adam():
    """The same numbers as PyTorch's Adam at a tenth of the rate."""
    (net, ours), (twin, _) = sprinter(lr=0.1), sprinter()
    theirs = torch.optim.Adam([twin.classifier.weight], lr=0.01, betas=(0.9, 0.95))
    for _ in range(3):
        gradient = torch.randn_like(net.classifier.weight)
        net.classifier.weight.grad, twin.classifier.weight.grad = gradient, gradient.clone()
        ours.step()
        theirs.step()
    torch.testing.assert_close(net.classifier.weight, twin.classifier.weight)


def test_the_moving_average_forgets_its_beginning():
    update = optimize.moving_average(0.9)
    old, numbers = torch.zeros(1), torch.zeros(1, dtype=torch.long)
    expected = 0.0
    for step in range(1, 200):
        update([old, numbers], [torch.full((1,), float(step)), torch.tensor([step])], step)
        share = min(0.9, (1 + step) / (10 + step))
        expected = share * expected + (1 - share) * step
        assert float(old) == pytest.approx(expected, rel=1e-5)
    assert int(numbers) == 199
    assert 185 < float(old) < 199
