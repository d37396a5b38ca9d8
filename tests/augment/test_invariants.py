"""What must hold for every augmentation: the picture, its matrix and everything marked on it stay
together.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sigak.augment import PRESETS, Draws, Pipeline, Plan, preview
from sigak.augment import pipeline as engine_room
from sigak.augment.geometry import move_instances
from sigak.structures import IGNORE, Batch, Instances, SigakError

GEOMETRY = [
    "flip=h", "flip=v", "flip=both", "flip=alternate", "rotate=30", "shift=0.2", "shift=0.1/0.3",
    "zoom=0.3", "zoom=0.3/0.1", "shear=15", "perspective=0.3", "crop=5", "rrc=0.5",
    "flip=both,rotate=20,shift=0.1,zoom=0.2,shear=10",
]  # fmt: skip
PHOTO = ["brightness=0.5", "contrast=0.5", "saturation=1", "hue=0.2", "noise=0.1", "cutout=9"]
SIZE = (48, 64)


def batch_of(images: np.ndarray, indices: list[int] | None = None, **fields) -> Batch:
    count, height, width = images.shape[:3]
    return Batch(
        images=torch.from_numpy(images).permute(0, 3, 1, 2),
        indices=torch.tensor(indices or list(range(count))),
        matrix=torch.eye(3, dtype=torch.float64).repeat(count, 1, 1),
        sizes=[(height, width)] * count,
        sources=[""] * count,
        **fields,
    )


def pictures(count: int = 6, channels: int = 3, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Soft waves over the whole range, a different picture for each sample."""
    y, x = np.mgrid[0 : size[0], 0 : size[1]]
    waves = [
        127.5 + 127.5 * np.sin(x / (8 + c) + i) * np.cos(y / (7 + c) - 2 * i)
        for i in range(count)
        for c in range(channels)
    ]
    stacked = np.stack(waves, -1).reshape(*size, count, channels).transpose(2, 0, 1, 3)
    return np.ascontiguousarray(np.round(stacked)).astype(np.uint8)


def plan_of(pipeline: Pipeline, batch: Batch, seed: int = 0, epoch: int = 0) -> Plan:
    return pipeline.plan(batch, Draws(seed, epoch, batch.indices.numpy()))


# --- paint a thing, warp, and find it where its box, mask or point says


def extent(painted: np.ndarray) -> tuple[float, ...]:
    """x1, y1, x2, y2 of an anti-aliased painting (H, W) of 0..255: where its rows and columns are
    half covered.
    """
    sides = []
    for axis in (0, 1):
        profile = painted.max(axis=axis) / 255.0
        lit = np.flatnonzero(profile > 0.5)
        sides.append((lit[0], lit[-1] + 1))
    (x1, x2), (y1, y2) = sides
    return x1, y1, x2, y2


@pytest.mark.parametrize("spec", ["flip=both", "shift=0.1", "zoom=0.3", "zoom=0.2/0.3", "crop=5"])
@pytest.mark.parametrize("floating", [False, True])
def test_the_painted_box_is_where_the_box_is(spec: str, floating: bool) -> None:
    """Without rotation the hull is the box itself, so picture and numbers must agree to less than a
    pixel.
    """
    images = np.zeros((8, *SIZE, 3), np.uint8)
    images[:, 18:30, 20:44] = 255
    box = torch.tensor([[20.0, 18.0, 44.0, 30.0]])
    batch = batch_of(images, instances=[Instances(box, torch.tensor([3]))] * 8)
    batch = batch.floating() if floating else batch
    changed = Pipeline.parse(f"{spec},fill=constant", SIZE)(batch, 0, 0)
    painted = changed.images.float().mul(255 if floating else 1).numpy()[:, 0]
    for picture, found in zip(painted, changed.instances or []):
        assert np.abs(np.array(extent(picture)) - found.boxes[0].numpy()).max() < 1.0


def test_alternate_mirrors_show_every_picture_both_ways_in_two_epochs() -> None:
    batch = batch_of(np.zeros((400, 4, 4, 1), np.uint8))
    pipeline = Pipeline.parse("flip=alternate", (4, 4))

    def mirrored(seed: int, epoch: int) -> np.ndarray:
        return plan_of(pipeline, batch, seed, epoch).matrices[:, 0, 0] < 0

    first = mirrored(0, 1)
    assert 150 < first.sum() < 250
    assert (mirrored(0, 2) == ~first).all()
    assert (mirrored(0, 7) == first).all()
    assert 150 < (mirrored(1, 1) == first).sum() < 250


@pytest.mark.parametrize("spec", GEOMETRY)
@pytest.mark.parametrize("floating", [False, True])
def test_a_painted_spot_is_where_the_point_is(spec: str, floating: bool) -> None:
    images = np.zeros((16, *SIZE, 3), np.uint8)
    images[:, 19:22, 39:42] = 255  # its centre is (40.5, 20.5)
    spot = Instances(
        torch.tensor([[0.0, 0.0, 64.0, 48.0]]), torch.tensor([0]),
        points=torch.tensor([[[40.5, 20.5, 2.0]]]),
    )  # fmt: skip
    batch = batch_of(images, instances=[spot] * 16)
    batch = batch.floating() if floating else batch
    changed = Pipeline.parse(f"{spec},fill=constant", SIZE)(batch, 0, 0)
    y, x = np.mgrid[0 : SIZE[0], 0 : SIZE[1]] + 0.5
    checked = 0
    for picture, found in zip(changed.images.float().numpy()[:, 0], changed.instances or []):
        place = found.points[0, 0].numpy()
        inside = (place[:2] > 3).all() and place[0] < SIZE[1] - 3 and place[1] < SIZE[0] - 3
        if not inside:
            continue
        centre = np.array([(x * picture).sum(), (y * picture).sum()]) / picture.sum()
        assert np.abs(centre - place[:2]).max() < 0.5
        checked += 1
    assert checked >= 4


@pytest.mark.parametrize("spec", GEOMETRY)
def test_masks_class_maps_and_boxes_move_with_the_picture(spec: str) -> None:
    images = np.zeros((6, *SIZE, 1), np.uint8)
    images[:, 10:38, 16:50] = 255
    mask = torch.from_numpy(images[0, :, :, 0] > 0)[None]
    one = Instances(torch.tensor([[16.0, 10.0, 50.0, 38.0]]), torch.tensor([1]), masks=mask)
    maps = torch.from_numpy(images[..., 0] // 255)
    batch = batch_of(images, instances=[one] * 6, class_maps=maps)
    changed = Pipeline.parse(f"{spec},fill=constant", SIZE)(batch, 0, 0)
    for i, found in enumerate(changed.instances or []):
        painted = changed.images[i, 0] > 127
        disagree = (painted ^ found.masks.planes()[0]).float().sum() / painted.sum()
        assert disagree < 0.06  # only along the edge
        known = changed.class_maps[i] != IGNORE
        assert set(changed.class_maps[i].unique().tolist()) <= {0, 1, IGNORE}
        assert ((changed.class_maps[i] == 1) ^ painted)[known].float().mean() < 0.03
        x1, y1, x2, y2 = found.boxes[0].tolist()
        ys, xs = np.nonzero(painted.numpy())
        assert x1 - 1 < xs.min()
        assert xs.max() + 1 < x2 + 1
        assert y1 - 1 < ys.min()
        assert ys.max() + 1 < y2 + 1


def test_the_batch_matrix_maps_file_to_canvas() -> None:
    batch = batch_of(pictures(4))
    batch.matrix = torch.diag(torch.tensor([0.5, 0.25, 1.0]).double()).repeat(4, 1, 1)
    pipeline = Pipeline.parse("flip=h,rotate=20,perspective=0.2", SIZE)
    changed = pipeline(batch, 0, 0)
    expected = torch.from_numpy(plan_of(pipeline, batch).matrices) @ batch.matrix
    assert torch.equal(changed.matrix, expected)
    assert changed.matrix.dtype == torch.float64


# --- vanishing, mirrors, names


def everything(boxes: list[list[float]]) -> Instances:
    count = len(boxes)
    return Instances(
        boxes=torch.tensor(boxes).reshape(-1, 4),
        labels=torch.arange(count),
        scores=torch.linspace(0, 1, count),
        masks=torch.ones(count, *SIZE, dtype=torch.bool),
        points=torch.ones(count, 2, 3),
        texts=[f"object {i}" for i in range(count)],
        ids=torch.arange(count) + 100,
    )


def test_vanished_objects_go_with_all_their_fields() -> None:
    away = np.array([[1.0, 0, 40], [0, 1, 0], [0, 0, 1]])
    objects = everything([[30, 5, 40, 15], [0, 0, 10, 10], [15, 0, 35, 20], [23.5, 0, 33.5, 9]])
    moved = move_instances(objects, away, SIZE)
    # The first is gone; the last keeps 5 % of itself, less than KEEP_SHARE.
    assert moved.labels.tolist() == [1, 2]
    assert moved.texts == ["object 1", "object 2"]
    assert moved.ids.tolist() == [101, 102]
    assert moved.boxes.tolist() == [[40, 0, 50, 10], [55, 0, 64, 20]]
    assert moved.masks.planes().shape == (2, *SIZE)
    assert len(move_instances(objects, np.diag([1.0, 1.0, 1.0]) + 0, SIZE)) == 4


def test_double_mirror_is_identity_with_names() -> None:
    mirror = np.array([[-1.0, 0, SIZE[1]], [0, 1, 0], [0, 0, 1]])
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(2, 3, 3, generator=generator) * 40
    points[..., 2] = torch.tensor([2.0, 1.0, 0.0])
    masks = torch.rand(2, *SIZE, generator=generator) > 0.5
    boxes = torch.tensor([[1.0, 2, 30, 40], [10, 10, 20, 20]])
    before = Instances(boxes, torch.tensor([0, 1]), points=points, masks=masks)
    once = move_instances(before, mirror, SIZE, swap=(1, 0, 2))
    assert torch.allclose(once.points[:, 0, 0], SIZE[1] - points[:, 1, 0])
    twice = move_instances(once, mirror, SIZE, swap=(1, 0, 2))
    assert torch.equal(twice.boxes, boxes)
    assert torch.equal(twice.masks.planes(), masks)
    assert torch.allclose(twice.points, points, atol=1e-5)
    unnamed = move_instances(before, mirror, SIZE)
    assert torch.allclose(unnamed.points[:, 0, 0], SIZE[1] - points[:, 0, 0])


def test_pictures_without_objects_stay_without() -> None:
    batch = batch_of(pictures(2), instances=[everything([]), everything([])])
    assert [len(i) for i in Pipeline.parse("medium", SIZE)(batch, 0, 0).instances or []] == [0, 0]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(GEOMETRY))
def test_every_drawn_matrix_can_be_undone(seed: int, spec: str) -> None:
    batch = batch_of(np.zeros((4, *SIZE, 1), np.uint8))
    matrices = plan_of(Pipeline.parse(spec, SIZE), batch, seed).matrices
    assert np.allclose(matrices @ np.linalg.inv(matrices), np.eye(3), atol=1e-9)
    corners = np.array([[0, 64, 0, 64], [0, 0, 48, 48], [1, 1, 1, 1.0]])
    assert ((matrices @ corners)[:, 2] > 0).all()  # the whole picture stays before the eye


# --- the same sample, the same picture


@pytest.mark.parametrize("spec", [*GEOMETRY, *PHOTO, "strong,mixup=0,cutmix=0"])
def test_a_sample_looks_the_same_in_any_batch(spec: str) -> None:
    images = pictures(6)
    pipeline = Pipeline.parse(spec, SIZE)
    together = pipeline(batch_of(images), 7, 3).images
    order = [4, 1, 5]
    again = pipeline(batch_of(images[order], order), 7, 3).images
    assert torch.equal(again, together[order])
    assert torch.equal(replace(pipeline, threads=3)(batch_of(images), 7, 3).images, together)


def test_threads_share_large_pictures_without_a_trace() -> None:
    size = (128, 96)
    images = pictures(5, size=size)
    one, three = (
        Pipeline.parse("medium,noise=0.1", size, threads=n)(batch_of(images), 0, 0).images
        for n in (1, 3)
    )
    assert torch.equal(one, three)


@pytest.mark.parametrize("spec", [*GEOMETRY, *PHOTO])
def test_epochs_and_seeds_differ(spec: str) -> None:
    batch = batch_of(pictures(6))
    pipeline = Pipeline.parse(spec, SIZE)
    first = pipeline(batch, 0, 0).images
    assert not torch.equal(first, batch.images)
    assert not torch.equal(first, pipeline(batch, 0, 1).images)
    assert not torch.equal(first, pipeline(batch, 1, 0).images)


def test_nothing_chosen_gives_the_batch_back_and_the_input_is_never_written_to() -> None:
    images = pictures(6)
    batch = batch_of(images)
    assert Pipeline.parse("none", SIZE)(batch, 0, 0) is batch
    for words in ("strong", "flip=h,cutout=9,noise=0.2", "mixup=1"):
        for given_batch in (batch, batch.floating()):
            before = given_batch.images.clone()
            Pipeline.parse(words, SIZE)(given_batch, 0, 0)
            assert torch.equal(given_batch.images, before)


# --- pixels


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("spec", [*GEOMETRY, *PHOTO, *PRESETS, "strong,fill=constant", "rrc=0.08"])
def test_both_engines_carry_out_the_same_plan(spec: str, channels: int) -> None:
    batch = batch_of(pictures(6, channels))
    plan = plan_of(Pipeline.parse(spec, SIZE), batch)
    cpu = engine_room.images_on_cpu(batch.images, plan)
    device = engine_room.images_on_device(batch.images, plan)
    assert cpu.shape == device.shape
    assert cpu.dtype == device.dtype == torch.uint8
    for result in (cpu, device):
        assert result.is_contiguous(memory_format=torch.channels_last)
    difference = (cpu.int() - device.int()).abs().float()
    assert difference.mean() < 1.0
    assert difference.flatten().kthvalue(int(0.99 * difference.numel())).values <= 5


@pytest.mark.parametrize("spec", [*PHOTO, *PRESETS, "brightness=1,contrast=1,noise=1,hue=0.5"])
@pytest.mark.parametrize("kind", [torch.float32, torch.float16])
def test_floats_stay_in_range_and_show_the_same(spec: str, kind: torch.dtype) -> None:
    batch = batch_of(pictures(4))
    pipeline = Pipeline.parse(spec, SIZE)
    as_bytes = pipeline(batch, 0, 0).images
    floats = pipeline(replace(batch, images=batch.floating().images.to(kind)), 0, 0).images
    assert floats.dtype == kind
    assert floats.min() >= 0
    assert floats.max() <= 1
    assert (floats.float() * 255 - as_bytes.float()).abs().mean() < 1.2


def test_values_saturate_and_do_not_wrap() -> None:
    white, black = np.full((8, *SIZE, 3), 250, np.uint8), np.full((8, *SIZE, 3), 5, np.uint8)
    pipeline = Pipeline.parse("noise=0.1", SIZE)
    assert pipeline(batch_of(white), 0, 0).images.float().mean() > 235
    assert pipeline(batch_of(black), 0, 0).images.float().mean() < 20
    bright = Pipeline.parse("brightness=1", SIZE)(batch_of(white), 0, 0).images
    assert bright.max() == 255


def test_noise_has_its_spread_and_differs_from_picture_to_picture() -> None:
    gray = np.full((4, *SIZE, 3), 128, np.uint8)
    noise = Pipeline.parse("noise=0.05", SIZE)(batch_of(gray), 0, 0).images.float().numpy() - 128
    assert noise.std() == pytest.approx(0.05 * 255, rel=0.03)
    assert abs(noise.mean()) < 0.5
    flat = np.corrcoef(noise.reshape(4, -1))
    assert np.abs(flat - np.eye(4)).max() < 0.05
    channels = np.corrcoef(noise.transpose(1, 0, 2, 3).reshape(3, -1))
    assert np.abs(channels - np.eye(3)).max() < 0.05


def test_colour_changes_do_what_they_say() -> None:
    gray = np.full((16, *SIZE, 3), 100, np.uint8)
    for spec in ("saturation=1", "hue=0.5"):
        assert (
            Pipeline.parse(spec, SIZE)(batch_of(gray), 0, 0).images.int() - 100
        ).abs().max() <= 1
    middle = np.full((16, *SIZE, 1), 127, np.uint8)
    contrast = Pipeline.parse("contrast=0.9", SIZE)(batch_of(middle), 0, 0).images
    assert (contrast.int() - 127).abs().max() <= 1
    bright = Pipeline.parse("brightness=0.5", SIZE)(batch_of(gray), 0, 0).images[:, 0, 0, 0]
    assert bright.min() >= 49
    assert bright.max() <= 151
    assert bright.float().std() > 10


def test_alpha_keeps_out_of_colour_and_noise() -> None:
    images = pictures(3, 4)
    spec = "brightness=0.5,hue=0.3,noise=0.2,cutout=20"
    for batch in (batch_of(images), batch_of(images).floating()):
        changed = Pipeline.parse(spec, SIZE)(batch, 0, 0).images
        assert torch.equal(changed[:, 3], batch.images[:, 3])


def test_cutout_blanks_one_square() -> None:
    white = np.full((32, *SIZE, 3), 255, np.uint8)
    blank = Pipeline.parse("cutout=8", SIZE)(batch_of(white), 0, 0).images[:, 0] == 128
    sizes = blank.flatten(1).sum(1)
    assert sizes.max() == 64
    assert sizes.min() >= 16  # a corner of the square at the least


def test_another_canvas_is_stretched_on_the_way() -> None:
    batch = batch_of(pictures(2, size=(96, 128)))
    changed = Pipeline.parse("none", SIZE)(batch, 0, 0)
    assert changed.images.shape == (2, 3, *SIZE)
    assert changed.matrix[0].diag().tolist() == [0.5, 0.5, 1]


@pytest.mark.parametrize("factor", [1, 2])
def test_paired_pictures_follow_at_their_own_size(factor: int) -> None:
    """A target twice as large (super-resolution) must show the same view, twice as large."""
    images = pictures(4)
    targets = torch.from_numpy(images).permute(0, 3, 1, 2)
    targets = targets.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    batch = batch_of(images, targets=targets)
    changed = Pipeline.parse("flip=h,rotate=20,noise=0.1,shift=0.1", SIZE)(batch, 0, 0)
    clean = Pipeline.parse("flip=h,rotate=20,shift=0.1", SIZE)(batch, 0, 0).images.float()
    view = torch.nn.functional.avg_pool2d(changed.targets.float(), factor)
    assert changed.targets.dtype == torch.uint8
    assert (view - clean).abs().mean() < 2.0


# --- a look at it


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_preview_shows_the_original_and_seven_epochs(channels: int) -> None:
    images = pictures(3, channels)
    grid = preview(images, Pipeline.parse("strong", SIZE), rows=2, seed=0)
    height, width = SIZE[0] + 2, SIZE[1] + 2
    assert grid.shape == (2 * height, 8 * width, 3)
    assert grid.dtype == np.uint8
    first = grid[1 : 1 + SIZE[0], 1 : 1 + SIZE[1]]
    assert (first == images[0, ..., : 3 if channels > 1 else 1]).all()
    cells = [grid[:height, i * width : (i + 1) * width] for i in range(8)]
    assert len({cell.tobytes() for cell in cells}) == 8


@pytest.mark.parametrize("bad", [np.zeros((0, 4, 4, 3), np.uint8), np.zeros((4, 4, 3), np.uint8)])
def test_preview_needs_pictures(bad: np.ndarray) -> None:
    with pytest.raises(SigakError, match="at least one row"):
        preview(bad, Pipeline.parse("none", (4, 4)), 2, 0)
