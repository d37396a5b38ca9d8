"""Coarse masks enlarged, measured, cleaned, beside torch and OpenCV."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from sigak.ops.regions import Enlargement, Region, clean


def blobs(count, side=64, seed=0):
    """Smooth logits (count, side, side) with some small and some large regions above 0."""
    torch.manual_seed(seed)
    noise = F.interpolate(torch.randn(count, 1, 9, 9), side, mode="bicubic")[:, 0]
    return 3 * noise - torch.linspace(-1, 4, count)[:, None, None]


def region_of(plane, stability=0.5):
    rows, columns = np.flatnonzero(plane.any(1)), np.flatnonzero(plane.any(0))
    if not len(rows):
        return Region.of(np.zeros((0, 0), bool), (0, 0), stability)
    patch = plane[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return Region.of(patch, (int(columns[0]), int(rows[0])), stability)


@pytest.mark.parametrize(
    ("inner", "size"), [((170, 256), (300, 451)), ((256, 90), (61, 22)), ((256, 256), (600, 600))]
)
def test_enlarging_is_that_of_torch(inner, size):
    coarse = blobs(8)
    canvas = F.interpolate(coarse[None], (256, 256), mode="bilinear")[..., : inner[0], : inner[1]]
    expected = F.interpolate(canvas, size, mode="bilinear")[0]
    enlargement = Enlargement(64, 256, inner, size)
    torch.testing.assert_close(enlargement.logits(coarse), expected, atol=1e-4, rtol=1e-4)
    empty = 0
    for mask, wanted in zip(coarse, expected):
        region = enlargement.region(mask, 0.5)
        plane = region.mask(size)
        different = plane != (wanted > 0).numpy()
        assert (wanted.numpy()[different].__abs__() < 1e-4).all()
        assert region.area == plane.sum()
        high, low = ((wanted > level).sum().item() for level in (0.5, -0.5))
        assert region.stability == pytest.approx(high / max(low, 1), abs=2 / max(low, 1))
        empty += region.area == 0
        if region.area:
            x1, y1, x2, y2 = region.box
            rows, columns = np.flatnonzero(plane.any(1)), np.flatnonzero(plane.any(0))
            box = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
            assert (x1, y1, x2, y2) == tuple(int(v) for v in box)
    assert empty < 8


def test_the_rough_stability_is_near():
    coarse = blobs(16, 128)
    enlargement = Enlargement(128, 512, (512, 400), (700, 547))
    rough, counts = enlargement.rough_stability(coarse)
    for mask, share, count in zip(coarse, rough.tolist(), counts.tolist()):
        if count > 256:
            assert abs(enlargement.region(mask).stability - share) < 0.02


def reference_clean(plane, least):
    """OpenCV's components on the whole picture."""
    changed = False
    for holes in (True, False):
        number, parts, stats, _ = cv2.connectedComponentsWithStats(
            (plane != holes).astype(np.uint8), connectivity=8
        )
        small = [i for i in range(1, number) if stats[i, -1] < least]
        if small:
            changed = True
            if holes:
                plane = plane | np.isin(parts, small)
            elif len(small) == number - 1:
                plane = parts == 1 + stats[1:, -1].argmax()
            else:
                plane = plane & ~np.isin(parts, small)
    return plane, changed


@given(st.integers(0, 10_000), st.floats(0.02, 0.98), st.sampled_from([2, 6, 30, 200]))
@settings(max_examples=80, deadline=None)
def test_cleaning_is_that_of_the_whole_picture(seed, share, least):
    dice = np.random.default_rng(seed)
    plane = dice.random((12, 17)) < share
    if seed % 2:  # an object somewhere in it
        inside = np.zeros_like(plane)
        inside[dice.integers(0, 6) : dice.integers(7, 13), 2:15] = True
        plane &= inside
    found, changed = clean(region_of(plane), plane.shape, least)
    expected, wanted = reference_clean(plane, least)
    assert changed == wanted
    assert found.area == expected.sum()
    if found.area >= least:  # of equally large islands that are all too small, either may stay
        assert (found.mask(plane.shape) == expected).all()


@pytest.mark.parametrize("seed", range(6))
def test_a_box_is_found_without_its_mask(seed):
    """Of blotches of every size, of specks that enlarging loses, of nothing."""
    random = np.random.default_rng(seed)
    for inner, size in (((64, 43), (300, 201)), ((40, 64), (17, 28)), ((64, 64), (64, 64))):
        enlargement = Enlargement(16, 64, inner, size)
        for spread in (0.5, 2.0, 4.0):
            noise = torch.from_numpy(random.normal(-spread, 1.5, (16, 16)).astype(np.float32))
            assert enlargement.box(noise) == enlargement.region(noise).box
    assert enlargement.box(torch.full((16, 16), -1.0)) == (0, 0, 0, 0)
