"""blobs3d: the same volumes everywhere, and names that are understood."""

import hashlib

import numpy as np
import pytest

from sigak import data
from sigak.data import blobs3d
from sigak.structures import SigakError


def test_a_volume_is_a_function_of_its_number():
    one, labels = blobs3d.render(0, 3, (16, 19, 20))
    again, same = blobs3d.render(0, 3, (16, 19, 20))
    assert one.dtype == labels.dtype == np.uint8
    assert one.shape == labels.shape == (16, 19, 20)
    assert np.array_equal(one, again)
    assert np.array_equal(labels, same)
    assert not np.array_equal(one, blobs3d.render(0, 4, (16, 19, 20))[0])
    assert not np.array_equal(one, blobs3d.render(1, 3, (16, 19, 20))[0])
    assert hashlib.sha256(labels).hexdigest()[:8] == "d6ad7977"


def test_things_are_brighter_than_what_is_around_them_and_all_kinds_alike():
    seen = {label: [] for label in range(4)}
    for index in range(30):
        voxels, labels = blobs3d.render(0, index, (24, 28, 31))
        for label in np.unique(labels):
            seen[int(label)].append(voxels[labels == label].mean())
    means = [np.mean(values) for values in seen.values()]
    assert min(means[1:]) - means[0] > 60
    assert max(means[1:]) - min(means[1:]) < 25


def test_shapes_by_their_volume():
    """Grid points inside against the volumes of the bodies."""
    axis = np.arange(-20, 20) + 0.5
    points = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1)
    radii = np.array([12.0, 8.0, 10.0])
    expected = {
        "ellipsoid": 4 / 3 * np.pi * radii.prod(),
        "box": 8 * 0.85**3 * radii.prod(),
        "tube": np.pi * (0.45 * 12) ** 2 * 2 * 2.2 * 8,
    }
    for name, size in expected.items():
        inside = blobs3d._inside(blobs3d.CLASSES.index(name), points, radii)
        assert inside.sum() == pytest.approx(size, rel=0.08), name


def test_the_set():
    dataset = data.load("blobs3d:3@16")
    assert dataset.classes == ["background", "ellipsoid", "box", "tube"]
    assert {name: len(s) for name, s in dataset.splits.items()} == {
        "train": 3,
        "val": 10,
        "test": 20,
    }
    record = dataset.splits["test"].records[2]
    assert (record.source, record.depth, record.size) == ("blobs3d:3@16/test#2", 16, (19, 20))
    assert np.array_equal(
        record.class_map.read(), blobs3d.render(0, 2 * 10**9 + 2, (16, 19, 20))[1]
    )
    assert data.digest(dataset) == data.digest(data.load("blobs3d:3@16"))
    assert data.digest(dataset) != data.digest(data.load("blobs3d:4@16"))


@pytest.mark.parametrize("spec", ["blobs3d:", "blobs3d:a", "blobs3d:3x16", "blobs3d:3@"])
def test_other_names_are_refused(spec):
    with pytest.raises(SigakError, match=r"blobs3d:SIDE such as blobs3d:24, .* received"):
        data.load(spec)


@pytest.mark.parametrize("spec", ["blobs3d:8", "blobs3d:0@16", "blobs3d:9999", "blobs3d:99999@99"])
def test_sizes_that_cannot_be_are_refused(spec):
    with pytest.raises(SigakError, match="needs at least 1 volume and 16 voxels a side"):
        data.load(spec)
