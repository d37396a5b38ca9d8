"""The sprinter: its whitening, its views, what its blocks begin with, and a run of it."""

import numpy as np
import pytest
import torch
from torch import nn

import sigak
from sigak import data, models
from sigak.io import image
from sigak.io import weights as files
from sigak.models.sprint import Whiten
from sigak.structures import SigakError

SMALL = {"widths": (8, 8), "size": (16, 16), "classes": 3}


def small(**changes):
    torch.manual_seed(0)
    return models.create("sprint", **SMALL | changes).eval()


def soft_pictures(count, channels=3):
    """Noise whose neighbours and channels resemble each other, as in natural pictures."""
    torch.manual_seed(1)
    coarse = torch.rand(count, channels, 8, 8)
    soft = nn.functional.interpolate(coarse, scale_factor=2, mode="bilinear")
    return 0.6 * soft + 0.2 * soft.flip(1) + 0.2 * torch.rand(count, channels, 16, 16)


@pytest.mark.parametrize("channels", [1, 3])
def test_whitening_whitens(channels):
    whiten, pictures = Whiten(channels, floor=0.0), soft_pictures(150, channels)
    whiten.measure(pictures)
    outputs = whiten(pictures).transpose(0, 1).flatten(1).double()  # (filters, places)
    half = 4 * channels
    torch.testing.assert_close(outputs[half:], -outputs[:half])
    covariance = torch.cov(outputs[:half])
    identity = torch.eye(half, dtype=torch.float64)
    torch.testing.assert_close(covariance, identity, atol=1e-3, rtol=0)
    assert outputs.mean(1).abs().max() < 1e-3
    before = torch.cov(pictures.transpose(0, 1).flatten(1).double())
    assert channels == 1 or (before - before.diag().diag()).abs().max() > 0.1 * before.diag().max()


def test_whitening_keeps_what_hardly_varies_small():
    whiten = Whiten(1)
    whiten.measure(torch.full((4, 1, 16, 16), 0.5))
    assert whiten.kernel.flatten(1).norm(dim=1).max() < 5e-4**-0.5 * 1.001
    assert whiten(torch.full((1, 1, 16, 16), 0.5)).abs().max() < 1e-4


def test_evaluation_is_the_mean_over_views():
    pictures = soft_pictures(5)
    alone = small(views=1)
    # Pads by one pixel and takes the corners by hand, as an index, not as a padding layer.
    there, here = [1, *range(15)], [*range(1, 16), 14]
    shifted = [pictures[:, :, index][:, :, :, index] for index in (there, here)]
    with torch.no_grad():
        views = [(alone(p) + alone(p.flip(3))) / 2 for p in (pictures, *shifted)]
        torch.testing.assert_close(small(views=2)(pictures), views[0])
        six = (views[0] + (views[1] + views[2]) / 2) / 2
        torch.testing.assert_close(small(views=6)(pictures), six)
        assert torch.equal(small(views=2)(pictures), small(views=2)(pictures.flip(3)))
        assert not torch.allclose(views[0], views[1])


def test_training_sees_the_picture_alone():
    pictures = soft_pictures(5)
    alone, averaged = (small(views=views).train()(pictures) for views in (1, 6))
    assert torch.equal(alone, averaged)


def test_every_convolution_begins_as_the_identity():
    network = small()
    kernels = [m.weight for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert len(kernels) == 4
    for kernel in kernels:
        first = min(kernel.shape[:2])
        maps = torch.rand(1, kernel.shape[1], 5, 5)
        with torch.no_grad():
            handed_on = nn.functional.conv2d(maps, kernel, padding=1)[:, :first]
        torch.testing.assert_close(handed_on, maps[:, :first])


def test_norms_have_biases_and_no_scales():
    norms = [m for m in small().modules() if isinstance(m, nn.BatchNorm2d)]
    assert [(m.weight, m.bias.shape) for m in norms] == [(None, (8,))] * 4


def test_the_plain_form_answers_by_one_view():
    assert models.create("sprint").views == 6
    assert models.create("sprint-plain").views == 1
    assert "flip" not in models.entry("sprint-plain").recipe["augment"]


def test_mistakes_are_explained():
    with pytest.raises(SigakError, match="at least 9x9, received 8x8"):
        models.create("sprint", size=(8, 8))
    with pytest.raises(SigakError, match="1, 2 or 6, received 3"):
        models.create("sprint", views=3)


# ------------------------------------------------------------------ trained by the house


@pytest.fixture(scope="module")
def few_digits():
    whole = data.load("digits")
    splits = {name: whole.splits[name].subset(np.arange(24), name) for name in ("train", "test")}
    return data.Dataset("few", whole.classes, splits, whole.color)


@pytest.fixture
def fit(few_digits, tmp_path):
    said = {"size": 10, "batch": 16, "precision": "float32", "quiet": True, "schedule": "constant"}

    def run(name, **changes):
        where = {} if "resume" in changes else {"out": str(tmp_path / name)}
        return sigak.train("sprint", few_digits, **said | where | changes)

    return run


def test_whitening_is_measured_before_training_and_kept(fit, few_digits):
    run = fit("run", epochs=1, color="rgb")
    tensors, _ = files.read(run.checkpoint)
    expected = models.create("sprint", size=(10, 10))
    prepared = sigak.load(run.checkpoint).preparation
    pixels = few_digits.splits["train"].pixels
    pictures = np.stack([image.load(p, prepared)[0] for p in pixels])
    expected.adapt(torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255.0)
    torch.testing.assert_close(tensors["whiten.kernel"], expected.whiten.kernel)
    torch.testing.assert_close(tensors["whiten.bias"], expected.whiten.bias)


def test_a_resumed_run_ends_with_the_same_weights(fit):
    first = fit("cut", epochs=1)
    resumed = fit("cut", resume=str(first.folder), epochs=2)
    whole = fit("whole", epochs=2)
    (ours, _), (theirs, _) = files.read(resumed.checkpoint), files.read(whole.checkpoint)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_pretrained_weights_bring_their_own_whitening(fit):
    first = fit("first", epochs=1)
    second = fit("second", epochs=1, pretrained=str(first.checkpoint), standardize="model")
    (ours, _), (theirs, _) = files.read(first.checkpoint), files.read(second.checkpoint)
    assert torch.equal(ours["whiten.kernel"], theirs["whiten.kernel"])
