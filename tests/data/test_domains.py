"""A second domain: what is taken of it, what is not, and which pictures a batch gets."""

import numpy as np
import pytest
import torch

from sigak import data
from sigak.data import Dataset, Record, Split, domains
from sigak.data.feed import Feed, Pictures
from sigak.io import image, index_map
from sigak.io.image import Preparation
from sigak.structures import Batch, Sample, SigakError

NEEDS = ("class_map",)


def painted(root, count=4, classes="ground\ncat\ndog\n", splits=("train", "val"), size=(32, 40)):
    """A set of gray pictures with maps in which the values 0, 1 and 2 stand in columns."""
    for split in splits:
        for i in range(count):
            values = (np.arange(size[1])[None] + np.zeros((size[0], 1), int) + i) % 3
            tones = (60 * values + i).astype(np.uint8)[..., None]
            image.save(root / f"{split}/images/{i}.png", tones.repeat(3, 2))
            index_map.save(root / f"{split}/masks/{i}.png", values.astype(np.uint8),
                           [(0, 0, 0), (9, 0, 0), (0, 9, 0)])  # fmt: skip
    (root / "classes.txt").write_text(classes, encoding="utf-8")
    return root


def loaded(root, **how):
    return data.provide(data.load(root, needs=NEEDS, **how), NEEDS)


@pytest.fixture
def source(tmp_path):
    return loaded(painted(tmp_path / "day"))


# ------------------------------------------------------------------ what is taken


def test_a_target_with_truth_is_learnt_without_it_and_measured_with_it(source, tmp_path):
    night = domains.read(painted(tmp_path / "night", 3, "ground\ndog\ncat\n"), NEEDS)
    both = domains.joined(source, night)
    assert both.name == "day-to-night"
    assert {name: len(split) for name, split in both.splits.items()} == {
        "train": 4,
        "target": 3,
        "val": 3,
    }
    assert both.kind == "class_map"
    assert all(r.class_map is None and r.label == -1 for r in both.splits["target"].records)
    assert both.splits["train"] is source.splits["train"]
    # The maps of the target name their classes in another order.
    theirs = night.splits["val"].records[0].class_map.read()
    ours = both.splits["val"].records[0].class_map.read()
    assert ours.tolist() == np.array([0, 2, 1])[theirs].tolist()


def test_pictures_alone_leave_the_measuring_to_the_source(source, tmp_path):
    for name in ("a.png", "deep/b.png", ".hidden/c.png"):
        image.save(tmp_path / "wild" / name, np.zeros((9, 8, 1), np.uint8))
    both = domains.joined(source, domains.read(tmp_path / "wild", NEEDS))
    assert len(both.splits["target"]) == 2
    assert both.splits["val"] is source.splits["val"]
    assert both.classes == source.classes
    assert data.digest(both) != data.digest(source)


def test_other_kinds_of_truth_are_left_out(source):
    """Digits have a label each, scenes outlines with other classes."""
    both = domains.joined(source, domains.read("digits", NEEDS))
    assert both.splits["val"] is source.splits["val"]
    assert {r.label for r in both.splits["target"].records} == {-1}
    with pytest.raises(SigakError, match=r"classes that day has not: background, circle.*alone"):
        domains.joined(source, domains.read("scenes:4@32", NEEDS))


def test_scenes_by_night_are_measured_by_night():
    day, night = (loaded(f"scenes{word}:4@32") for word in ("", "-night"))
    both = domains.joined(day, domains.read("scenes-night:4@32", NEEDS))
    assert both.name == "scenes:4@32-to-scenes-night:4@32"
    assert np.array_equal(both.splits["test"].pixels, night.splits["test"].pixels)
    assert np.array_equal(both.splits["train"].pixels, day.splits["train"].pixels)
    assert not np.array_equal(both.splits["target"].pixels, day.splits["train"].pixels)


def test_targets_that_cannot_be_used_are_told(source, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SigakError, match="no picture found"):
        domains.read(tmp_path / "empty", NEEDS)
    with pytest.raises(SigakError, match="does not exist"):
        domains.read(tmp_path / "nowhere", NEEDS)
    held = Dataset("late", ["x"], {"test": Split("test", [Record("a.png")])})
    with pytest.raises(SigakError, match="expects pictures to learn from, but late has only"):
        domains.joined(source, held)


# ------------------------------------------------------------------ which pictures come


def toned(count, first=0, size=(4, 4)):
    """Pictures whose tone is their number."""
    records = [Record(f"#{i}") for i in range(count)]
    tones = np.arange(first, first + count, dtype=np.uint8)[:, None, None, None]
    split = Split("train", records, np.broadcast_to(tones, (count, *size, 3)).copy())
    return Pictures(split, Preparation(size), Batch.of).load()


def shown(steps):
    """The tones of the targets in the order in which they come."""
    return [tone for step in steps for tone in step.batch.targets[:, 0, 0, 0].tolist()]


def test_each_target_comes_once_before_any_comes_again():
    feed = Feed(toned(23), batch=4, seed=5, targets=toned(8, 100))
    steps = list(feed.epoch(1))
    assert [len(s.batch) for s in steps] == [len(s.batch.targets) for s in steps]
    every = shown(steps)
    assert [sorted(every[i : i + 8]) for i in (0, 8)] == [list(range(100, 108))] * 2
    assert len(set(every[16:])) == 7
    assert every[:8] != every[8:16]
    assert shown(feed.epoch(1)) == every
    assert shown(feed.epoch(1, 3)) == every[12:]
    assert shown(feed.epoch(2)) != every
    few = Feed(toned(8), batch=4, seed=5, targets=toned(30, 100))
    assert len(set(shown(few.epoch(1)) + shown(few.epoch(2)))) > 8


def test_targets_do_not_go_in_step_with_their_sources():
    steps = Feed(toned(16), batch=16, seed=0, targets=toned(16)).epoch(1)
    [step] = list(steps)
    assert step.batch.indices.tolist() != step.batch.targets[:, 0, 0, 0].tolist()


def test_processes_share_the_targets_as_they_share_the_sources():
    one = list(Feed(toned(18), batch=8, seed=2, targets=toned(7, 100)).epoch(3))
    parts = [
        list(Feed(toned(18), batch=8, seed=2, share=(r, 4), targets=toned(7, 100)).epoch(3))
        for r in range(4)
    ]
    for number, whole in enumerate(one):
        mine = [part[number] for part in parts]
        assert all(len(step.batch) == len(step.batch.targets) for step in mine)
        together = torch.cat([step.batch.targets[: step.own] for step in mine])
        assert torch.equal(together, whole.batch.targets)


def test_unreadable_targets_are_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr("sigak.data.feed.MEMORY_SHARE", 0.0)
    names = [str(tmp_path / f"{i}.png") for i in range(4)]
    for i, name in enumerate(names):
        image.save(name, np.full((4, 4, 3), 100 + i, np.uint8))
    (tmp_path / "2.png").write_bytes(b"torn")
    split = Split("target", [Record(name) for name in names])
    targets = Pictures(split, Preparation((4, 4)), Batch.of).load()
    [step] = list(Feed(toned(4), batch=4, seed=0, targets=targets).epoch(0))
    tones = step.batch.targets[:, 0, 0, 0].tolist()
    assert len(tones) == 4
    assert set(tones) == {100, 101, 103}


def test_targets_become_floats_with_the_pictures():
    batch = Batch.of([Sample(np.zeros((4, 4, 3), np.uint8))])
    batch.targets = torch.full((1, 3, 4, 4), 51, dtype=torch.uint8)
    moved = batch.floating()
    assert moved.targets[0, 0, 0, 0].item() == pytest.approx(0.2)
    assert moved.floating().targets is moved.targets
