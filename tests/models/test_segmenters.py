"""Networks that segment: counts, and what the zoo asks of every network."""

import re
from importlib import import_module
from itertools import pairwise

import pytest
import torch
from torch import nn

import sigak
from sigak import foreign, models
from sigak.io import weights as files
from sigak.models._entry import count_parameters
from sigak.structures import SigakError

NAMES = [*import_module("sigak.models.unet").MODELS, *import_module("sigak.models.smp_nets").MODELS]
QUICK = ("unet", "deeplabv3plus-mobilenetv2")
BOTH = [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in NAMES]
# What segmentation_models.pytorch counts with one class, and what tables of it say.
ONE_CLASS = {
    "unet-resnet18": 14_328_209, "unet-resnet34": 24_436_369, "unetplusplus-resnet34": 26_078_609,
    "fpn-resnet34": 23_155_393, "deeplabv3plus-resnet34": 22_437_457,
    "deeplabv3plus-resnet50": 26_677_585, "deeplabv3plus-resnet101": 45_669_713,
    "deeplabv3plus-mobilenetv2": 4_378_513,
}  # fmt: skip


def tiny(name, **changes):
    """A small form, in evaluation mode, and a batch of 3 pictures for it."""
    torch.manual_seed(0)
    built = models.arguments(name, classes=3, **models.entry(name).tiny | changes)
    network = models.entry(name).build(**built).eval()
    return network, torch.rand(3, built["channels"], *built["size"])


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_as_declared(name):
    row = models.entry(name)
    assert row.task == "segment"
    assert row.paper.startswith("https://")
    with torch.device("meta"):
        assert count_parameters(models.create(name)) == row.parameters
        if name in ONE_CLASS:
            assert count_parameters(models.create(name, classes=1))[1] == ONE_CLASS[name]


def test_the_papers_own_unet():
    """Ten levels of two 3x3 convolutions, four 2x2 ones up and one 1x1, all with biases."""
    widths = [1, 64, 128, 256, 512, 1024]
    down = sum(9 * a * b + b + 9 * b * b + b for a, b in pairwise(widths))
    up = sum(4 * 2 * b * b + b + 9 * 2 * b * b + b + 9 * b * b + b for b in widths[1:-1])
    with torch.device("meta"):
        network = models.create("unet", classes=2, norm=False)
    assert count_parameters(network)[1] == down + up + 64 * 2 + 2 == 31_030_658


@pytest.mark.parametrize("name", BOTH)
def test_forward(name):
    """A score for every class and pixel at full and half precision, no picture sees another, and
    other canvases do.
    """
    network, images = tiny(name)
    with torch.no_grad():
        logits = network(images)
        apart = torch.cat([network(image[None]) for image in images])
        with torch.autocast("cpu", torch.bfloat16):
            half = network(images)
        wide = network(images.repeat(1, 1, 1, 2)[..., : images.shape[3] + network.stride])
    assert logits.shape == (3, 3, *images.shape[2:])
    assert logits.isfinite().all()
    assert half.isfinite().all()
    torch.testing.assert_close(logits, apart, atol=1e-5, rtol=1e-4)
    assert wide.shape[3] == images.shape[3] + network.stride


@pytest.mark.parametrize("name", BOTH)
def test_learning(name):
    """Gradients reach every parameter, and the loss of one batch falls."""
    network, images = tiny(name)
    named = dict(network.named_parameters())
    assert any(key.startswith(tuple(f"{part}." for part in network.head)) for key in named)
    truth = (images.mean(1) * 3).long().clamp(0, 2)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    losses = []
    for _ in range(4):
        loss = nn.functional.cross_entropy(network(images), truth)
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    still = [key for key, p in named.items() if p.grad is None or not p.grad.isfinite().all()]
    assert still == []
    assert min(losses[1:]) < losses[0]


@pytest.mark.parametrize("name", BOTH)
def test_a_checkpoint_holds_everything(name, tmp_path):
    network, images = tiny(name)
    files.write(tmp_path / "x.safetensors", network.state_dict(), {})
    again, _ = tiny(name)
    again.load_state_dict(files.read(tmp_path / "x.safetensors")[0], strict=True)
    with torch.no_grad():
        assert torch.equal(network(images), again.eval()(images))


@pytest.mark.parametrize("color", ["gray", "rgba"])
def test_other_colours(color):
    for name in QUICK:
        network, images = tiny(name, color=color)
        with torch.no_grad():
            assert network(images).shape[1] == 3


def test_answers_are_the_packages_own():
    import segmentation_models_pytorch as smp

    network, images = tiny("deeplabv3plus-mobilenetv2")
    theirs = smp.DeepLabV3Plus("mobilenet_v2", encoder_weights=None, classes=3).eval()
    theirs.load_state_dict(network.net.state_dict())
    row = models.entry("deeplabv3plus-mobilenetv2")
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (row.input.mean, row.input.std))
    with torch.no_grad():
        torch.testing.assert_close(network(images), theirs((images - mean) / std))


@pytest.mark.slow
def test_scenes_are_learnt(tmp_path):
    """docs/segment.md tells of this run; background alone would give about .06."""
    run = sigak.train(
        "unet-resnet18", "scenes:2000@32", size=32, epochs=8, batch=16, lr=2e-3, loss="ce+dice",
        augment="none", out=str(tmp_path / "run"), quiet=True,
    )  # fmt: skip
    assert run.evaluation["miou"] > 0.25


def test_any_backbone_by_its_name():
    row = models.entry("unet-convnext_atto")
    assert row.args["backbone"] == "tu-convnext_atto"
    with torch.device("meta"):
        assert count_parameters(models.create("unet-convnext_atto")) == row.parameters
    assert models.entry("fpn-vgg11").args["backbone"] == "vgg11"
    with pytest.raises(SigakError, match=r"did you mean .*unet-resnet18"):
        models.entry("unet-resnet17")
    with pytest.raises(SigakError, match=r"vit_tiny_patch16_224 cannot be a backbone of unet"):
        models.entry("unet-vit_tiny_patch16_224")


def test_a_size_that_does_not_fit_is_told():
    name = "deeplabv3plus-mobilenetv2"
    built = models.arguments(name, size=(50, 64))
    network = models.entry(name).build(**built)
    with pytest.raises(SigakError, match=f"{name} cannot take pictures of 50x64"):
        models.try_out(name, network, built)


def test_a_backbone_of_a_classifier_is_loaded(tmp_path):
    """A file as torchvision publishes it: the backbone is taken, what is behind it starts fresh."""
    from torchvision.models import get_model

    theirs = get_model("mobilenet_v2", weights=None)
    torch.save(theirs.state_dict(), tmp_path / "mobilenet_v2.pth")
    network, _ = tiny("deeplabv3plus-mobilenetv2")
    name = "deeplabv3plus-mobilenetv2"
    said = foreign.start_from(network, name, str(tmp_path / "mobilenet_v2.pth"),
                              allow_download=False)  # fmt: skip
    assert re.search(r"\d+ tensors of the head start fresh", said)
    kept = network.net.encoder.state_dict()
    for key, value in theirs.state_dict().items():
        if not key.startswith("classifier."):
            assert torch.equal(kept[key], value), key
