"""Held-out pictures: shares, strata, identical pictures together, the same choice everywhere."""

import numpy as np
import pytest

from sigak.data.splits import carve, group_files, group_pixels, shuffled


def keys_of(count):
    return [f"class/{i}.png" for i in range(count)]


def test_every_class_gives_its_share():
    labels = np.repeat([0, 1, 2], [100, 50, 7])
    held = carve(labels, range(157), keys_of(157), 0.1, seed=0)
    assert np.bincount(labels[held]).tolist() == [10, 5, 1]


def test_the_choice_is_fixed_for_ever():
    # A known answer, so that no later version and no other machine silently splits differently.
    held = carve(np.zeros(12, int), range(12), keys_of(12), 0.25, seed=0)
    assert np.flatnonzero(held).tolist() == [3, 7, 11]


def test_seeds_differ_and_repeat():
    labels = np.zeros(200, int)
    first, again, other = (carve(labels, range(200), keys_of(200), 0.2, s) for s in (1, 1, 2))
    assert (first == again).all()
    assert first.sum() == other.sum() == 40
    assert (first != other).any()


def test_a_new_file_moves_hardly_any_other():
    before = carve(np.zeros(100, int), range(100), keys_of(100), 0.2, 0)
    after = carve(np.zeros(101, int), range(101), keys_of(101), 0.2, 0)
    assert (before != after[:100]).sum() <= 1


def test_groups_stay_together():
    groups = np.repeat(np.arange(20), 3)
    held = carve(np.zeros(60, int), groups, keys_of(60), 0.2, 0).reshape(20, 3)
    assert (held.all(axis=1) == held.any(axis=1)).all()
    assert held.sum() == 12


def test_contradicting_groups_and_lonely_pictures_stay_in_train():
    labels = np.array([0, 1, 0, 0, 0, 1, 1, 2])
    groups = [0, 0, 2, 3, 4, 5, 6, 7]  # the first two are one picture under two labels
    held = carve(labels, groups, keys_of(8), 0.5, 0)
    assert not held[:2].any()
    assert not held[7]
    assert held[2:5].sum() == 2
    assert held[5:7].sum() == 1


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_both_sides_have_every_class(share):
    labels = np.repeat([0, 1], [2, 9])
    held = carve(labels, range(11), keys_of(11), share, 0)
    assert set(labels[held]) == set(labels[~held]) == {0, 1}


def test_shuffled_is_a_permutation():
    order = shuffled(keys_of(50), 3)
    assert sorted(order) == list(range(50))
    assert order != sorted(order)


def test_group_files_compares_bytes(tmp_path):
    contents = [b"aaaa", b"bbbb", b"aaaa", b"longer", b""]
    paths = [tmp_path / str(i) for i in range(5)]
    for path, content in zip(paths, contents):
        path.write_bytes(content)
    assert group_files([str(path) for path in paths]) == [0, 1, 0, 3, 4]


def test_group_pixels_compares_pixels():
    pixels = np.zeros((4, 2, 2, 3), np.uint8)
    pixels[1] = 7
    pixels[3] = 7
    assert group_pixels(pixels) == [0, 1, 0, 1]
