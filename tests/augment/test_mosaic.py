"""Mosaic, blend and copy-paste: what is seen in the picture is what is said of it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sigak.augment import Draws, Pipeline
from sigak.augment import pipeline as engine_room
from sigak.augment.mix import joined, neighbours
from sigak.augment.mosaic import GRAY_LEVEL, contents
from sigak.io.fit import fit
from sigak.structures import Batch, Instances, Masks, SigakError

SIZE = (96, 128)


def coloured(count: int = 6, size: tuple[int, int] = SIZE, masks: bool = False) -> Batch:
    """Pictures with upright rectangles whose colour is their class: class 12 i + n has the red
    value 20 + 2 (12 i + n) on a background of green.
    """
    generator = np.random.default_rng(0)
    images = np.zeros((count, *size, 3), np.uint8)
    images[..., 1] = 200
    instances = []
    for i in range(count):
        boxes, outlines = [], []
        for n in range(4):
            left, top = (n % 2) * size[1] // 2, (n // 2) * size[0] // 2
            x, y = left + generator.integers(2, 12), top + generator.integers(2, 8)
            box = (x, y, x + generator.integers(24, 40), y + generator.integers(20, 34))
            images[i, box[1] : box[3], box[0] : box[2]] = (20 + 2 * (12 * i + n), 0, 250)
            outline = np.zeros(size, bool)
            outline[box[1] : box[3], box[0] : box[2]] = True
            boxes.append(box)
            outlines.append(outline)
        found = Instances(torch.tensor(np.array(boxes)).float(), 12 * i + torch.arange(4))
        if masks:
            found.masks = Masks.of(np.stack(outlines))
        instances.append(found)
    return Batch(
        images=torch.from_numpy(images).permute(0, 3, 1, 2),
        indices=torch.arange(count) + 10,
        matrix=torch.eye(3).double().repeat(count, 1, 1),
        sizes=[size] * count,
        sources=[""] * count,
        instances=instances,
    )


def red(label: int) -> int:
    return 20 + 2 * label


def disagreement(picture: torch.Tensor, found: Instances) -> float:
    """How far the boxes are from what is painted in their colours, in pixels at the most; also
    whether a colour is seen without a box.
    """
    worst = 0.0
    blue, shade = picture[2].numpy() > 240, picture[0].numpy().astype(int)
    for box, label in zip(found.boxes.tolist(), found.labels.tolist()):
        x1, y1, x2, y2 = box
        ys, xs = np.nonzero(blue & (np.abs(shade - red(label)) <= 1))
        near = (xs + 0.5 > x1 - 1.5) & (xs + 0.5 < x2 + 1.5)
        near &= (ys + 0.5 > y1 - 1.5) & (ys + 0.5 < y2 + 1.5)
        assert near.any(), f"nothing of class {label} in {box}"
        xs, ys = xs[near], ys[near]
        seen = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
        worst = max(worst, *(abs(a - b) for a, b in zip(box, seen)))
    return worst


# --- mosaic


@pytest.mark.parametrize(
    "spec", ["mosaic=1", "mosaic=1,flip=both", "mosaic=1,flip=h,zoom=0.4,shift=0.2", "mosaic=0.5"]
)
def test_every_box_lies_on_its_colour(spec: str) -> None:
    batch = coloured()
    seen = 0
    for epoch in range(6):
        changed = Pipeline.parse(spec, SIZE)(batch, 3, epoch)
        for picture, found in zip(changed.images, changed.instances):
            # Enlarging blurs a border over two pixels; copies are exact.
            limit = 1.6 if "zoom" in spec else 1e-6
            assert disagreement(picture, found) <= limit
            seen += len(found)
    assert seen > 150


def test_every_colour_that_is_seen_has_its_box() -> None:
    batch = coloured()
    changed = Pipeline.parse("mosaic=1,flip=both", SIZE)(batch, 0, 0)
    for picture, found in zip(changed.images, changed.instances):
        covered = torch.zeros(SIZE, dtype=torch.bool)
        for x1, y1, x2, y2 in found.boxes.int().tolist():
            covered[y1:y2, x1:x2] = True
        alone = (picture[2] > 240) & ~covered
        # Slivers of less than a tenth of an object, or two pixels wide, have no box.
        assert alone.sum() <= 6 * 0.1 * 40 * 34


def test_a_mosaic_shows_four_pictures_around_a_point() -> None:
    batch = coloured(8)
    changed = Pipeline.parse("mosaic=1", SIZE)(batch, 0, 0)
    pictures = [set((found.labels // 12).tolist()) for found in changed.instances]
    assert max(len(p) for p in pictures) == 4
    assert all(len(p) <= 4 for p in pictures)
    plan = Pipeline.parse("mosaic=1", SIZE).plan(batch, Draws(0, 0, np.arange(8)))
    assert all(len(set(row)) == 4 for row in plan.tiling.source.tolist())
    assert (plan.tiling.source[:, 0] == np.arange(8)).all()
    # The pictures have no bars, so their tiles cover the canvas: nothing of it stays gray.
    assert not (changed.images == GRAY_LEVEL).all(dim=1).any()


def test_turned_tiles_leave_no_gap_and_carry_their_points() -> None:
    batch = coloured()
    for one in batch.instances:
        centres = (one.boxes[:, :2] + one.boxes[:, 2:]) / 2
        one.points = torch.cat([centres, torch.full((4, 1), 2.0)], dim=1)[:, None]
    changed = Pipeline.parse("mosaic=1,rotate=20,shear=5,zoom=0.2", SIZE)(batch, 0, 0)
    seen = 0
    for picture, found in zip(changed.images, changed.instances):
        for (x, y, visible), label in zip(found.points[:, 0].tolist(), found.labels.tolist()):
            if visible and 2 < x < SIZE[1] - 2 and 2 < y < SIZE[0] - 2:
                assert abs(int(picture[0, int(y), int(x)]) - red(label)) <= 2
                seen += 1
    assert seen > 20


def test_turned_tiles_may_lie_beside_the_canvas() -> None:
    batch = coloured()
    pipeline = Pipeline.parse("mosaic=1,rotate=180,zoom=0.9,shift=1", SIZE)
    for epoch in range(12):
        changed = pipeline(batch, 0, epoch)
        known = (changed.images[:, 1] >= 110) | (changed.images[:, 2] >= 110)
        assert known.all()  # gray or picture, and no pixel that was not written


def letterboxed(count: int = 4) -> Batch:
    """Wide and tall white pictures on a square canvas with gray bars."""
    images, matrices, sizes = [], [], []
    for i in range(count):
        size = (40, 100) if i % 2 else (90, 30)
        picture, matrix = fit(np.full((*size, 3), 255, np.uint8), (64, 64), "letterbox")
        images.append(picture)
        matrices.append(matrix)
        sizes.append(size)
    return Batch(
        torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2),
        torch.arange(count),
        torch.from_numpy(np.stack(matrices)),
        sizes,
        [""] * count,
        instances=[Instances(torch.tensor([[20.0, 20, 44, 44]]), torch.tensor([0]))] * count,
    )


def test_the_bars_of_a_letterboxed_picture_stay_behind() -> None:
    batch = letterboxed()
    for (x1, y1, x2, y2), picture in zip(contents(batch).tolist(), batch.images):
        assert (picture[:, y1:y2, x1:x2] == 255).all()
        assert (picture == 255).all(dim=0).sum() == (y2 - y1) * (x2 - x1)
    changed = Pipeline.parse("mosaic=1", (64, 64))(batch, 0, 0)
    plan = Pipeline.parse("mosaic=1", (64, 64)).plan(batch, Draws(0, 0, np.arange(4)))
    for place, picture in enumerate(changed.images):
        white = torch.zeros(64, 64, dtype=torch.bool)
        for matrix, content in zip(plan.tiling.matrices[place], plan.tiling.content[place]):
            corners = content.reshape(2, 2) + matrix[:2, 2]
            (x1, y1), (x2, y2) = np.clip(corners, 0, 64).astype(int).tolist()
            assert not white[y1:y2, x1:x2].any()  # tiles touch and do not overlap
            white[y1:y2, x1:x2] = True
        assert torch.equal((picture == 255).all(dim=0), white)
    assert set(changed.images.unique().tolist()) <= {GRAY_LEVEL, 255}


@pytest.mark.parametrize("spec", ["mosaic=1,zoom=0.5,shift=0.1,flip=h", "mosaic=0.5,rotate=10"])
@pytest.mark.parametrize("make", [coloured, letterboxed])
def test_both_engines_paint_the_same_mosaic(spec: str, make) -> None:
    batch = make()
    size = tuple(batch.images.shape[2:])
    pipeline = Pipeline.parse(spec, size)
    plan = pipeline.plan(batch, Draws(0, 0, batch.indices.numpy()))
    cpu = engine_room.images_on_cpu(batch.images, plan)
    device = engine_room.images_on_device(batch.images, plan)
    assert device.dtype == cpu.dtype
    difference = (cpu.int() - device.int()).abs().float()
    assert difference.mean() < 1.0
    # Where a tile ends the engines may disagree about a row of pixels whose centre lies on it.
    assert (difference > 8).float().mean() < 0.02
    floats = pipeline(batch.floating(), 0, 0).images * 255
    assert (floats - device.float()).abs().max() < 1


def test_a_mosaic_depends_on_company_and_not_on_order_or_threads() -> None:
    batch = coloured(size=(160, 128))
    pipeline = Pipeline.parse("mosaic=1,flip=h,zoom=0.2,hue=0.1", (160, 128))
    first = pipeline(batch, 5, 2)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    again = pipeline(batch.select(order), 5, 2)
    assert torch.equal(again.images, first.images[order])
    assert torch.equal(again.instances[0].boxes, first.instances[3].boxes)
    assert torch.equal(replace(pipeline, threads=3)(batch, 5, 2).images, first.images)
    assert not torch.equal(pipeline(batch, 5, 3).images, first.images)


def test_small_batches_fill_a_mosaic_with_what_there_is() -> None:
    changed = Pipeline.parse("mosaic=1,blend=1", SIZE)(coloured(1), 0, 0)
    assert set((changed.instances[0].labels // 12).tolist()) == {0}


def test_slivers_at_the_side_of_a_tile_are_dropped() -> None:
    batch = coloured(4)
    for epoch in range(10):
        for found in Pipeline.parse("mosaic=1,zoom=0.5", SIZE)(batch, 0, epoch).instances:
            sides = found.boxes[:, 2:] - found.boxes[:, :2]
            assert (sides > 2).all()


# --- the last epochs, and what does not go together


def test_the_last_epochs_are_closed() -> None:
    batch = coloured(masks=True)
    spec = "mosaic=1,copypaste=1,blend=1,close=2,fill=gray"
    pipeline = Pipeline.parse(spec, SIZE, epochs=5)
    assert [str(pipeline.at(e)) == str(pipeline) for e in range(1, 6)] == [True] * 3 + [False] * 2
    assert not torch.equal(pipeline(batch, 0, 3).images, batch.images)
    assert torch.equal(pipeline(batch, 0, 4).images, batch.images)
    assert torch.equal(pipeline(batch, 0, 5).instances[1].boxes, batch.instances[1].boxes)
    unknown = Pipeline.parse(spec, SIZE)
    assert unknown.at(10**6) is unknown


def test_gray_lies_outside_without_a_mosaic_too() -> None:
    changed = Pipeline.parse("shift=0.3,fill=gray", SIZE)(coloured(), 0, 0)
    gray = (changed.images == GRAY_LEVEL).all(dim=1).flatten(1).sum(dim=1)
    assert (gray > 0).any()
    assert str(Pipeline.parse("mosaic=1,zoom=0.5", SIZE)) == "mosaic=1,zoom=0.5,fill=gray"


@pytest.mark.parametrize("spec", ["mosaic=1", "blend=1", "copypaste=1"])
def test_what_has_no_objects_is_refused(spec: str) -> None:
    with pytest.raises(SigakError, match="this batch has none"):
        Pipeline.parse(spec, SIZE)(replace(coloured(), instances=None), 0, 0)
    mapped = replace(coloured(), class_maps=torch.zeros(6, *SIZE, dtype=torch.uint8))
    with pytest.raises(SigakError, match="carries class_maps"):
        Pipeline.parse(spec, SIZE)(mapped, 0, 0)


# --- blend


def test_blending_shows_both_pictures_and_keeps_the_objects_of_both() -> None:
    batch = coloured()
    changed = Pipeline.parse("blend=1", SIZE)(batch, 0, 0)
    partner = neighbours(Draws(0, 0, batch.indices.numpy()), "blend.ring")
    for i, found in enumerate(changed.instances):
        both = joined([batch.instances[i], batch.instances[partner[i]]])
        assert torch.equal(found.boxes, both.boxes)
        assert torch.equal(found.labels, both.labels)
        mean = (batch.images[i].float() + batch.images[partner[i]].float()) / 2
        assert (changed.images[i].float() - mean).abs().max() < 0.25 * 255
    some = Pipeline.parse("blend=0.5", SIZE)(batch, 0, 0).instances
    assert {len(found) for found in some} == {4, 8}


# --- copy and paste


@pytest.mark.parametrize("floating", [False, True])
def test_pasted_objects_cover_what_lies_under_them(floating: bool) -> None:
    batch = coloured(masks=True)
    start = batch.floating() if floating else batch
    changed = Pipeline.parse("copypaste=1", SIZE)(start, 0, 0)
    images = (changed.images * (255 if floating else 1)).round()
    pasted = 0
    for i, (picture, found) in enumerate(zip(images, changed.instances)):
        pasted += int((found.labels // 12 != i).sum())
        planes = found.masks.planes()
        assert (planes.sum(dim=0) <= 1).all()  # a pixel belongs to one object
        for box, label, mask in zip(found.boxes, found.labels.tolist(), planes):
            assert (picture[0][mask] == red(label)).all()
            ys, xs = torch.nonzero(mask, as_tuple=True)
            hull = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
            assert box.tolist() == [float(side) for side in hull]
        assert (planes.any(dim=0) == (picture[2] > 240)).float().mean() > 0.98
    assert pasted > 5


def test_points_under_a_pasted_object_are_hidden() -> None:
    batch = coloured(masks=True)
    for one in batch.instances:
        one.points = torch.cat([one.boxes[:, :2] + 1.5, torch.full((4, 1), 2.0)], dim=1)[:, None]
    changed = Pipeline.parse("copypaste=1", SIZE)(batch, 0, 0)
    hidden = 0
    for found in changed.instances:
        for (x, y, visible), mask in zip(found.points[:, 0].tolist(), found.masks.planes()):
            assert (visible == 2) == bool(mask[int(y), int(x)])
            hidden += visible == 1
    assert hidden > 0


def test_crowds_are_not_pasted_and_boxes_alone_cannot_be() -> None:
    batch = coloured(masks=True)
    for one in batch.instances:
        one.crowd = torch.ones(4, dtype=torch.bool)
    assert torch.equal(Pipeline.parse("copypaste=1", SIZE)(batch, 0, 0).images, batch.images)
    with pytest.raises(SigakError, match="only boxes"):
        Pipeline.parse("copypaste=1", SIZE)(coloured(), 0, 0)


def test_joined_keeps_what_all_have_and_who_is_a_crowd() -> None:
    box, label = torch.tensor([[0.0, 0, 1, 1]]), torch.tensor([3])
    crowd = Instances(box, label, crowd=torch.tensor([True]), texts=["a"])
    whole = joined([Instances(box, label, ids=torch.tensor([7]), texts=["b"]), crowd])
    assert whole.crowd.tolist() == [False, True]
    assert whole.texts == ["b", "a"]
    assert whole.ids is None
