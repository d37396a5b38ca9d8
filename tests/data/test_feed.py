"""Batches: the same whether a set is kept in memory or read as it goes, in any number of parts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sigak import data
from sigak.augment import Pipeline
from sigak.data import feed as feeds
from sigak.data.feed import Feed, Pictures
from sigak.io.image import Preparation
from sigak.structures import Batch, SigakError

SIZE = (16, 16)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for i in range(22):
        path = tmp_path / f"class{i % 2}" / f"{i:02d}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 30, 3), np.uint8)).save(path)
    return tmp_path


def pictures(root: Path, **how: object) -> Pictures:
    split = data.load(root, val=0).splits["train"]
    return Pictures(split, Preparation(SIZE), Batch.of, **how).load()  # type: ignore[arg-type]


def epoch(source: Pictures, number: int = 0, start: int = 0, **how: object) -> list[feeds.Step]:
    augment = Pipeline.parse("flip=h,rotate=10,noise=0.1", SIZE)
    feed = Feed(source, batch=8, seed=3, augment=augment, **how)  # type: ignore[arg-type]
    return list(feed.epoch(number, start))


def streaming(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave no memory for a decoded set."""
    monkeypatch.setattr(feeds, "MEMORY_SHARE", 0.0)


@pytest.mark.parametrize("reduced", [False, True])
def test_a_streamed_set_gives_the_batches_of_a_resident_one(
    root: Path, monkeypatch: pytest.MonkeyPatch, reduced: bool
) -> None:
    kept = epoch(pictures(root, reduced=reduced))
    streaming(monkeypatch)
    source = pictures(root, reduced=reduced, threads=3)
    assert source.resident is None
    for a, b in zip(kept, epoch(source), strict=True):
        assert torch.equal(a.batch.images, b.batch.images)
        assert a.batch.sources == b.batch.sources
        assert torch.equal(a.batch.matrix, b.batch.matrix)
        assert (a.own, a.total) == (b.own, b.total)


def test_an_epoch_can_begin_in_its_middle(root: Path) -> None:
    source = pictures(root)
    whole, rest = epoch(source, 5), epoch(source, 5, start=1)
    assert [s.number for s in rest] == [1, 2]
    assert torch.equal(whole[2].batch.images, rest[1].batch.images)


def test_epochs_differ_and_repeat(root: Path) -> None:
    source = pictures(root)
    first, second, again = epoch(source, 1), epoch(source, 2), epoch(source, 1)
    assert first[0].batch.sources != second[0].batch.sources
    assert torch.equal(first[0].batch.images, again[0].batch.images)


@pytest.mark.parametrize("world", [2, 4])
def test_processes_share_every_batch(root: Path, world: int) -> None:
    source = pictures(root)
    whole = epoch(source)
    shares = [epoch(source, share=(rank, world)) for rank in range(world)]
    for number, step in enumerate(whole):
        parts = [share[number] for share in shares]
        assert sum(part.own for part in parts) == step.total == step.own
        own = torch.cat([part.batch.images[: part.own] for part in parts])
        assert torch.equal(own, step.batch.images)


def test_a_picture_that_breaks_while_streaming_is_left_out_and_named_once(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    streaming(monkeypatch)
    source = pictures(root)
    victim = Path(source.split.records[3].source)
    victim.write_bytes(victim.read_bytes()[:200])
    for number in (0, 1):
        steps = epoch(source, number)
        assert sum(step.own for step in steps) == 21
        assert all(step.own == len(step.batch) == step.total for step in steps)
        parts = [n for step in steps for _, n in step.parts(3)]
        assert sum(parts) == 21
    assert [p.source for p in source.problems] == [str(victim)]


def test_unreadable_pictures_are_dropped_or_refused(root: Path) -> None:
    split = data.load(root, val=0).splits["train"]
    victim = Path(split.records[3].source)
    victim.write_bytes(victim.read_bytes()[:200])
    source = Pictures(split, Preparation(SIZE), Batch.of).load()
    assert len(source) == 21
    assert [p.source for p in source.problems] == [str(victim)]
    with pytest.raises(SigakError, match="1 pictures cannot be read"):
        Pictures(split, Preparation(SIZE), Batch.of).load(strict=True)


def test_a_batch_that_processes_cannot_share_evenly_is_refused(root: Path) -> None:
    with pytest.raises(SigakError, match="cannot be shared evenly by 3"):
        Feed(pictures(root), batch=8, seed=0, share=(0, 3))


def test_a_sample_is_spread_over_the_split(root: Path) -> None:
    source = pictures(root)
    assert source.sampled(4).indices.tolist() == [0, 7, 14, 21]
    assert len(source.sampled(1000)) == 22


def test_statistics_are_those_of_the_pixels(root: Path) -> None:
    source = pictures(root)
    mean, std = source.statistics()
    assert source.resident is not None
    values = source.resident.images.double() / 255
    assert mean == pytest.approx(values.mean((0, 2, 3)).tolist(), rel=1e-9)
    assert std == pytest.approx(values.std((0, 2, 3), unbiased=False).tolist(), rel=1e-9)


def test_an_error_in_the_preparing_thread_reaches_the_caller(root: Path) -> None:
    source = pictures(root)

    def broken(batch: Batch, seed: int, epoch: int) -> Batch:
        raise RuntimeError("broken augmentation")

    feed = Feed(source, batch=8, seed=0, augment=broken)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="broken augmentation"):
        list(feed.epoch(0))
