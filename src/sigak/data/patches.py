"""Volumes for the network: patches cut at random to learn from, whole ones to answer for.

A patch is a function of (seed, epoch, place in the split): neither threads nor a restart change it.
"""

from __future__ import annotations

import math
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from sigak.augment.draws import Draws
from sigak.data import Record, Split
from sigak.data.feed import MEMORY_SHARE, Pictures, Progress
from sigak.data.volumes import Shape
from sigak.io import image, volumes
from sigak.structures import IGNORE, Batch, Sample, SigakError

__all__ = ["Volumes", "fitted"]

_AIMED = 0.5  # share of the patches whose middle is a voxel of some class but the first
_MARKS = 10_000  # voxels of a class that such a patch chooses from
_MULTIPLE = 8  # sides of patches: what networks with four levels take


def fitted(preparation: image.Preparation, split: Split) -> image.Preparation:
    """The preparation with patches no larger than fill the largest volume of `split`, so that flat
    volumes are not learnt from patches that are mostly padding.
    """
    shapes = np.array([_shape(record) for record in split.records])
    most = -(-shapes.max(0) // _MULTIPLE) * _MULTIPLE
    wanted = (preparation.depth, *preparation.size)
    depth, height, width = np.minimum(wanted, most).tolist()
    return replace(preparation, depth=depth, size=(height, width))


def _shape(record: Record) -> Shape:
    height, width = record.size or (0, 0)
    return record.depth, height, width


class Volumes(Pictures):
    """One split of volumes. To learn from (`reduced`) an epoch cuts as many patches from each as it
    takes to fill it, half of them around a voxel of some class but the first; to answer for, the
    volumes are whole.

    They are kept in memory where they fit; those to learn from are kept on disk otherwise, in a
    temporary folder, so that a patch takes no more than its own part is read.
    """

    def __init__(self, *given: Any, **how: Any) -> None:
        super().__init__(*given, **how)
        self.window: Shape = (self.preparation.depth, *self.preparation.size)
        self.held: dict[int, Sample] = {}
        self.marks: dict[int, list[np.ndarray]] = {}
        self.spool: Path | None = None
        self._own()

    def _own(self) -> None:
        """Which volume each position of an epoch is of."""
        times = [self._patches(self.split.records[i]) for i in self.places]
        self.owners = np.repeat(self.places, times)

    def _patches(self, record: Record) -> int:
        if not self.reduced:
            return 1
        return math.ceil(math.prod(_shape(record)) / math.prod(self.window))

    def __len__(self) -> int:
        return len(self.owners)

    @property
    def fits(self) -> bool:
        """Whether the prepared split takes no more than its share of free memory."""
        voxels = sum(math.prod(_shape(record)) for record in self.split.records)
        return 5 * voxels <= MEMORY_SHARE * psutil.virtual_memory().available  # floats and classes

    def load(self, progress: Progress | None = None, *, strict: bool = False) -> Volumes:
        """Read everything now if it is learnt from or fits in memory; see `Pictures.load`."""
        if self.held or not (self.reduced or self.fits):
            return self
        if not self.fits:
            self.spool = Path(tempfile.mkdtemp(prefix="sigak-volumes-"))
            weakref.finalize(self, shutil.rmtree, self.spool, ignore_errors=True)
        for index in range(len(self.split)):
            sample = self._sample(index)
            if sample is not None:
                self.held[index] = self._spooled(sample)
            if progress:
                progress(index)
        self._refuse_unreadable(len(self.held), strict)
        self.places = np.array(list(self.held))
        self._own()
        return self

    def _spooled(self, sample: Sample) -> Sample:
        if self.spool is None:
            return sample
        kept = {}
        for name in ("image", "class_map"):
            path = self.spool / f"{sample.index}-{name}.npy"
            np.save(path, getattr(sample, name))
            kept[name] = np.load(path, mmap_mode="r")
        return replace(sample, **kept, truth_map=None)

    def batch(self, positions: np.ndarray, key: tuple[int, int] = (0, 0)) -> Batch:
        """The patches at `positions` (0 .. len - 1), as (seed, epoch) cuts them, as one batch."""
        draws = Draws(*key, positions)
        aims = self._drawn(draws)
        patches = [
            self._patch(int(position), {name: float(value[i]) for name, value in aims.items()})
            for i, position in enumerate(positions)
        ]
        return self.collate(patches).to(self.device)

    def batches(self, positions: np.ndarray) -> Iterator[Batch]:
        """The volumes at `positions`, whole, one a batch."""
        lost: list[int] = []
        for index in self.owners[positions].tolist():
            sample = self.held.get(index) or self._sample(index)
            if sample is None:
                lost.append(index)
            else:
                yield self.collate([sample]).to(self.device)
        if len(lost) == len(positions):
            raise SigakError(f"none of {len(lost)} volumes could be read: {self.problems[-1]}")

    def statistics(self, most: int = 10_000) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and spread of the voxels, in [0, 1] units, over all volumes."""
        sums = squares = count = 0.0
        for sample in self.held.values():
            sums += float(sample.image.sum(dtype=np.float64))
            squares += float(np.square(sample.image, dtype=np.float64).sum())
            count += sample.image.size
        mean = sums / count
        return (mean,), (math.sqrt(max(squares / count - mean**2, 1e-12)),)

    # ------------------------------------------------------------------ one volume

    def _read(self, index: int) -> Sample:
        record = self.split.records[index]
        decoded = None if self.split.pixels is None else self.split.pixels[index][..., 0]
        source = record.source if decoded is None else decoded
        voxels, matrix, size = volumes.load(source, self.preparation)
        sample = Sample(voxels, record.source, index, matrix=matrix, size=size)
        sample.origin = record.source if decoded is None else None
        if record.class_map is not None:
            sample.class_map = record.class_map.read()
            sample.truth_map = lambda labels=sample.class_map: labels
        return sample

    # ------------------------------------------------------------------ one patch

    @staticmethod
    def _drawn(draws: Draws) -> dict[str, np.ndarray]:
        return {name: draws.uniform(name) for name in ("aim", "class", "voxel", "d", "h", "w")}

    def _patch(self, position: int, drawn: dict[str, float]) -> Sample:
        whole = self.held[int(self.owners[position])]
        shape, room = whole.image.shape[:3], []
        for side, wanted in zip(shape, self.window):
            room.append(max(0, side - wanted))
        starts = [int(drawn[axis] * (free + 1)) for axis, free in zip("dhw", room)]
        marks = self._marks(whole)
        if marks and drawn["aim"] < _AIMED:
            chosen = marks[int(drawn["class"] * len(marks))]
            voxel = np.unravel_index(chosen[int(drawn["voxel"] * len(chosen))], shape)
            middles = [int(at) - wanted // 2 for at, wanted in zip(voxel, self.window)]
            starts = [min(max(0, at), free) for at, free in zip(middles, room)]
        place = tuple(slice(at, at + wanted) for at, wanted in zip(starts, self.window))
        voxels = np.asarray(whole.image[place])
        beside = [(0, wanted - side) for wanted, side in zip(self.window, voxels.shape)]
        labels = None
        if whole.class_map is not None:
            labels = np.pad(whole.class_map[place], beside, constant_values=IGNORE)
        voxels = np.pad(voxels, [*beside, (0, 0)], mode="edge")
        return replace(
            whole, image=voxels, class_map=labels, index=position, truth_map=None, size=(0, 0)
        )

    def _marks(self, sample: Sample) -> list[np.ndarray]:
        """Places of voxels of each class but the first, for the classes that occur."""
        if sample.class_map is None:
            return []
        if sample.index not in self.marks:
            flat = np.asarray(sample.class_map).reshape(-1)
            found = [np.flatnonzero(flat == k) for k in np.unique(flat) if k not in (0, IGNORE)]
            self.marks[sample.index] = [m[:: -(-len(m) // _MARKS)] for m in found]
        return self.marks[sample.index]
