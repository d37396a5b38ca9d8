"""From records to batches: decode once, keep what fits, deliver in a fixed order.

`Pictures` holds one split at the network's size: in memory when it fits (on the GPU too), else
decoded by threads as it is needed. `Feed` cuts it into batches. The order of an epoch is a function
of (seed, epoch) alone and augmentation of (seed, epoch, sample), so neither threads nor processes
nor a restart change a batch.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import psutil
import torch

from sigak.data import Problem, Split
from sigak.data.objects import to_instances
from sigak.io import image
from sigak.ops.warp import warp_cpu
from sigak.structures import IGNORE, Batch, Sample, SigakError

__all__ = ["Feed", "Pictures", "Step"]

MEMORY_SHARE = 0.3  # of the memory that is free, for one split's decoded pictures
AHEAD = 3  # batches prepared while the network computes

Progress = Callable[[int], None]
Augmentation = Callable[[Batch, int, int], Batch]  # of a batch, with the seed and the epoch


class Pictures:
    """One split, prepared. `records` lists what could be read; `problems` names the rest."""

    def __init__(
        self,
        split: Split,
        preparation: image.Preparation,
        collate: Callable[[Sequence[Sample]], Batch],
        *,
        reduced: bool = False,
        threads: int | None = None,
        device: torch.device | str = "cpu",
        masks: bool = False,
    ) -> None:
        """reduced: decode JPEGs at the smallest scale that still covers the size (training
        only); masks: fill the outlines of objects.
        """
        self.split = split
        self.masks = masks
        if masks:
            _refuse_boxes_alone(split)
        self.preparation = preparation
        self.collate = collate
        self.reduced = reduced
        self.threads = threads or min(8, os.cpu_count() or 1)
        self.device = torch.device(device)
        self.problems: list[Problem] = []
        self.failed: set[int] = set()  # places in the split
        self.resident: Batch | None = None
        self.pool: ThreadPoolExecutor | None = None
        self.places = np.arange(len(split))  # of the readable records in the split

    def __len__(self) -> int:
        return len(self.places)

    @property
    def fits(self) -> bool:
        """Whether the prepared split is of one size and takes no more than its share of free
        memory.
        """
        if self.preparation != self.preparation.of_one_size():
            return False
        height, width = self.preparation.size
        maps = any(record.class_map is not None for record in self.split.records[:1])
        needed = len(self.split) * height * width * (self.preparation.channels + maps)
        # Twice, because stacking copies.
        return bool(2 * needed <= MEMORY_SHARE * psutil.virtual_memory().available)

    def load(self, progress: Progress | None = None, *, strict: bool = False) -> Pictures:
        """Decode everything now if it fits in memory; unreadable pictures are dropped and named,
        or refused if `strict`.
        """
        if self.resident is None and self.fits:
            samples = list(self._samples(range(len(self.split)), progress))
            readable = [s for s in samples if s is not None]
            self._refuse_unreadable(len(readable), strict)
            self.places = np.array([s.index for s in readable])
            self.resident = self.collate(readable).to(self.device)
        return self

    def _refuse_unreadable(self, readable: int, strict: bool) -> None:
        """SigakError where nothing could be read, or, if `strict`, where something could not."""
        if self.problems and strict:
            first = self.problems[0]
            raise SigakError(
                f"{len(self.problems)} pictures cannot be read, the first {first.source}: "
                f"{first.reason}; mend or remove them, or leave out --strict to skip them"
            )
        if not readable:
            raise SigakError(
                f"none of the {len(self.split)} pictures of split {self.split.name!r} could "
                f"be read; "
                f"the first: {self.problems[0].source}: {self.problems[0].reason}"
            )

    def batch(self, positions: np.ndarray, key: tuple[int, int] = (0, 0)) -> Batch:
        """The pictures at `positions` (0 .. len - 1) as one uint8 batch, in that order; they must
        be of one size. key: seed and epoch, for what is cut at random, as pictures are not.
        """
        batches = list(self.batches(positions))
        if len(batches) > 1:
            raise SigakError("pictures of different sizes do not fit into one batch")
        return batches[0]

    def batches(self, positions: np.ndarray) -> Iterable[Batch]:
        """The pictures at `positions` as one uint8 batch for each size they have."""
        if self.resident is not None:
            return [self.resident.select(torch.from_numpy(positions).to(self.device))]
        samples = [s for s in self._samples(self.places[positions], None) if s is not None]
        if not samples:
            raise SigakError(
                f"none of a batch's {len(positions)} pictures could be read: {self.problems[-1]}"
            )
        of_size: dict[tuple[int, ...], list[Sample]] = {}
        for sample in samples:
            of_size.setdefault(sample.image.shape, []).append(sample)
        return [self.collate(group).to(self.device) for group in of_size.values()]

    def statistics(self, most: int = 10_000) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and spread per channel, in [0, 1] units, over up to `most` evenly spread
        pictures.
        """
        places = self._spread(most)
        channels = self.preparation.channels
        sums = torch.zeros(channels, dtype=torch.float64, device=self.device)
        squares, count = torch.zeros_like(sums), 0
        for chunk in np.array_split(places, max(1, len(places) // 256)):
            images = self.batch(chunk).images.double() / 255.0
            sums = sums + images.sum((0, 2, 3))
            squares = squares + images.square().sum((0, 2, 3))
            count += images[:, 0].numel()
        mean = sums / count
        std = (squares / count - mean.square()).clamp_min(1e-12).sqrt()
        return tuple(mean.tolist()), tuple(std.tolist())

    def sampled(self, most: int) -> Batch:
        """Up to `most` evenly spread pictures as one uint8 batch."""
        return self.batch(self._spread(most))

    def _spread(self, most: int) -> np.ndarray:
        return np.linspace(0, len(self) - 1, min(len(self), most)).astype(np.int64)

    def _samples(
        self, indices: Sequence[int] | np.ndarray, progress: Progress | None
    ) -> Iterator[Sample | None]:
        if self.split.pixels is not None:  # nothing to decode: threads would only cost
            results: Iterator[Sample | None] = map(self._sample, indices)
        else:
            self.pool = self.pool or ThreadPoolExecutor(self.threads, "sigak-decode")
            results = self.pool.map(self._sample, indices)
        for done, sample in enumerate(results):
            if progress and done % 64 == 0:
                progress(done)
            yield sample

    def _sample(self, index: int) -> Sample | None:
        """The sample at a place of the split; None where it cannot be read, which is noted."""
        try:
            return self._read(int(index))
        except SigakError as error:
            if index not in self.failed:  # a set read anew each epoch names it once
                self.failed.add(int(index))
                source = self.split.records[index].source
                self.problems.append(Problem(source, str(error), "skipped"))
            return None

    def _read(self, index: int) -> Sample:
        record = self.split.records[index]
        source = record.source if self.split.pixels is None else self.split.pixels[index]
        pixels, matrix, size = image.load(source, self.preparation, reduced=self.reduced)
        sample = Sample(pixels, record.source, index, record.label, matrix=matrix, size=size)
        if record.objects is not None:
            how, canvas = {"masks": self.masks}, (pixels.shape[0], pixels.shape[1])
            sample.label, sample.truth = None, to_instances(record.objects, None, size, **how)
            sample.instances = to_instances(record.objects, matrix, canvas, **how)
        if record.class_map is not None:
            class_map = record.class_map.read()
            sample.label, sample.class_map = None, _moved(class_map, matrix, pixels.shape)
            if not self.reduced:  # to be measured by what the file says
                sample.truth_map = record.class_map.read
        return sample


def _refuse_boxes_alone(split: Split) -> None:
    """SigakError where there are objects, and not one of them has an outline."""
    known = [r.objects for r in split.records if r.objects is not None and len(r.objects)]
    if known and not any(any(objects.outlines or ()) for objects in known):
        raise SigakError(
            f"{split.name}: expected objects with outlines, received {sum(map(len, known)):,} "
            "boxes alone; give polygons (COCO, YOLO) or `scenes`, or take a network that learns "
            "from boxes"
        )


def _moved(class_map: np.ndarray, matrix: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """(H, W) uint8 in the file's frame -> onto a canvas of `shape`; IGNORE beside the picture."""
    size = (shape[0], shape[1])
    return warp_cpu(class_map[None, :, :, None], matrix[None], size, "constant", True, IGNORE)[
        0, :, :, 0
    ]


@dataclass(frozen=True)
class Step:
    """One step of an epoch: this process's part of a batch, `own` of the `total` pictures of the
    whole.
    """

    number: int
    batch: Batch
    own: int
    total: int

    def parts(self, count: int) -> Iterator[tuple[Batch, int]]:
        """The batch in `count` parts, with the number of pictures each stands for."""
        if count == 1 or self.own <= 1:
            yield self.batch, self.own
            return
        for places in torch.arange(self.own, device=self.batch.images.device).tensor_split(count):
            if len(places):
                yield self.batch.select(places), len(places)


class Feed:
    """The batches of an epoch. share (rank, world): which part of every batch is this process's."""

    def __init__(
        self,
        pictures: Pictures,
        *,
        batch: int,
        share: tuple[int, int] = (0, 1),
        seed: int | None = None,
        augment: Augmentation | None = None,
        targets: Pictures | None = None,
    ) -> None:
        """seed None: in the split's order, unaugmented (evaluation); else shuffled and augmented by
        it. targets: pictures of another domain, of which each batch gets as many, at random.
        """
        if batch < 1:
            raise SigakError(f"--batch must be at least 1, received {batch}")
        self.pictures = pictures
        self.size = batch
        self.rank, self.world = share
        self.seed = seed
        self.augment = augment
        self.targets = targets
        if seed is not None and batch % self.world:
            raise SigakError(
                f"--batch {batch} cannot be shared evenly by {self.world} processes; "
                f"make it a multiple of {self.world}"
            )

    @property
    def steps(self) -> int:
        """Batches of an epoch, over all processes together."""
        return -(-len(self.pictures) // self.size)

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[Step]:
        """The epoch's steps from `start`, prepared ahead by one thread."""
        ready: queue.Queue[Step | BaseException | None] = queue.Queue(AHEAD)
        stop = threading.Event()

        def put(item: Step | BaseException | None) -> None:
            while not stop.is_set():
                try:
                    return ready.put(item, timeout=0.1)
                except queue.Full:
                    continue

        def work() -> None:
            try:
                for step in self._steps(epoch, start):
                    put(step)
                    if stop.is_set():
                        return
                put(None)
            except BaseException as error:
                put(error)

        thread = threading.Thread(target=work, daemon=True, name="sigak-feed")
        thread.start()
        try:
            while (item := ready.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stop.set()
            thread.join()

    def _steps(self, epoch: int, start: int) -> Iterator[Step]:
        order = np.arange(len(self.pictures))
        if self.seed is not None:
            order = np.random.Generator(np.random.Philox(key=[self.seed, epoch])).permutation(order)
        for number in range(start, self.steps):
            whole = order[number * self.size : (number + 1) * self.size]
            part = self._own(whole)
            own = len(part)
            if own == 0:
                if self.seed is None:
                    continue
                part = whole[:1]  # every process takes part in every step, here with weight 0
            if self.seed is None:
                for batch in self.pictures.batches(part):
                    yield Step(number, batch, len(batch), len(batch))
                continue
            batch = self.pictures.batch(part, (self.seed, epoch))
            lost = len(part) - len(batch)  # unreadable ones, where the set is read as it goes
            if self.targets is not None:
                wanted = number * self.size + np.arange(len(whole))
                found = self._targets(self.targets, self._own(wanted) if own else wanted[:1], epoch)
                # Where some could not be read others come twice, or are left out.
                found = found[torch.arange(len(batch)) % len(found)]
                batch = replace(batch, targets=found)
            if self.augment is not None:
                batch = self.augment(batch, self.seed, epoch)
            yield Step(number, batch, own - lost, len(whole) - lost)

    def _own(self, whole: np.ndarray) -> np.ndarray:
        """This process's part of a batch: contiguous, the first processes take one picture more of
        an uneven one.
        """
        return np.array_split(whole, self.world)[self.rank]

    def _targets(self, pictures: Pictures, wanted: np.ndarray, epoch: int) -> torch.Tensor:
        """The pictures of the other domain at the places `wanted` of an epoch's endless sequence,
        in which each comes once before any comes again.
        """
        rounds, places = np.divmod(wanted, len(pictures))
        orders = {
            turn: np.random.Generator(
                # Not the stream that orders the source: the two must not go in step.
                np.random.Philox(key=[self.seed or 0, epoch], counter=[0, 0, 1, turn])
            ).permutation(len(pictures))
            for turn in np.unique(rounds).tolist()
        }
        chosen = [orders[turn][place] for turn, place in zip(rounds.tolist(), places.tolist())]
        return pictures.batch(np.array(chosen)).images
