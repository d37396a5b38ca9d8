"""The zoo checklist: every network of our own families, and a sample of timm's kinds."""

import dataclasses
import math
import re
from importlib import import_module

import pytest
import torch
from torch import nn

from sigak import models
from sigak.io import weights as files
from sigak.models import lab, timm_nets, torchvision_nets
from sigak.models._entry import count_parameters
from sigak.structures import SigakError
from sigak.summary import summarize

FAMILIES = [import_module(f"sigak.models.{f}") for f in models.FAMILIES if f != "timm_nets"]
OURS = list(
    dict.fromkeys(n for f in FAMILIES for n, row in f.MODELS.items() if row.task == "classify")
)
# Side of the small picture that one network of each kind is tried with.
KINDS = {
    "resnet18": 64, "mobilenetv3_small_050": 64, "efficientnet_b0": 64, "vit_tiny_patch16_224": 32,
    "mixer_s32_224": 64, "convnext_atto": 64, "test_resnet": 32, "test_vit": 32, "test_byobnet": 32,
    "test_nfnet": 32, "lcnet_035": 64, "ghostnet_100": 64,
}  # fmt: skip
# The smallest of each family, and a few more; the others take minutes together and run with the
# slow tests.
QUICK = {
    *(min(f.MODELS.items(), key=lambda item: item[1].parameters)[0] for f in FAMILIES),
    "vgg1", "vgg3-dropout-l2-bn", "lcnet_035", "test_resnet", "test_vit", "test_byobnet",
}  # fmt: skip
# Its mixing layers are as long as its own pictures have patches.
ONE_SIZE = ("mixer_s32_224",)
BOTH = [
    name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
    for name in (*OURS, *KINDS)
]


def small(name, classes=3, **changes):
    """The arguments of a small form of `name`."""
    if name in KINDS and name not in ONE_SIZE:
        changes = {"size": (KINDS[name],) * 2} | changes
    return models.arguments(name, classes=classes, **models.entry(name).tiny | changes)


def tiny(name, **changes):
    """A small form of `name`, in evaluation mode, and a batch of 4 pictures for it."""
    built = small(name, **changes)
    torch.manual_seed(0)
    network = models.entry(name).build(**built).eval()
    images = torch.rand(4, built["channels"], *built["size"])
    return network, images.to(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", OURS)
def test_parameters_are_as_declared(name):
    row = models.entry(name)
    with torch.device("meta"):
        assert count_parameters(models.create(name)) == row.parameters


def test_the_lab_counts_are_those_of_keras():
    counts = {name: row.parameters for name, row in lab.MODELS.items()}
    plain = (550_570, 550_570)
    assert counts == {
        "vgg1": (1_060_138, 1_060_138),
        "vgg2": (591_274, 591_274),
        "vgg3": plain,
        "vgg3-dropout": plain,
        "vgg3-l2": plain,
        "vgg3-aug": plain,
        "vgg3-dropout-l2": plain,
        "vgg3-dropout-l2-aug": plain,
        "vgg3-dropout-bn": (552_874, 551_722),
        "vgg3-dropout-l2-bn": (552_874, 551_722),
    }


# 26 more from all over the table.
SAMPLED = [name for name in sorted(timm_nets.MODELS) if timm_nets.MODELS[name].parameters[0] < 3e7][
    ::40
]


@pytest.mark.parametrize("name", [*KINDS, *SAMPLED])
def test_parameters_of_timm_are_as_the_table_says(name):
    row = timm_nets.MODELS[name]
    with torch.device("meta"):
        network = row.build(**models.arguments(name))
    assert count_parameters(network) == row.parameters


@pytest.mark.slow
def test_parameters_of_all_of_timm_are_as_the_table_says():
    wrong = []
    for name, row in timm_nets.MODELS.items():
        if models.entry(name) is not row:  # a name of ours comes first
            continue
        with torch.device("meta"):
            counted = count_parameters(row.build(**models.arguments(name)))
        if counted != row.parameters:
            wrong.append((name, counted, row.parameters))
    assert wrong == []


@pytest.mark.parametrize("name", BOTH)
def test_forward(name):
    """Shape and finiteness, at full and half precision, and no picture sees its neighbours."""
    network, images = tiny(name)
    with torch.no_grad():
        logits = network(images)
        apart = torch.cat([network(image[None]) for image in images])
        with torch.autocast("cpu", torch.bfloat16):
            half = network(images)
    assert logits.shape == (4, 3)
    assert logits.isfinite().all()
    assert half.isfinite().all()
    torch.testing.assert_close(logits, apart, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", BOTH)
def test_learning(name):
    """Gradients reach every parameter, and the loss of one batch falls."""
    network, images = tiny(name)
    head = tuple(f"{part}." for part in network.head)
    named = dict(network.named_parameters())
    assert any(key.startswith(head) for key in named), f"{network.head} name no layers"
    labels = torch.tensor([0, 1, 2, 1])
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)
    losses = []
    for _ in range(6):
        loss = nn.functional.cross_entropy(network(images), labels)
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
    said = {"arguments": small(name)}
    files.write(tmp_path / "x.safetensors", network.state_dict(), said)
    tensors, header = files.read(tmp_path / "x.safetensors")
    torch.manual_seed(1)
    again = models.entry(name).build(**header["arguments"]).eval()
    again.load_state_dict(tensors, strict=True)
    with torch.no_grad():
        assert torch.equal(network(images), again(images))


@pytest.mark.parametrize("color", ["gray", "rgb", "rgba"])
@pytest.mark.parametrize("name", ["mlp", "lenet5", "vgg3", "squeezenet1_1", "test_resnet"])
def test_colours(name, color):
    network, images = tiny(name, color=color)
    assert images.shape[1] == models.CHANNELS[color]
    with torch.no_grad():
        assert network(images).shape == (4, 3)


@pytest.mark.parametrize("name", ["squeezenet1_1", "test_resnet"])
def test_pictures_are_normalised_inside(name):
    network, images = tiny(name)
    row = models.entry(name)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (row.input.mean, row.input.std))
    with torch.no_grad():
        by_hand = network.net((images - mean) / std)
        torch.testing.assert_close(network(images), by_hand)
    assert not any(key.startswith("normalize") for key in network.state_dict())


@pytest.mark.parametrize("name", OURS)
def test_entries_are_documented(name):
    row = models.entry(name)
    assert row.task == "classify"
    assert row.licence
    assert row.paper.startswith("http") or name == "mlp"  # a baseline of no paper's
    assert isinstance(row.skip, dict)


def test_weights_are_rows_with_facts():
    rows = [(name, w) for name in models.names() for w in models.entry(name).weights]
    assert len(rows) > 1000
    for name, row in rows:
        assert row.tag, name
        assert row.url.startswith("https://"), name
        assert row.licence, name
        assert row.trained_on, name
        assert re.fullmatch(r"[0-9a-f]{8,64}|", row.sha256), name
        assert callable(row.convert), name
    for row in torchvision_nets.MODELS.values():
        assert all(w.sha256 for w in row.weights)


def test_the_table_of_contents():
    names = models.names()
    assert len(names) == len(set(names)) > 1300
    assert names[: len(OURS)] == OURS
    assert models.names("vgg3*") == [n for n in names if n.startswith("vgg3")]
    assert "resnet18" in models.names("SNET1")
    assert models.names("[") == []
    detectors = models.names("detect")
    assert {"yolov8n", "ssd300", "localizer"} <= set(detectors)
    assert all(models.entry(n).task == "detect" for n in detectors)
    with pytest.raises(SigakError, match=r"no network called 'vgg33'; did you mean .*vgg3"):
        models.entry("vgg33")
    with pytest.raises(SigakError, match="`sigak models` lists them"):
        models.create("~~~~")


def test_entries_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        models.entry("mlp").task = "other"


# ------------------------------------------------------------------ the lab's first weights


def test_the_lab_begins_he_uniform():
    torch.manual_seed(0)
    network = models.create("vgg3")
    kernels = [
        (name, module)
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    assert len(kernels) == 8
    for name, module in kernels:
        weight = module.weight
        fan_in, fan_out = weight[0].numel(), weight.shape[0] * weight[0, 0].numel()
        bound = math.sqrt(6 / (fan_in + fan_out) if name == "classifier" else 6 / fan_in)
        assert 0.97 * bound < weight.abs().max() <= bound, name
        assert weight.mean().abs() < 0.05 * bound, name
        assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05), name
        assert module.bias.abs().max() == 0, name


def test_the_lab_normalises_as_keras_does():
    parts = list(models.create("vgg3-dropout-bn").modules())
    norms = [m for m in parts if isinstance(m, nn.BatchNorm2d | nn.BatchNorm1d)]
    assert len(norms) == 7
    assert {(m.eps, m.momentum) for m in norms} == {(1e-3, 0.01)}
    rates = [m.p for m in parts if isinstance(m, nn.Dropout)]
    assert rates == [0.2, 0.3, 0.4, 0.5]


@pytest.mark.parametrize("name", ["lenet5", "mlp"])
def test_the_first_networks_begin_glorot_uniform(name):
    network = models.create(name)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            weight = module.weight
            fans = weight[0].numel() + weight.shape[0] * weight[0, 0].numel()
            assert 0.9 * math.sqrt(6 / fans) < weight.abs().max() <= math.sqrt(6 / fans)
            assert module.bias.abs().max() == 0


# ------------------------------------------------------------------ summary


def test_summary_counts_layer_by_layer():
    rows = summarize(models.create("vgg3-dropout-bn"), (3, 32, 32))
    shown = {layer: (size, count) for layer, size, count in rows}
    assert shown["classifier (Linear)"] == ("10", "1,290")
    assert shown["blocks.0.0 (Conv2d)"] == ("32 x 32 x 32", "896")
    assert shown["total"] == ("", "552,874")
    assert shown["trainable"] == ("", "551,722")
    assert sum(int(count.replace(",", "")) for _, _, count in rows[:-2]) == 552_874
