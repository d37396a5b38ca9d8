"""Augmentation of volumes: mirrors of values and classes together, and light."""

import numpy as np
import pytest
import torch

from sigak.augment.volumes import VolumeAugmentation
from sigak.structures import Batch, Sample, SigakError

parse = VolumeAugmentation.parse


def batch(count=16):
    rng = np.random.default_rng(0)
    samples = [
        Sample(rng.random((4, 5, 6, 1)).astype(np.float32), index=10 + i,
               class_map=rng.integers(0, 9, (4, 5, 6)).astype(np.uint8))
        for i in range(count)
    ]  # fmt: skip
    return Batch.of(samples)


def test_words():
    assert parse("flip=dw,brightness=0.1, contrast=0.2") == VolumeAugmentation("dw", 0.1, 0.2)
    assert parse("none") is parse("") is None
    for text in ("flip=x", "rotate=5", "brightness=much", "contrast=1.5", "brightness=-0.1"):
        with pytest.raises(SigakError, match=r"such as flip=dhw,brightness=0\.1,contrast=0\.1"):
            parse(text)


@pytest.mark.parametrize(("axis", "place"), [("d", 1), ("h", 2), ("w", 3)])
def test_mirrors_move_voxels_and_classes_together(axis, place):
    given = batch(64)
    found = parse(f"flip={axis}")(given, 0, 1)
    images, maps = given.images[:, 0], given.class_maps
    turned = (found.images[:, 0] == images.flip(place)).flatten(1).all(1)
    same = (found.images[:, 0] == images).flatten(1).all(1)
    assert (turned ^ same).all()
    assert 16 < turned.sum() < 48
    expected = torch.where(turned[:, None, None, None], maps.flip(place), maps)
    assert torch.equal(found.class_maps, expected)


def test_light_by_hand():
    given = batch()
    found = parse("brightness=0.1,contrast=0.2")(given, 0, 1)
    assert torch.equal(found.class_maps, given.class_maps)
    assert 0 <= found.images.min() <= found.images.max() <= 1
    for before, after in zip(given.images.double(), found.images.double()):
        inner = (after > 0) & (after < 1)
        x, y = before[inner] - 0.5, after[inner] - 0.5
        gain = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
        offset = y.mean() - gain * x.mean()
        torch.testing.assert_close(y, gain * x + offset, atol=1e-5, rtol=0)
        assert 0.8 <= gain <= 1.2
        assert -0.1 <= offset <= 0.1


def test_it_depends_on_seed_epoch_and_sample_alone():
    given, augment = batch(), parse("flip=dhw,brightness=0.1,contrast=0.1")
    one = augment(given, 3, 2)
    part = augment(given.select(torch.tensor([5, 2])), 3, 2)
    assert torch.equal(part.images, one.images[[5, 2]])
    assert not torch.equal(augment(given, 3, 3).images, one.images)
    assert not torch.equal(augment(given, 4, 2).images, one.images)
