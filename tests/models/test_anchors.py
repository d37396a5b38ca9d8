"""Anchors found by clustering: against a plain computation, and on painted pictures."""

import numpy as np
import pytest
import torch

from sigak.data import scenes
from sigak.models._anchors import cluster, mean_overlap, overlaps, sides_of


def test_overlaps_by_hand():
    found = overlaps(np.array([[10.0, 20], [4, 4]]), np.array([[10.0, 10], [8, 2]]))
    assert found == pytest.approx(np.array([[0.5, 16 / 200], [16 / 100, 8 / 24]]))


def test_groups_are_found_whatever_the_order():
    rng = np.random.default_rng(0)
    middles = np.array([[8.0, 10], [20, 12], [30, 60], [90, 40]])
    sides = np.concatenate([m * rng.uniform(0.95, 1.05, (50, 2)) for m in middles])
    rng.shuffle(sides)
    found = cluster(sides, 4)
    assert found == pytest.approx(middles[np.argsort(middles.prod(1))], rel=0.05)
    assert cluster(sides, 4) == pytest.approx(found, abs=0)


def test_more_anchors_than_shapes():
    found = cluster(np.array([[5.0, 5]] * 4), 3)
    assert found == pytest.approx(np.full((3, 2), 5.0))


def test_boxes_without_area_do_not_count():
    boxes = [torch.tensor([[0.0, 0, 4, 6], [3, 3, 3, 9]]), torch.zeros(0, 4)]
    assert sides_of(boxes).tolist() == [[4, 6]]
    assert sides_of([]).shape == (0, 2)


def test_clusters_reach_the_objects_of_scenes():
    """Five clusters overlap small objects far more than the anchors that were made for photos."""
    objects = [scenes.render(0, i, (128, 128))[1].boxes for i in range(60)]
    sides = sides_of([torch.from_numpy(boxes) for boxes in objects])
    published = np.array([[23, 27], [37, 58], [81, 82], [135, 169], [344, 319]])
    assert mean_overlap(sides, published) < 0.65
    found = cluster(sides, 5)
    assert mean_overlap(sides, found) > 0.75
    assert (overlaps(sides, found).max(1) > 0.5).mean() > 0.98
