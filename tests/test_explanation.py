"""Explanations point at what decides: on a network that learnt a known place, and analytically."""

import json

import numpy as np
import pytest
import torch
from torch import nn

import sigak
from sigak.explanation import explain
from sigak.io import image
from sigak.saliency import evaluating, grad_cam, input_gradient, occlusion, rollout, trace

SIDE = 24


def picture(label, seed):
    """Noise; class "lit" has a bright patch at (14..20, 4..10), class "dark" has none."""
    noise = np.random.default_rng(seed)
    pixels = noise.integers(0, 90, (SIDE, SIDE, 3), dtype=np.uint8)
    if label == "lit":
        pixels[4:10, 14:20] = 255
    return pixels


@pytest.fixture(scope="module")
def lit_run(tmp_path_factory):
    """A network that has learnt to see the patch, and a lit picture's file."""
    root = tmp_path_factory.mktemp("lit")
    for place, label in enumerate(("dark", "lit")):
        for i in range(24):
            image.save(root / "data" / label / f"{i}.png", picture(label, 100 * place + i))
    how = {"epochs": 3, "batch": 8, "lr": 3e-3, "optimizer": "adam", "quiet": True}
    run = sigak.train("resnet20-cifar", root / "data", out=str(root / "run"), **how)
    assert run.evaluation["accuracy"] == 1.0
    wide = np.zeros((SIDE, 2 * SIDE, 3), np.uint8)  # squashed to a square before the network
    wide[:] = np.repeat(picture("lit", 7), 2, axis=1)
    image.save(root / "wide.png", wide)
    return run.checkpoint, root / "wide.png"


def test_the_heat_falls_on_what_decides_in_the_frame_of_the_file(lit_run):
    found = explain(*lit_run)
    assert found.result.label == found.target == "lit"
    assert found.picture.shape == (SIDE, 2 * SIDE, 3)
    assert [heat.method for heat in found.heats] == ["Grad-CAM", "occlusion"]
    for heat in found.heats:
        assert heat.map.shape == (SIDE, 2 * SIDE)
        x, y = heat.peak
        assert 26 <= x <= 42, heat.method  # the patch is 28..40 wide, 4..10 high
        assert 2 <= y <= 12, heat.method
        inside = heat.map[4:10, 28:40].mean()
        assert inside > 3 * heat.map[12:, :24].mean(), heat.method


def test_an_explanation_leaves_the_network_as_it_was(lit_run):
    predictor = sigak.load(lit_run[0])
    before = {k: v.clone() for k, v in predictor.network.state_dict().items()}
    predictor.network.train()
    explain(predictor, lit_run[1])
    assert predictor.network.training
    after = predictor.network.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert all(p.grad is None for p in predictor.network.parameters())
    assert not any(m._forward_hooks or m._backward_hooks for m in predictor.network.modules())


def test_another_class_and_layer_may_be_asked_for(lit_run):
    found = explain(*lit_run, label="dark", layer="layer1")
    assert found.target == "dark"
    assert found.target_score == pytest.approx(1 - found.result.score)
    assert found.heats[0].note == "at layer1"
    with pytest.raises(sigak.SigakError, match=r"no class 'lid'; did you mean lit"):
        explain(*lit_run, label="lid")
    with pytest.raises(sigak.SigakError, match=r"received 'layer'; did you mean layer"):
        explain(*lit_run, layer="layer")
    with pytest.raises(sigak.SigakError, match="one picture, received 2"):
        explain(lit_run[0], [lit_run[1], lit_run[1]])


def test_the_verb_writes_a_sheet(lit_run, sigak_cli):
    said = sigak_cli("explain", *lit_run, "--json")
    assert said.code == 0
    told = json.loads(said.out)
    assert told["label"] == "lit"
    assert [h["method"] for h in told["heats"]] == ["Grad-CAM", "occlusion"]
    assert "conv1" in [f["layer"] for f in told["features"]]
    sheet = image.read("wide-explained.png")
    assert sheet.shape[1] > 500
    said = sigak_cli("explain", *lit_run, "--out", "other.png", "--class", "dark")
    assert "Grad-CAM: x " in said.out
    assert image.read("other.png").shape[0] > 256


def test_a_network_without_convolution_says_so(digits_run):
    digits = sigak.load_data("digits").splits["test"]
    found = explain(digits_run.checkpoint, digits.pixels[0])
    assert [heat.method for heat in found.heats] == ["input gradient", "occlusion"]
    assert "no convolution" in found.note
    assert found.features == ()
    assert found.filters is None
    assert found.sheet().dtype == np.uint8


def test_grad_cam_of_a_linear_network_is_what_the_formula_says():
    """conv, global mean, dense: the gradient of logit k at channel c is w[k, c] / (h w)."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 2)
    ).eval()
    images = torch.rand(1, 3, 8, 8)
    maps = network[0](images)[0]
    expected = (network[3].weight[1][:, None, None] / 36 * maps).sum(0).relu()
    found = grad_cam(network, images, lambda raw: raw[:, 1], "0")
    torch.testing.assert_close(found, expected)
    assert not found.requires_grad


def test_an_empty_map_has_no_peak_and_is_told_of(tmp_path):
    root = tmp_path / "data"
    for place, label in enumerate(("dark", "lit")):
        for i in range(4):
            image.save(root / label / f"{i}.png", picture(label, 100 * place + i))
    how = {"epochs": 1, "size": 32, "quiet": True, "val": 0}
    run = sigak.train("lenet5", root, out=str(tmp_path / "run"), **how)
    predictor = sigak.load(run.checkpoint)
    with torch.no_grad():
        for parameter in predictor.network.features[3].parameters():
            parameter.zero_()  # its maps are zero, so that nothing speaks for any class
    found = explain(predictor, root / "lit" / "0.png")
    assert found.heats[0].peak is None
    assert "Grad-CAM at features.4 is empty" in found.note
    assert found.sheet().dtype == np.uint8


def test_an_activation_in_place_does_not_spoil_the_layer_before_it():
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)]
    plain = nn.Sequential(layers[0], nn.ReLU(), *layers[1:])
    hasty = nn.Sequential(layers[0], nn.ReLU(inplace=True), *layers[1:])
    images = torch.rand(1, 1, 6, 6)
    found = [grad_cam(n, images, lambda raw: raw[:, 0], "0") for n in (plain, hasty)]
    torch.testing.assert_close(*found)


def test_a_frozen_network_is_explained_too():
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(32, 2)).eval()
    network.requires_grad_(False)
    images = torch.rand(1, 1, 6, 6)
    assert grad_cam(network, images, lambda raw: raw[:, 0], "0").shape == (4, 4)
    assert input_gradient(network, images, lambda raw: raw[:, 0]).shape == (6, 6)


def test_input_gradient_of_a_linear_network_is_its_weight():
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 2))
    found = input_gradient(network, torch.rand(1, 3, 4, 4), lambda raw: raw[:, 1])
    expected = network[1].weight[1].reshape(3, 4, 4).abs().amax(0)
    torch.testing.assert_close(found, expected.detach())


@pytest.mark.parametrize("size", [(7, 9), (12, 12), (1, 5)])
def test_occlusion_covers_every_pixel_and_finds_the_one_that_counts(size):
    images = torch.zeros(1, 1, *size)
    images[..., -1, -1] = 1.0
    found = occlusion(images, lambda some: some[:, 0, -1, -1].double(), patch=(2, 3), batch=3)
    assert found.shape == size
    assert found.isfinite().all()
    assert found[-1, -1] == found.max()
    assert found[-1, -1] > found[0, 0]
    assert found[-1, -1] == pytest.approx(1 - 1 / found.numel())  # the mean colour remains


def test_rollout_follows_the_class_token():
    """Two layers: the class token reads token 2, then itself; token 2 had read patch 1 before."""
    tokens = 5  # the class token and 2x2 patches
    first, second = torch.eye(tokens), torch.eye(tokens)
    first[2] = torch.tensor([0, 0, 0, 0, 1.0])
    second[0] = torch.tensor([0, 0, 1.0, 0, 0])
    found = rollout([first, second], (2, 2))
    # Half of the second layer reaches token 2, whose half came from the last patch.
    torch.testing.assert_close(found, torch.tensor([[0.0, 0.25], [0.0, 0.25]]))


@pytest.mark.parametrize("kind", ["timm", "torch"])
def test_attention_is_read_whether_fused_or_not(kind):
    torch.manual_seed(0)
    if kind == "torch":
        block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).eval()
        tokens = torch.rand(1, 5, 8)
        _, weights = trace(block, tokens)
        normal = block.self_attn
        expected = normal(tokens, tokens, tokens, need_weights=True)[1][0]
        torch.testing.assert_close(weights[0], expected.detach())
        assert len(weights) == 1
        return
    network = sigak.create("vit_tiny_patch16_224", classes=3, size=(32, 32), depth=2).eval()
    images = torch.rand(1, 3, 32, 32)
    fused = trace(network, images)[1]
    for part in network.net.blocks:
        part.attn.fused_attn = False
    plain = trace(network, images)[1]
    assert len(fused) == len(plain) == 2
    for one, other in zip(fused, plain, strict=True):
        assert one.shape == (5, 5)
        torch.testing.assert_close(one, other)
        torch.testing.assert_close(one.sum(1), torch.ones(5))


def test_evaluating_gives_the_mode_back():
    network = nn.Dropout()
    with evaluating(network):
        assert not network.training
    assert network.training
