"""The DCGAN: its size, its two halves, and that each learns alone."""

import pytest
import torch
from torch import nn

from sigak import models, optimize
from sigak.models._entry import count_parameters
from sigak.models.dcgan import DCGAN, MODELS
from sigak.recipe import Recipe
from sigak.structures import SigakError
from sigak.summary import summarize
from sigak.tasks.generate import LATENT

SIDES = (8, 28, 32, 48, 64)


def tiny(size=16, channels=3, width=4):
    torch.manual_seed(0)
    size = size if isinstance(size, tuple) else (size, size)
    half = (0.5,) * channels
    return DCGAN(classes=0, channels=channels, size=size, mean=half, std=half, width=width)


def parameters(network):
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_parameters_are_as_declared(name):
    with torch.device("meta"):
        assert count_parameters(models.create(name)) == models.entry(name).parameters


def test_the_form_of_the_paper_has_its_parameters():
    with torch.device("meta"):
        network = models.create("dcgan-64")
    assert parameters(network.generator) == 3_576_704
    assert parameters(network.discriminator) == 2_765_568


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("side", SIDES)
def test_pictures_and_judgements(side, channels):
    network = tiny(side, channels).eval()
    latents = torch.randn(3, LATENT)
    with torch.no_grad():
        made = network(latents)
        apart = torch.cat([network(row[None]) for row in latents])
        logits = network.judge(made)
    assert made.shape == (3, channels, side, side)
    assert logits.shape == (3,)
    assert 0.0 <= made.min() < made.max() <= 1.0
    torch.testing.assert_close(made, apart, atol=1e-5, rtol=1e-4)


def test_pictures_need_not_be_square():
    with torch.no_grad():
        made = tiny((16, 24)).eval()(torch.randn(1, LATENT))
    assert made.shape == (1, 3, 16, 24)


@pytest.mark.parametrize("side", [4, 30, 36, 65])
def test_sizes_that_cannot_be_doubled_to_are_refused(side):
    with pytest.raises(SigakError, match=rf"received {side}x{side}; give a --size such as 28, 32"):
        tiny(side)


def test_each_step_has_gradients_for_its_part_alone():
    network = tiny()
    images, latents = torch.rand(4, 3, 16, 16), torch.randn(4, LATENT)

    def moved(logits):
        network.zero_grad()
        logits.sum().backward()
        return {name.split(".")[0] for name, p in network.named_parameters() if p.grad is not None}

    real, made = network(latents, images, part="discriminator")
    assert real.shape == made.shape == (4,)
    assert moved(real + made) == {"discriminator"}
    assert moved(network(latents, part="generator")) == {"generator"}
    assert all(p.requires_grad for p in network.parameters())
    every = [p for p in network.generator.parameters() if p.grad is None or not p.grad.any()]
    assert every == []
    with pytest.raises(SigakError, match="learns from images too"):
        network(latents, part="discriminator")


def test_real_and_made_pictures_are_normalised_apart():
    """What the discriminator says of real pictures does not depend on the made ones."""
    network, images = tiny(), torch.rand(4, 3, 16, 16)
    answers = [network(torch.randn(4, LATENT), images, part="discriminator")[0] for _ in range(2)]
    torch.testing.assert_close(*answers)


def test_it_begins_as_the_paper_says():
    network = tiny(size=32, width=32)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            assert module.bias is None
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.1)
        elif isinstance(module, nn.BatchNorm2d):
            assert module.weight.mean().item() == pytest.approx(1.0, abs=0.02)
            assert module.bias.abs().max() == 0
    first, last = network.discriminator[:2], network.generator[-2:]
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in (*first, *last))


def test_two_optimisers_with_the_betas_of_the_paper():
    network = tiny()
    recipe = Recipe.of(MODELS["dcgan"].recipe)
    optimizers = optimize.build_parts(network, network.head, recipe, pretrained=False)
    assert list(optimizers) == ["discriminator", "generator"]
    for name, optimizer in optimizers.items():
        assert {group["betas"] for group in optimizer.param_groups} == {(0.5, 0.999)}
        assert {group["lr"] for group in optimizer.param_groups} == {2e-4}
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        assert held == {id(p) for p in network.get_submodule(name).parameters()}
    tuned = optimize.build_parts(network, network.head, recipe, pretrained=True)
    assert tuned["generator"].param_groups[0]["base_lr"] == 2e-4
    usual = optimize.build_parts(models.create("lenet5"), ("output",), Recipe(), pretrained=False)
    assert list(usual) == ["main"]
    assert usual["main"].param_groups[0]["betas"] == (0.9, 0.999)


def test_what_it_takes_is_no_picture():
    network = tiny()
    assert models.input_shape(network, {"channels": 3, "size": (16, 16)}) == (LATENT,)
    models.try_out("dcgan", network, {"channels": 3, "size": (16, 16)})
    rows = summarize(network, (LATENT,))
    assert rows[-2][2] == f"{count_parameters(network)[0]:,}"
