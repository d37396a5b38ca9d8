"""DeepLab-v2 and AdaptSegNet: counts, shapes, whose gradients a step leaves, losses by hand."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from sigak import foreign, models, optimize
from sigak.io import weights as files
from sigak.models._entry import count_parameters
from sigak.models.adaptsegnet import MODELS, Discriminator
from sigak.recipe import Recipe
from sigak.structures import SigakError

QUICK = ("deeplabv2-small", "adaptsegnet-small")
BOTH = [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in MODELS]


def tiny(name="adaptsegnet", **changes):
    """A small form in training mode, and two batches of 2 pictures of three classes."""
    torch.manual_seed(0)
    built = models.arguments(name, classes=3, **models.entry(name).tiny | changes)
    network = models.entry(name).build(**built)
    return network, *torch.rand(2, 2, built["channels"], *built["size"])


def parameters(network):
    return sum(p.numel() for p in network.parameters())


# ------------------------------------------------------------------ counts and shapes


@pytest.mark.parametrize("name", MODELS)
def test_parameters_are_as_declared(name):
    row = models.entry(name)
    assert row.task == "segment"
    assert row.paper.startswith("https://")
    with torch.device("meta"):
        assert count_parameters(models.create(name)) == row.parameters


def test_the_discriminator_is_the_papers():
    """4x4 kernels with biases, 19 -> 64 -> 128 -> 256 -> 512 -> 1, each halving the picture."""
    by_hand = sum(16 * a * b + b for a, b in pairwise((19, 64, 128, 256, 512, 1)))
    network = Discriminator(19)
    assert parameters(network) == by_hand == 2_781_121
    slopes = [m.negative_slope for m in network if isinstance(m, nn.LeakyReLU)]
    assert slopes == [0.2] * 4
    assert isinstance(network[-1], nn.Conv2d)
    with torch.no_grad():
        assert network(torch.rand(2, 19, 64, 96)).shape == (2, 1, 2, 3)
        assert network(torch.rand(1, 19, 32, 32)).shape == (1, 1, 1, 1)


def test_the_segmenter_of_the_paper_has_its_parameters():
    """ResNet-101 without its classifier, and on both of its last stages four 3x3 convolutions."""
    backbone = 42_500_160
    classifiers = sum(4 * (9 * channels * 19 + 19) for channels in (1024, 2048))
    with torch.device("meta"):
        network = models.create("adaptsegnet")
        single = models.create("adaptsegnet-single")
    assert parameters(network.segmenter) == backbone + classifiers == 44_601_560
    assert [parameters(judge) for judge in network.discriminators] == [2_781_121] * 2
    assert parameters(single.segmenter) == backbone + 4 * (9 * 2048 * 19 + 19)
    assert len(single.discriminators) == 1
    rates = [branch.dilation[0] for branch in network.segmenter.classifier]
    assert rates == [6, 12, 18, 24]


@pytest.mark.parametrize(("pool", "side"), [(True, 8), (False, 16)])
def test_the_last_maps_are_an_eighth_of_the_picture(pool, side):
    network, images, _ = tiny("deeplabv2-small", pool=pool, size=(64, 64))
    maps = network.backbone(images)
    assert [tuple(m.shape[2:]) for m in maps] == [(side, side)] * 2


@pytest.mark.parametrize("name", BOTH)
def test_forward(name):
    """A score for every class and pixel, no picture sees another, and other canvases do."""
    network, images, others = tiny(name)
    network.eval()
    with torch.no_grad():
        logits = network(images)
        apart = torch.cat([network(image[None]) for image in images])
        with torch.autocast("cpu", torch.bfloat16):
            half = network(images)
        wide = network(torch.cat([images, others], 3))
    assert logits.shape == (2, 3, *images.shape[2:])
    assert logits.isfinite().all()
    assert half.isfinite().all()
    torch.testing.assert_close(logits, apart, atol=1e-5, rtol=1e-4)
    assert wide.shape[3] == 2 * images.shape[3]


@pytest.mark.parametrize("name", BOTH)
def test_a_checkpoint_holds_everything(name, tmp_path):
    network, images, _ = tiny(name)
    files.write(tmp_path / "x.safetensors", network.state_dict(), {})
    again, *_ = tiny(name)
    again.load_state_dict(files.read(tmp_path / "x.safetensors")[0], strict=True)
    with torch.no_grad():
        assert torch.equal(network.eval()(images), again.eval()(images))


def test_gray_pictures_are_taken():
    network, images, others = tiny(color="gray")
    assert images.shape[1] == 1
    answers, _, _ = network(images, others, part="main")
    assert answers[0][1].shape[1] == 3


def test_a_size_without_a_judgement_is_refused():
    with pytest.raises(SigakError, match="at least 32 pixels, received 32x24; give a larger"):
        tiny(size=(32, 24))


# ------------------------------------------------------------------ whose step it is


def moved(network, loss):
    """The parts in which the gradients of a loss lie; none may be lacking within a part."""
    network.zero_grad()
    loss.backward()
    named = dict(network.named_parameters())
    found = {name.split(".")[0] for name, p in named.items() if p.grad is not None}
    still = [k for k, p in named.items() if k.split(".")[0] in found and p.grad is None]
    assert still == []
    return found


@pytest.mark.parametrize("name", ["adaptsegnet", "adaptsegnet-lsgan", "adaptsegnet-single"])
def test_each_step_has_gradients_for_its_part_alone(name):
    network, images, others = tiny(name)
    answers, fooling, chances = network(images, others, part="main")
    learnt = sum(weight * logits.square().mean() for weight, logits in answers)
    assert moved(network, learnt + fooling) == {"segmenter"}
    assert moved(network, network(*chances, part="discriminators")) == {"discriminators"}
    assert all(p.requires_grad for p in network.parameters())


def test_the_segmenter_learns_from_the_targets_too():
    network, images, others = tiny()
    others.requires_grad_(True)
    images.requires_grad_(True)
    network.segmenter.eval()  # so that batch norm does not join the domains
    _, fooling, _ = network(images, others, part="main")
    fooling.backward()
    assert others.grad.abs().sum() > 0
    assert images.grad.abs().sum() == 0
    assert network.segmenter.classifier[0].weight.grad.abs().sum() > 0


def test_the_two_optimisers_move_their_parts_alone():
    network, images, others = tiny()
    recipe = Recipe.of(MODELS["adaptsegnet"].recipe)
    optimizers = optimize.build_parts(network, network.head, recipe, pretrained=False)
    main, judges = optimizers["main"], optimizers["discriminators"]
    assert isinstance(main, torch.optim.SGD)
    assert isinstance(judges, torch.optim.Adam)
    assert {(g["lr"], g["momentum"]) for g in main.param_groups} == {(2.5e-4, 0.9)}
    assert {g["weight_decay"] for g in main.param_groups} == {5e-4, 0.0}
    told = {(g["lr"], g["betas"], g["weight_decay"]) for g in judges.param_groups}
    assert told == {(1e-4, (0.9, 0.99), 0.0)}

    def state(part):
        return {k: v.clone() for k, v in network.get_submodule(part).state_dict().items()}

    def same(before, part):
        return all(torch.equal(v, before[k]) for k, v in state(part).items())

    before = {part: state(part) for part in ("segmenter", "discriminators")}
    answers, fooling, chances = network(images, others, part="main")
    (answers[0][1].mean() + answers[1][1].mean() + fooling).backward()
    main.step()
    judges.step()  # has no gradients to follow
    assert same(before["discriminators"], "discriminators")
    assert not same(before["segmenter"], "segmenter")
    network.zero_grad(set_to_none=True)
    between = state("segmenter")
    network(*chances, part="discriminators").backward()
    main.step()
    judges.step()
    assert same(between, "segmenter")
    assert not same(before["discriminators"], "discriminators")


def test_heads_start_at_the_full_rate_and_a_backbone_below():
    network, *_ = tiny()
    found = optimize.build_parts(network, network.head, Recipe(lr=1.0), pretrained=True)
    rates = {id(p): g["lr"] for g in found["main"].param_groups for p in g["params"]}
    assert rates[id(network.segmenter.classifier[0].weight)] == 1.0
    assert rates[id(network.segmenter.auxiliary[3].bias)] == 1.0
    assert rates[id(network.segmenter.backbone.conv1.weight)] == pytest.approx(0.1)


# ------------------------------------------------------------------ the losses by hand


def softplus(x):
    return math.log1p(math.exp(x))


class Says(nn.Module):
    """A discriminator that says `own` where the first class is likely, else `other`."""

    def __init__(self, own, other):
        super().__init__()
        self.own, self.other = own, other

    def forward(self, maps):
        likely = maps[:, :1].mean((2, 3), keepdim=True) > 0.5
        return torch.where(likely, self.own, self.other) + 0 * maps[:, :1, ::32, ::32]


class Levels(nn.Module):
    """A segmenter sure of the first class where a picture is bright, of the second elsewhere."""

    def levels(self, images):
        bright = images.mean((1, 2, 3)) > 0.5
        rows = torch.where(bright[:, None], torch.tensor([9.0, 0, 0]), torch.tensor([0, 9.0, 0]))
        maps = rows[:, :, None, None].expand(-1, -1, *images.shape[2:])
        return [maps, 2 * maps]


@pytest.mark.parametrize("gan", ["bce", "lsgan"])
def test_losses_are_those_of_the_paper(gan):
    """The source's pictures are bright here, so that judges say 2 and -.5 of its answers, and -1
    and .25 of those for the target.
    """
    network, images, others = tiny(gan=gan)
    network.segmenter = Levels()
    network.discriminators = nn.ModuleList([Says(2.0, -1.0), Says(-0.5, 0.25)])
    answers, fooling, chances = network(
        torch.full_like(images, 0.9), torch.full_like(others, 0.1), part="main"
    )
    assert [weight for weight, _ in answers] == [1.0, 0.1]
    assert answers[0][1][0, :, 0, 0].tolist() == [9.0, 0.0, 0.0]
    assert (
        [maps.shape[0] for maps in chances[0]] == [maps.shape[0] for maps in chances[1]] == [2, 2]
    )
    assert chances[1][0][0, :, 5, 5].argmax() == 1
    judged = network(*chances, part="discriminators")
    if gan == "bce":
        fooled = 0.001 * softplus(1.0) + 0.0002 * softplus(-0.25)
        told = softplus(-2.0) + softplus(-1.0) + softplus(0.5) + softplus(0.25)
    else:
        fooled = 0.001 * (-1 - 1) ** 2 + 0.0002 * (0.25 - 1) ** 2
        told = (2 - 1) ** 2 + 1.0 + (-0.5 - 1) ** 2 + 0.25**2
    assert float(fooling) == pytest.approx(fooled)
    assert float(judged) == pytest.approx(told)


def test_a_recipe_falls_as_the_paper_says():
    recipe = Recipe(schedule="poly", epochs=4)
    shares = [optimize.factor(recipe, step, 10) for step in (0, 10, 30, 40)]
    assert shares == pytest.approx([1.0, 0.75**0.9, 0.25**0.9, 0.0])


# ------------------------------------------------------------------ weights to begin with


def test_a_backbone_of_a_classifier_is_loaded(tmp_path):
    """A file as torchvision publishes it, and a DeepLab-v2 that has learnt the source."""
    from torchvision.models import resnet18

    torch.save(resnet18().state_dict(), tmp_path / "resnet18.pth")
    first = models.create("deeplabv2-resnet18", classes=3, size=(64, 64))
    said = foreign.start_from(first, "deeplabv2-resnet18", str(tmp_path / "resnet18.pth"),
                              allow_download=False)  # fmt: skip
    assert "8 tensors of the head start fresh" in said
    files.write(tmp_path / "first.safetensors", first.state_dict(), {})
    second = models.create("adaptsegnet-resnet18", classes=3, size=(64, 64))
    said = foreign.start_from(second, "adaptsegnet-resnet18", str(tmp_path / "first.safetensors"),
                              allow_download=False)  # fmt: skip
    assert "28 tensors of the head start fresh" in said
    for key, value in first.state_dict().items():
        assert torch.equal(second.segmenter.state_dict()[key], value), key
