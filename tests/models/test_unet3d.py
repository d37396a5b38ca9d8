"""3-D U-Net: its counts, what the zoo asks of every network, and its arithmetic."""

import numpy as np
import pytest
import torch
from torch import nn

from sigak import models
from sigak.io import weights as files
from sigak.models._entry import count_parameters
from sigak.models.unet3d import MODELS
from sigak.structures import SigakError
from sigak.summary import summarize


def tiny(name="unet3d", **changes):
    """A small form, in evaluation mode, and a batch of 3 volumes for it."""
    torch.manual_seed(0)
    built = models.arguments(name, classes=3, **models.entry(name).tiny | changes)
    network = models.entry(name).build(**built).eval()
    return network, torch.rand(3, *network.input_shape)


@pytest.mark.parametrize("name", MODELS)
def test_parameters_are_as_declared(name):
    row = models.entry(name)
    assert row.task == "segment_volume"
    with torch.device("meta"):
        assert count_parameters(models.create(name)) == row.parameters


def test_the_papers_count():
    """19,069,955 with three channels and classes: all of ours but the scales of batch norm."""
    with torch.device("meta"):
        network = models.create("unet3d", color="rgb", classes=3)
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm3d)]
    scales = sum(m.weight.numel() for m in norms)
    assert scales == 2_336
    assert count_parameters(network)[1] - scales == 19_069_955


def test_the_papers_channels():
    with torch.device("meta"):
        network = models.create("unet3d", color="rgb", classes=3)
    wide = [(m.in_channels, m.out_channels) for m in network.modules() if isinstance(m, nn.Conv3d)]
    assert wide == [
        (3, 32), (32, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 512),
        (768, 256), (256, 256), (384, 128), (128, 128), (192, 64), (64, 64), (64, 3),
    ]  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_forward(name):
    """A score for every class and voxel at full and half precision, no volume sees another, and
    other sides do.
    """
    network, volumes = tiny(name)
    with torch.no_grad():
        logits = network(volumes)
        apart = torch.cat([network(volume[None]) for volume in volumes])
        with torch.autocast("cpu", torch.bfloat16):
            half = network(volumes)
        other = network(torch.rand(1, 1, network.stride, 2 * network.stride, 12))
    assert logits.shape == (3, 3, *volumes.shape[2:])
    assert logits.isfinite().all()
    assert half.isfinite().all()
    torch.testing.assert_close(logits, apart, atol=1e-5, rtol=1e-4)
    assert other.shape == (1, 3, network.stride, 2 * network.stride, 12)


def test_learning():
    """Gradients reach every parameter, and the loss of one batch falls."""
    network, volumes = tiny()
    truth = (volumes.mean(1) * 3).long().clamp(0, 2)
    optimizer = torch.optim.Adam(network.train().parameters(), lr=1e-3)
    losses = []
    for _ in range(4):
        loss = nn.functional.cross_entropy(network(volumes), truth)
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    still = [key for key, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []
    assert min(losses[1:]) < losses[0]


def test_a_checkpoint_holds_everything(tmp_path):
    network, volumes = tiny()
    files.write(tmp_path / "x.safetensors", network.state_dict(), {})
    again, _ = tiny(width=4)
    again.load_state_dict(files.read(tmp_path / "x.safetensors")[0], strict=True)
    with torch.no_grad():
        assert torch.equal(network(volumes), again(volumes))


def test_one_level_by_hand():
    """Convolution, batch norm, ReLU, written out in NumPy."""
    network, _ = tiny()
    conv, norm = network.down[0][0], network.down[0][1]
    rng = np.random.default_rng(0)
    for name in ("running_mean", "weight", "bias"):
        getattr(norm, name).data = torch.from_numpy(rng.normal(size=4).astype(np.float32))
    norm.running_var.data = torch.from_numpy(rng.uniform(0.5, 2, 4).astype(np.float32))
    volume = rng.random((1, 3, 4, 5))
    padded = np.pad(volume, [(0, 0), (1, 1), (1, 1), (1, 1)])
    kernel = conv.weight.detach().double().numpy()
    expected = np.zeros((4, 3, 4, 5))
    for k, z, y, x in np.ndindex(expected.shape):
        window = padded[:, z : z + 3, y : y + 3, x : x + 3]
        expected[k, z, y, x] = (kernel[k] * window).sum()
    mean, var, scale, shift = (
        value.detach().double().numpy()[:, None, None, None]
        for value in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    expected = np.maximum((expected - mean) / np.sqrt(var + 1e-5) * scale + shift, 0)
    with torch.no_grad():
        found = network.down[0][:3](torch.from_numpy(volume).float()[None])[0]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


def test_the_way_down_and_up_by_hand():
    """Which maps are pooled, widened and joined, in which order."""
    network, volumes = tiny()
    pool = nn.functional.max_pool3d
    with torch.no_grad():
        top = network.down[0]((volumes - 0.5) / 0.25)
        middle = network.down[1](pool(top, 2))
        bottom = network.down[2](pool(middle, 2))
        up = network.up[0](torch.cat([middle, network.widen[0](bottom)], 1))
        up = network.up[1](torch.cat([top, network.widen[1](up)], 1))
        torch.testing.assert_close(network(volumes), network.classifier(up))


def test_several_channels_are_normalised_each():
    network, _ = tiny(color="rgb", mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 4.0))
    volume = torch.rand(1, 3, 8, 8, 8)
    by_hand = torch.stack([(volume[:, i] - 0.1 * (i + 1)) / 2**i for i in range(3)], 1)
    torch.testing.assert_close(network.normalize(volume), by_hand)


def test_sides_that_do_not_fit_are_told():
    built = models.arguments("unet3d", size=(12, 8), depth=8, width=2)
    network = models.entry("unet3d").build(**built)
    with pytest.raises(SigakError, match=r"unet3d cannot take volumes of 8x12x8 .* 64x64x64"):
        models.try_out("unet3d", network, built)


def test_it_is_summarized():
    network, _ = tiny()
    rows = summarize(network, network.input_shape)
    assert rows[-2][2] == f"{count_parameters(network)[0]:,}"
    assert rows[-3][1] == "3 x 8 x 8 x 8"
