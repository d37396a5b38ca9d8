"""Volumes for the network: patches that depend on nothing but their key, whole volumes."""

from dataclasses import replace

import numpy as np
import psutil
import pytest
import torch

from sigak import data
from sigak.data import Record, Split
from sigak.data.classmaps import lookup
from sigak.data.feed import Feed
from sigak.data.patches import Volumes, fitted
from sigak.data.volumes import VolumeMap
from sigak.io import image, volumes
from sigak.structures import IGNORE, Batch, SigakError


def made(shape, labels=None):
    """A split of one volume that counts its voxels, and its mask."""
    count = np.arange(np.prod(shape)).reshape(shape)
    labels = (count % 3).astype(np.uint8) if labels is None else labels
    pixels = (count % 251).astype(np.uint8)[None, ..., None]
    class_map = VolumeMap("x", lookup({0: 0, 1: 1, 2: 2}), shape=shape, labels=labels)
    return Split(
        "train", [Record("x", size=shape[1:], class_map=class_map, depth=shape[0])], pixels
    )


def preparation(depth=8, height=8, width=8):
    return image.Preparation(
        (height, width), "gray", "native", depth=depth, intensity=volumes.INTENSITY
    )


def opened(split, ready=None, **how):
    return Volumes(split, ready or preparation(), Batch.of, **{"reduced": True} | how).load()


def test_an_epoch_fills_the_volumes():
    split = made((20, 17, 9))
    assert len(opened(split)) == -(-20 * 17 * 9 // 512) == 6
    assert len(opened(split, reduced=False)) == 1
    assert len(opened(data.load("blobs3d:3@16").splits["train"])) == 3 * 12


def test_a_patch_is_a_part_of_its_volume():
    split = made((20, 17, 9))
    patches = opened(split)
    batch = patches.batch(np.arange(6), (0, 1))
    assert batch.images.shape == (6, 1, 8, 8, 8)
    assert batch.images.dtype == torch.float32
    assert batch.class_maps.shape == (6, 8, 8, 8)
    assert batch.indices.tolist() == list(range(6))
    whole = volumes.scaled(split.pixels[0, ..., 0])
    windows = np.lib.stride_tricks.sliding_window_view(whole, (8, 8, 8))
    masks = np.lib.stride_tricks.sliding_window_view(split.records[0].class_map.labels, (8, 8, 8))
    for patch, labels in zip(batch.images[:, 0].numpy(), batch.class_maps.numpy()):
        [place] = np.argwhere((windows == patch).all((3, 4, 5)) & (masks == labels).all((3, 4, 5)))
        assert place.max() <= 12


def test_patches_are_a_function_of_seed_epoch_and_place():
    patches = opened(made((20, 17, 9)))
    order = np.array([4, 0, 2])
    one, same = patches.batch(order, (0, 1)), patches.batch(np.arange(6), (0, 1))
    assert torch.equal(one.images, same.images[order])
    for key in ((0, 2), (1, 1)):
        assert not torch.equal(one.images, patches.batch(order, key).images)


def test_batches_do_not_depend_on_threads_or_a_restart():
    split = data.load("blobs3d:3@16").splits["train"]
    whole = [list(Feed(opened(split, threads=t), batch=5, seed=3).epoch(2)) for t in (1, 3)]
    rest = list(Feed(opened(split), batch=5, seed=3).epoch(2, 4))
    for one, other in zip(whole[0], whole[1], strict=True):
        assert torch.equal(one.batch.images, other.batch.images)
        assert torch.equal(one.batch.class_maps, other.batch.class_maps)
    for one, other in zip(whole[0][4:], rest, strict=True):
        assert torch.equal(one.batch.images, other.batch.images)


def test_half_of_the_patches_are_around_a_class():
    labels = np.zeros((64, 64, 64), np.uint8)
    labels[5, 50, 60] = 1
    labels[40, 40, 40] = 2
    patches = opened(made(labels.shape, labels))
    assert len(patches) == 512
    maps = patches.batch(np.arange(512), (0, 0)).class_maps
    one, two = ((maps == k).flatten(1).any(1).float().mean().item() for k in (1, 2))
    # Half are aimed, evenly at the two; some that are not meet one too.
    assert one == pytest.approx(0.25, abs=0.05)
    assert two == pytest.approx(0.25, abs=0.05)


def test_volumes_smaller_than_a_patch_repeat_their_edge_and_are_not_learnt_there():
    split = made((1, 5, 9))
    batch = opened(split).batch(np.arange(1), (0, 0))
    voxels, labels = batch.images[0, 0].numpy(), batch.class_maps[0].numpy()
    assert voxels.shape == (8, 8, 8)
    assert (voxels == voxels[:1]).all()
    assert (voxels[:, 5:] == voxels[:, 4:5]).all()
    assert (labels[1:] == IGNORE).all()
    assert (labels[:, 5:] == IGNORE).all()
    assert (labels[0, :5] != IGNORE).all()


def test_patches_fit_flat_volumes():
    thin = made((1, 40, 30))
    assert fitted(preparation(64, 64, 64), thin) == preparation(8, 40, 32)
    assert fitted(preparation(8, 16, 16), thin) == preparation(8, 16, 16)


def test_whole_volumes_with_their_truth():
    split = made((9, 10, 11))
    [batch] = opened(split, reduced=False).batches(np.arange(1))
    assert batch.images.shape == (1, 1, 9, 10, 11)
    assert np.array_equal(batch.images[0, 0].numpy(), volumes.scaled(split.pixels[0, ..., 0]))
    assert np.array_equal(batch.truth_maps[0](), split.records[0].class_map.labels)


def test_what_does_not_fit_into_memory_is_kept_on_disk(monkeypatch):
    split = data.load("blobs3d:3@16").splits["train"]
    kept = opened(split).batch(np.arange(7), (0, 0))
    free = psutil.virtual_memory()._replace(available=1000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    spooled = opened(split)
    assert isinstance(spooled.held[0].image, np.memmap)
    batch = spooled.batch(np.arange(7), (0, 0))
    assert torch.equal(batch.images, kept.images)
    assert torch.equal(batch.class_maps, kept.class_maps)
    folder = spooled.spool
    assert len(list(folder.iterdir())) == 6
    del spooled
    assert not folder.exists()
    whole = opened(split, reduced=False)  # is read when it is asked for
    assert whole.held == {}
    assert len(list(whole.batches(np.arange(3)))) == 3


def test_unreadable_masks_are_named_and_left_out(tmp_path):
    for i in range(3):
        for kind, top in (("images", 99), ("masks", 2)):
            (tmp_path / kind).mkdir(exist_ok=True)
            values = np.random.default_rng(i).integers(0, top, (9, 9, 9)).astype(np.uint8)
            np.save(tmp_path / kind / f"{i}.npy", values)
    (tmp_path / "classes.txt").write_text("air\nbone\n")
    np.save(tmp_path / "masks/1.npy", np.full((9, 9, 9), 5, np.uint8))
    split = data.load(tmp_path, val=0).splits["train"]
    patches = opened(split)
    assert len(patches) == 2 * 2
    [problem] = patches.problems
    assert "masks/1.npy holds the value 5, which is no class" in problem.reason
    with pytest.raises(SigakError, match="leave out --strict"):
        Volumes(split, preparation(), Batch.of, reduced=True).load(strict=True)
    with pytest.raises(SigakError, match="none of the 1 pictures"):
        opened(split.subset(np.array([1]), "train"))


def test_statistics_by_hand():
    split = made((9, 10, 11))
    mean, std = opened(split).statistics()
    voxels = volumes.scaled(split.pixels[0, ..., 0])
    assert mean == pytest.approx((voxels.mean(dtype=float),))
    assert std == pytest.approx((voxels.std(dtype=float),))


def test_parts_of_a_batch_keep_their_layout():
    """What gradients are accumulated over."""
    batch = opened(data.load("blobs3d:3@16").splits["train"]).batch(np.arange(5), (0, 0))
    part = batch.select(torch.tensor([3, 1]))
    assert torch.equal(part.images, batch.images[[3, 1]])
    assert torch.equal(part.class_maps, batch.class_maps[[3, 1]])
    assert replace(part, images=part.images * 2).floating().images.dtype == torch.float32
