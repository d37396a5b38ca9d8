"""Outlines and masks: pycocotools' own pixels and codes, and back again."""

import numpy as np
import pycocotools.mask as reference
import pytest
import torch

from sigak.ops.outlines import (
    code_of,
    codes,
    cut,
    filled,
    masks_of,
    move_masks,
    polygons_of,
    run_lengths,
)
from sigak.structures import Instances, Masks, SigakError

SIZE = (48, 64)
# pycocotools is older than NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def theirs(polygons, size=SIZE):
    parts = reference.frPyObjects([p.ravel().tolist() for p in polygons], *size)
    return reference.decode(reference.merge(parts)).astype(bool)


def blobs(count, size=SIZE, seed=0):
    """Masks of ragged shapes with holes, some of them touching the sides."""
    rng = np.random.default_rng(seed)
    planes = np.zeros((count, *size), bool)
    for plane in planes:
        y, x = rng.integers(0, size[0] - 4), rng.integers(0, size[1] - 4)
        h, w = rng.integers(3, 30, 2)
        plane[y : y + h, x : x + w] = True
        plane &= rng.random(size) > 0.2
    return planes


def test_polygons_fill_the_pixels_of_pycocotools() -> None:
    rng = np.random.default_rng(0)
    for _ in range(150):  # crossing themselves, over the sides, in several parts
        parts = [
            rng.uniform(-20, 80, (rng.integers(3, 12), 2)) * rng.uniform(0.1, 1)
            + rng.uniform(0, 30, 2)
            for _ in range(rng.integers(1, 4))
        ]
        patch, (x, y) = filled(parts, SIZE)
        plane = np.zeros(SIZE, bool)
        plane[y : y + patch.shape[0], x : x + patch.shape[1]] = patch
        assert (plane == theirs(parts)).all()


def test_a_square_and_what_has_no_area() -> None:
    square = np.array([[2.0, 3], [10, 3], [10, 8], [2, 8]])
    (one, none, line, crossed) = masks_of(
        [[square], [], [square[:2]], [square[[0, 2, 1, 3]]]], SIZE
    ).planes()
    assert one[3:8, 2:10].all()
    assert one.sum() == 40
    assert none.sum() == line.sum() == 0
    assert 0 < crossed.sum() < 40  # a bow tie


def test_far_outside_and_on_a_picture_of_one_pixel() -> None:
    far = np.array([[200.0, 200], [300, 200], [300, 300]])
    assert masks_of([[far], [-far]], SIZE).areas().tolist() == [
        int(theirs([far]).sum()), int(theirs([-far]).sum()),
    ]  # fmt: skip
    whole = np.array([[0.0, 0], [1, 0], [1, 1], [0, 1]])
    assert masks_of([[whole]], (1, 1)).planes().tolist() == [[[True]]]


def test_codes_are_those_of_pycocotools() -> None:
    planes = np.concatenate([blobs(40), np.zeros((1, *SIZE), bool), np.ones((1, *SIZE), bool)])
    masks = Masks.of(planes)
    found = codes(masks)
    expected = [reference.encode(np.asfortranarray(plane.astype(np.uint8))) for plane in planes]
    assert [code["counts"] for code in found] == [code["counts"].decode() for code in expected]
    assert found[0]["size"] == list(SIZE)
    as_bytes = [code | {"counts": code["counts"].encode()} for code in found]
    lists = [run_lengths(p, x, y, SIZE) for p, (x, y) in zip(masks.patches, masks.corners.tolist())]
    for form in (found, as_bytes, lists):
        assert torch.equal(masks_of(form, SIZE).planes(), torch.from_numpy(planes))


@pytest.mark.parametrize(
    "outline",
    [
        {"size": [4, 4], "counts": [0, 5, 12]},
        {"size": [4, 4], "counts": [3, -5, 18]},
        {"size": [4, 4], "counts": "zzzzzzzz"},
        {"size": [4, 4], "counts": b"\xff\xff"},
        {"size": [4, 4], "counts": None},
        {"size": [4], "counts": [16]},
        {"counts": [16]},
    ],
)
def test_damaged_codes_are_refused(outline) -> None:
    with pytest.raises(SigakError, match="a run-length code cannot be read"):
        code_of(outline)


def test_a_code_of_another_picture_is_refused() -> None:
    with pytest.raises(SigakError, match="of 4 x 4 pixels, and its picture of 48 x 64"):
        masks_of([{"size": [4, 4], "counts": [0, 16]}], SIZE)


def test_polygons_of_masks_fill_the_same_pixels() -> None:
    planes = blobs(30, seed=1)
    for plane, parts in zip(planes, polygons_of(Masks.of(planes))):
        solid = [part for part in parts if len(part) >= 3]
        again = masks_of([solid], SIZE).planes()[0].numpy()
        assert again[plane].mean() > 0.97  # holes are not told, so that it may be more
    step = np.zeros((1, *SIZE), bool)
    step[0, 4:8, 5:20] = step[0, 8:16, 5:9] = True
    [[corner]] = polygons_of(Masks.of(step))
    assert (corner.min(0).tolist(), corner.max(0).tolist()) == ([5, 4], [20, 16])
    assert polygons_of(Masks.of(np.zeros((1, *SIZE), bool))) == [[]]


@pytest.mark.parametrize(
    "matrix",
    [
        [[1.0, 0, 5], [0, 1, -3], [0, 0, 1]],
        [[-1.0, 0, 64], [0, 1, 0], [0, 0, 1]],
        [[0.5, 0, 3.2], [0, 0.7, 1], [0, 0, 1]],
        [[1.9, 0.3, -20], [-0.2, 1.7, -4], [0, 0, 1]],
        [[1.0, 0.1, 0], [0, 1, 2], [0.002, 0.001, 1]],
    ],
)
def test_masks_move_pixel_by_pixel(matrix) -> None:
    planes, through = blobs(6), np.array(matrix)
    moved = move_masks(Masks.of(planes), through, (40, 56)).planes().numpy()
    y, x = np.mgrid[0:40, 0:56] + 0.5
    back = np.linalg.inv(through) @ np.stack([x, y, np.ones_like(x)]).reshape(3, -1)
    there = back[:2] / back[2]
    column, row = np.floor(there).astype(int).reshape(2, 40, 56)
    inside = (row >= 0) & (row < 48) & (column >= 0) & (column < 64)
    expected = planes[:, row.clip(0, 47), column.clip(0, 63)] & inside
    # Where a place lies on the border of two pixels rounding decides.
    clear = (np.abs(there - there.round()) > 0.05).all(0).reshape(40, 56)
    assert (moved == expected)[:, clear].all()


def test_outlines_through_a_matrix() -> None:
    half = np.diag([0.5, 0.5, 1.0])
    polygon = np.array([[4.0, 6], [30, 8], [22, 40]])
    moved = masks_of([[polygon]], (24, 32), half).planes()
    assert torch.equal(moved, torch.from_numpy(theirs([polygon / 2], (24, 32)))[None])
    plane = blobs(1)
    [code] = codes(Masks.of(plane))
    expected = move_masks(Masks.of(plane), half, (24, 32)).planes()
    assert torch.equal(masks_of([code], (24, 32), half).planes(), expected)


def test_soft_values_are_cut_where_they_turn_negative() -> None:
    ramp = np.tile(np.arange(8, dtype=np.float32) - 3.5, (4, 1))
    double = np.diag([2.0, 2.0, 1.0])[None]
    box = np.array([[0.0, 2, 12, 8]])
    masks = cut([ramp], double, box, (8, 16))
    expected = np.zeros((8, 16), bool)
    expected[2:8, 8:12] = True  # from the middle of the ramp to the side of the box
    assert (masks.planes()[0].numpy() == expected).all()
    assert cut([ramp], double, np.array([[3.0, 3, 3, 9]]), (8, 16)).areas().tolist() == [0]


def test_masks_are_picked_joined_and_counted() -> None:
    planes = blobs(5)
    masks = Masks.of(torch.from_numpy(planes))
    order = torch.tensor([3, 0])
    assert torch.equal(masks[order].planes(), torch.from_numpy(planes[[3, 0]]))
    both = Masks.joined([masks[order], masks])
    assert both.areas().tolist() == planes[[3, 0, 0, 1, 2, 3, 4]].sum((1, 2)).tolist()
    boxes = torch.zeros(5, 4)
    given = Instances(boxes, torch.arange(5), masks=torch.from_numpy(planes))  # whole planes
    assert torch.equal(given[order].masks.planes(), torch.from_numpy(planes[[3, 0]]))
    with pytest.raises(SigakError, match="boxes has 4, masks 5"):
        Instances(boxes[:4], torch.arange(4), masks=masks)


def test_a_hundred_objects_take_little_memory() -> None:
    planes = np.zeros((100, 640, 640), bool)
    for i, plane in enumerate(planes):
        y, x = (i // 10) * 64, (i % 10) * 64
        plane[y : y + 60, x : x + 60] = True
    masks = Masks.of(planes)
    assert sum(patch.nbytes for patch in masks.patches) < planes.nbytes / 100
