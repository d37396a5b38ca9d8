"""scenes: reproducible pictures whose boxes, outlines and points agree with what is painted."""

import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from sigak.data import load, scenes, summary
from sigak.structures import SigakError

SIZE = (96, 128)


def mask_of(outline: dict) -> np.ndarray:
    """(H, W) bool from COCO's uncompressed run lengths, decoded the plain way."""
    height, width = outline["size"]
    values = np.arange(len(outline["counts"])) % 2
    return np.repeat(values, outline["counts"]).reshape(width, height).T.astype(bool)


@pytest.fixture(scope="module")
def many():
    return [scenes.render(3, index, SIZE) for index in range(60)]


def test_a_picture_depends_on_seed_and_index_alone(many):
    with ThreadPoolExecutor(4) as pool:
        again = list(pool.map(lambda index: scenes.render(3, index, SIZE), reversed(range(60))))
    for (pixels, objects), (same, found) in zip(many, reversed(again)):
        assert np.array_equal(pixels, same)
        assert np.array_equal(objects.boxes, found.boxes)
        assert objects.outlines == found.outlines
    assert not np.array_equal(scenes.render(4, 0, SIZE)[0], many[0][0])
    assert len({pixels.tobytes() for pixels, _ in many}) == 60


def test_boxes_areas_and_outlines_tell_the_same(many):
    for pixels, objects in many:
        assert pixels.shape == (*SIZE, 3)
        assert pixels.dtype == np.uint8
        masks = [mask_of(outline) for outline in objects.outlines]
        assert np.sum(masks, axis=0).max() <= 1  # a pixel shows one object
        for mask, box, area in zip(masks, objects.boxes, objects.areas):
            assert mask.shape == SIZE
            ys, xs = np.nonzero(mask)
            assert box.tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
            assert area == len(xs)


def test_what_is_inside_an_outline_looks_unlike_what_is_around_it(many):
    """The pixels under the masks are what was painted: of one colour, and not that around them."""
    differences, spreads = [], []
    for pixels, objects in many:
        masks = [mask_of(outline) for outline in objects.outlines]
        background = ~np.any(masks, axis=0)
        for mask, (x1, y1, x2, y2) in zip(masks, objects.boxes.astype(int).tolist()):
            window = np.s_[max(0, y1 - 3) : y2 + 3, max(0, x1 - 3) : x2 + 3]
            inside, around = pixels[window][mask[window]], pixels[window][background[window]]
            if len(around) < 20:
                continue
            middle = np.median(inside, axis=0)
            differences.append(np.abs(middle - np.median(around, axis=0)).sum())
            spreads.append(np.median(np.abs(inside - middle).sum(axis=1)))
    assert len(differences) > 150
    assert np.percentile(differences, 5) > 60
    assert np.median(spreads) < 30


def test_points_lie_on_their_objects_and_say_whether_they_are_seen(many):
    seen = {0: 0, 1: 0, 2: 0}
    for _, objects in many:
        masks = [mask_of(outline) for outline in objects.outlines]
        for number, points in enumerate(objects.points):
            name = scenes.CLASSES[objects.labels[number]]
            for x, y, visibility in points.tolist():
                seen[int(visibility)] += 1
                if visibility == 0:
                    assert (x, y) == (0, 0)
                    continue
                assert 0 <= x < SIZE[1]
                assert 0 <= y < SIZE[0]
                if visibility == 2:
                    assert not any(mask[int(y), int(x)] for mask in masks[number + 1 :])
                    if name in ("circle", "square") and masks[number].sum() > 100:
                        assert masks[number][int(y), int(x)]
    assert min(seen.values()) > 5


def test_an_upright_object_has_its_tip_above_and_its_left_on_the_left(many):
    for _, objects in many:
        for label, points in zip(objects.labels, objects.points):
            if scenes.CLASSES[label] != "triangle" and (points[:, 2] > 0).all():
                tip, left, right = points[:, :2]
                assert tip[1] < max(left[1], right[1])
                assert left[0] < right[0]
    assert [scenes.POINTS[k] for k in scenes.SWAP] == ["tip", "right", "left"]


def test_sizes_counts_and_classes_are_spread():
    found = [scenes.render(0, index)[1] for index in range(150)]
    sides = np.concatenate([o.boxes[:, 2:] - o.boxes[:, :2] for o in found]).max(axis=1)
    assert 6 <= sides.min() < 12
    assert 100 < sides.max() <= 132  # half the picture, and an outline
    assert np.mean(sides < 24) > 0.1
    counts = [len(o) for o in found]
    assert min(counts) == 1
    assert 9 <= max(counts) <= 12
    labels = np.bincount(np.concatenate([o.labels for o in found]), minlength=10)
    assert labels.min() > 40
    hidden = np.concatenate([o.points[..., 2].ravel() for o in found]) == 1
    assert hidden.mean() > 0.02  # there is occlusion


@pytest.mark.parametrize(("seen", "counts"), [(29, 0), (30, 1)])
def test_an_object_of_which_less_than_thirty_percent_is_seen_does_not_count(seen, counts):
    placed = scenes._Placed(0, 5.0, [], np.full((3, 2), 4.0), (0, 0, 32, 32))
    owner = np.full((32, 32), 2, np.uint8)  # a later object covers everything
    owner[0, :seen] = 1  # but so many of 100 pixels
    objects = scenes._objects([scenes._Drawn(placed, 1, 100)], owner)
    assert len(objects) == counts
    if counts:
        assert objects.boxes.tolist() == [[0, 0, 30, 1]]
        assert objects.points[0].tolist() == [[4, 4, 1]] * 3  # hidden


@pytest.mark.parametrize("size", [(32, 32), (33, 200), (700, 640)])
def test_any_size_is_made(size):
    pixels, objects = scenes.render(-1, 2**40, size)
    assert pixels.shape == (*size, 3)
    assert len(objects) >= 1
    assert objects.outlines[0]["size"] == list(size)


def test_the_stream_goes_on_as_the_train_split_does():
    data = load("scenes:12@64")
    for (pixels, objects), at in zip(scenes.stream(0, (64, 64)), range(15)):
        if at < 12:
            assert np.array_equal(data.splits["train"].pixels[at], pixels)
            record = data.splits["train"].records[at]
            assert np.array_equal(record.objects.boxes, objects.boxes)
    assert len(list(itertools.islice(scenes.stream(1, (32, 32)), 3))) == 3


def test_the_set_has_three_splits_that_share_no_picture():
    data = load("scenes:8@48")
    assert data.kind == "objects"
    assert data.classes == list(scenes.CLASSES)
    assert {name: len(split) for name, split in data.splits.items()} == {
        "train": 8,
        "val": 100,
        "test": 200,
    }
    assert not data.problems  # no picture lies in two splits
    assert data.splits["val"].records[3].source == "scenes:8@48/val#3"
    assert data.splits["val"].records[3].size == (48, 48)
    assert summary(data)["height"]["max"] == 48


def test_the_held_out_pictures_do_not_depend_on_how_many_are_trained_on():
    one, other = scenes.read("scenes:3@40"), scenes.read("scenes:5@40")
    assert np.array_equal(one.splits["test"].pixels, other.splits["test"].pixels)


def test_by_night_the_same_scene_is_dark_and_noisy(many):
    for index, (pixels, objects) in enumerate(many[:20]):
        dark, same = scenes.render(3, index, SIZE, night=True)
        assert np.array_equal(dark, scenes.render(3, index, SIZE, night=True)[0])
        assert same.outlines == objects.outlines
        assert dark.mean() < 0.7 * pixels.mean() + 20
        noise = [np.abs(np.diff(p.astype(int), axis=1)).mean() / p.std() for p in (pixels, dark)]
        assert noise[1] > noise[0]


def test_the_set_by_night_shows_other_scenes():
    day, night = load("scenes:6@40"), load("scenes-night:6@40")
    assert night.classes == day.classes
    for name, split in night.splits.items():
        assert len(split) == len(day.splits[name])
        assert split.pixels.mean() < day.splits[name].pixels.mean()
        for one, other in zip(split.records, day.splits[name].records):
            assert one.source.startswith("scenes-night:6@40/")
            assert one.objects.outlines != other.objects.outlines


@pytest.mark.parametrize(
    "spec",
    [
        "scenes-night:8",
        "scenes:",
        "scenes:big",
        "scenes:0@64",
        "scenes:8",
        "scenes:1@2@3",
    ],
)
def test_names_that_are_not_understood_are_explained(spec):
    with pytest.raises(SigakError, match=r"scenes (are named|need)"):
        load(spec)


def test_a_set_too_large_for_memory_is_refused_before_it_is_made():
    with pytest.raises(SigakError, match="GiB"):
        scenes.read("scenes:100000@1024")
    with pytest.raises(SigakError, match="32 pixels"):
        scenes.render(0, 0, (16, 64))
    with pytest.raises(SigakError, match="1 to 200"):
        scenes.render(0, 0, (64, 64), most=0)
