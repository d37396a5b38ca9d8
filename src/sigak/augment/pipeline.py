"""The pipeline: a written specification -> a plan for a batch -> the batch, changed.

A plan holds numbers only: one geometric matrix, one colour matrix, one place in the noise, one
square, one partner per picture. Two engines carry out the same plan: OpenCV on uint8 batches in
memory, and batched sampling on a batch's own device.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache, reduce

import numpy as np
import torch
from torch import Tensor

from sigak.augment import geometry, photo
from sigak.augment.draws import Draws
from sigak.augment.mix import (
    Mixing,
    Pasting,
    class_weights,
    cutout,
    joined,
    paste_objects,
    plan_blend,
    plan_mixing,
    plan_pasting,
)
from sigak.augment.mosaic import (
    GRAY_LEVEL,
    Tiling,
    contents,
    move_onto_tiles,
    paint_cpu,
    paint_device,
    plan_tiles,
)
from sigak.augment.spec import CLOSED, GRAY, Settings, parse, write
from sigak.ops.warp import add_noise, blend, recolor, warp_cpu, warp_device
from sigak.structures import IGNORE, Batch, Instances, SigakError

__all__ = [
    "CUTOUT_LEVEL",
    "Pipeline",
    "Plan",
    "carry_out",
    "images_on_cpu",
    "images_on_device",
    "preview",
]

Size = tuple[int, int]

CUTOUT_LEVEL = 128  # mid-gray, what a cutout square shows
_THREADED_PIXELS = 96 * 96  # below this a picture is done sooner than a second thread is woken


@dataclass(frozen=True)
class Plan:
    """What will happen to a batch of B pictures, in numbers that hold for either engine.

    size (H, W) of the result; fill what lies outside a picture; matrices (B, 3, 3) picture to
    result; colors (B, 4, 4) over (red, green, blue, 1) in 0..255; noise_starts (B,) places in the
    noise pool and noise_std in 0..255; squares (B, 4) int64 xyxy to blank; mixing and pasting the
    partners; tiling what is painted on gray instead of warped as a whole. None where nothing of the
    kind is done.
    """

    size: Size
    fill: str
    matrices: np.ndarray
    colors: np.ndarray | None = None
    noise_starts: np.ndarray | None = None
    noise_std: float = 0.0
    squares: np.ndarray | None = None
    mixing: Mixing | None = None
    pasting: Pasting | None = None
    tiling: Tiling | None = None


@dataclass(frozen=True)
class Pipeline:
    """Augmentation of batches. `Pipeline.parse` makes one; `str` writes it in the standard form.

    settings name -> values; size (H, W) of the result, to which a batch of another size is
    stretched on the way; classes the number of classes, needed where mixup or cutmix meets
    whole-number labels; swap names the points after a mirror (place k takes the point of place
    swap[k]); threads 0 means as many as torch uses; epochs the length of the training, from whose
    end close=N counts, 0 where it is not known and nothing is closed.
    """

    settings: Settings
    size: Size
    classes: int = 0
    swap: tuple[int, ...] | None = None
    threads: int = 0
    epochs: int = 0

    @classmethod
    def parse(
        cls,
        spec: str,
        size: Size,
        *,
        classes: int = 0,
        swap: Sequence[int] | None = None,
        threads: int = 0,
        epochs: int = 0,
    ) -> Pipeline:
        """A pipeline from text such as "flip=h,rotate=15" or "medium,rotate=0"; later words win.

        Raises SigakError where a name is not known or a value is out of its range.
        """
        if min(size) < 1:
            raise SigakError(f"size must be (height, width) of at least 1 pixel, received {size}")
        settings = parse(spec)
        _check_together(settings)
        named = None if swap is None else tuple(swap)
        return cls(settings, size, classes, named, threads, epochs)

    def __bool__(self) -> bool:
        """Whether anything is chosen."""
        return bool(self.settings)

    def __str__(self) -> str:
        return write(self.settings)

    def __call__(self, batch: Batch, seed: int, epoch: int) -> Batch:
        """The batch as `epoch` sees it; one (seed, epoch, sample) always gives the same picture.

        Only mixing and mosaics also ask who else is in the batch. epoch counts from 1. uint8 stays
        uint8, and floats in [0, 1] stay floats in [0, 1]; values that would leave the range stop at
        its end.
        """
        if not self and tuple(batch.images.shape[2:]) == self.size:
            return batch
        draws = Draws(seed, epoch, batch.indices.cpu().numpy())
        now = self.at(epoch)
        return carry_out(now.plan(batch, draws), batch, now)

    def at(self, epoch: int) -> Pipeline:
        """The pipeline of one epoch: in the last `close` ones without what those leave out."""
        return replace(self, settings=self.settings.without(CLOSED)) if self.closed(epoch) else self

    def closed(self, epoch: int) -> bool:
        """Whether an epoch is one of the last `close`."""
        return bool(self.epochs) and epoch > self.epochs - self.settings.number("close")

    def plan(self, batch: Batch, draws: Draws) -> Plan:
        """What these draws mean for this batch; reads the shape of its images, not their pixels."""
        source = (int(batch.images.shape[2]), int(batch.images.shape[3]))
        channels = batch.images.shape[1]
        chosen = self.settings
        std = 255 * chosen.number("noise")
        side = int(chosen.number("cutout"))
        mixup, cutmix = chosen.number("mixup"), chosen.number("cutmix")
        stretch = geometry.resize(draws, source, self.size)
        moves = _geometry(chosen, draws, self.size)
        tiling, matrices = None, moves @ stretch
        if chosen.fill == GRAY:
            tiles = plan_tiles(draws, chosen.number("mosaic"), contents(batch), stretch, self.size)
            tiling = replace(tiles, matrices=moves[:, None] @ tiles.matrices)
            matrices = tiling.matrices[:, 0]
        mixing = plan_mixing(draws, mixup, cutmix, self.size) if mixup or cutmix else None
        if "blend" in chosen:
            mixing = plan_blend(draws, chosen.number("blend"))
        pasted = chosen.number("copypaste")
        return Plan(
            size=self.size,
            fill=chosen.fill,
            matrices=matrices,
            colors=_colors(chosen, draws),
            noise_starts=photo.noise_starts(draws, channels) if std else None,
            noise_std=std,
            squares=cutout(draws, side, self.size) if side else None,
            mixing=mixing,
            pasting=plan_pasting(draws, pasted) if pasted else None,
            tiling=tiling,
        )


def _check_together(chosen: Settings) -> None:
    """Raise SigakError for names that do not go together."""
    if "blend" in chosen and ("mixup" in chosen or "cutmix" in chosen):
        raise SigakError(
            "blend mixes pictures with their objects, mixup and cutmix with whole-picture labels; "
            "choose one kind"
        )
    if "mosaic" in chosen and chosen.fill != GRAY:
        raise SigakError(
            f"what a mosaic leaves open is gray, received fill={chosen.fill}; leave fill out"
        )
    if "perspective" in chosen and chosen.fill == GRAY:
        raise SigakError(
            "mosaic and fill=gray do not tilt the picture plane; leave perspective out, or take "
            "shear and rotate"
        )


def _geometry(chosen: Settings, draws: Draws, size: Size) -> np.ndarray:
    """(B, 3, 3) within a canvas: the chosen steps in the order of this table, as one matrix."""
    steps: dict[str, Callable[[], np.ndarray]] = {
        "crop": lambda: geometry.crop(draws, int(chosen.number("crop"))),
        "rrc": lambda: geometry.random_resized_crop(draws, chosen.number("rrc"), size),
        "flip": lambda: geometry.flip(draws, chosen.word("flip"), size),
        "zoom": lambda: geometry.zoom(draws, chosen.numbers("zoom"), size),
        "shear": lambda: geometry.shear(draws, chosen.number("shear"), size),
        "rotate": lambda: geometry.rotate(draws, chosen.number("rotate"), size),
        "perspective": lambda: geometry.perspective(draws, chosen.number("perspective"), size),
        "shift": lambda: geometry.shift(draws, chosen.numbers("shift"), size),
    }
    first = np.tile(np.eye(3), (len(draws), 1, 1))
    return reduce(lambda done, name: steps[name]() @ done, (n for n in steps if n in chosen), first)


def _colors(chosen: Settings, draws: Draws) -> np.ndarray | None:
    """(B, 4, 4): the chosen steps in the order of this table as one matrix; None without any."""
    steps = {
        "brightness": photo.brightness,
        "contrast": photo.contrast,
        "saturation": photo.saturation,
        "hue": photo.hue,
    }
    parts = [step(draws, chosen.number(name)) for name, step in steps.items() if name in chosen]
    return reduce(lambda done, part: part @ done, parts) if parts else None


def carry_out(plan: Plan, batch: Batch, pipeline: Pipeline) -> Batch:
    """The batch after the plan, every field with it."""
    _check_batch(pipeline.settings, batch)
    source = (int(batch.images.shape[2]), int(batch.images.shape[3]))
    objects, covers = _objects(plan, batch, pipeline)
    if batch.images.device.type == "cpu" and batch.images.dtype == torch.uint8:
        images = images_on_cpu(batch.images, plan, pipeline.threads, covers)
    else:
        images = images_on_device(batch.images, plan, covers)
    matrix = torch.from_numpy(plan.matrices).to(batch.matrix) @ batch.matrix
    changed = replace(batch, images=images, matrix=matrix, instances=objects)
    if batch.class_maps is not None:
        maps = _warped(batch.class_maps[:, None], plan, source, nearest=True)
        changed.class_maps = maps[:, 0]
    if batch.targets is not None:
        changed.targets = _warped(batch.targets, plan, source)
    if plan.mixing is not None and batch.labels is not None and batch.instances is None:
        changed.labels = class_weights(batch.labels, plan.mixing, pipeline.classes)
    return changed


def _check_batch(chosen: Settings, batch: Batch) -> None:
    """Raise SigakError where what is mixed cannot be mixed in this batch."""
    whole = [name for name in ("mixup", "cutmix") if name in chosen]
    parts = [name for name in CLOSED if name in chosen]
    alone = ("class_maps", "targets") + (("instances",) if whole else ())
    for name in alone if whole or parts else ():
        if getattr(batch, name) is not None:
            kind = "objects" if parts else "whole-picture labels"
            raise SigakError(
                f"{' and '.join(whole or parts)} mix pictures with their {kind}, but this batch "
                f"carries {name}; leave {'both' if whole else 'them'} out of the augmentation"
            )
    if parts and batch.instances is None:
        raise SigakError(
            f"{' and '.join(parts)} mix pictures with their objects, but this batch has none; for "
            "whole-picture labels take mixup or cutmix"
        )


Covers = list[Tensor | None]


def _objects(
    plan: Plan, batch: Batch, pipeline: Pipeline
) -> tuple[list[Instances] | None, Covers | None]:
    """The objects after the plan, and (H, W) bool masks of what is pasted into each picture."""
    if batch.instances is None:
        return None, None
    covers: Covers | None = None
    if plan.tiling is not None:
        objects = move_onto_tiles(batch.instances, plan.tiling, plan.size, pipeline.swap)
    else:
        objects = [
            geometry.move_instances(one, through, plan.size, pipeline.swap)
            for one, through in zip(batch.instances, plan.matrices)
        ]
    if plan.pasting is not None:
        objects, covers = paste_objects(objects, plan.pasting)
    if plan.mixing is not None:
        objects = [
            joined([own, objects[partner]]) if weight < 1 else own
            for own, partner, weight in zip(objects, plan.mixing.partner, plan.mixing.weight)
        ]
    return objects, covers


def _warped(pictures: Tensor, plan: Plan, source: Size, nearest: bool = False) -> Tensor:
    """Class maps (nearest, outside IGNORE) or paired pictures, of any size, as (B, C, H, W)."""
    factors = np.array([pictures.shape[3] / source[1], pictures.shape[2] / source[0], 1.0])
    matrices = factors[:, None] * plan.matrices / factors
    size = (round(plan.size[0] * factors[1]), round(plan.size[1] * factors[0]))
    fill, value = (plan.fill, 0) if plan.fill != GRAY else ("constant", GRAY_LEVEL)
    if nearest:
        fill, value = "constant", IGNORE
    if pictures.device.type == "cpu" and pictures.dtype == torch.uint8:
        array = pictures.permute(0, 2, 3, 1).numpy()
        warped = warp_cpu(array, matrices, size, fill, nearest, value)
        return torch.from_numpy(warped).permute(0, 3, 1, 2)
    return warp_device(pictures, matrices, size, fill, nearest, value)


def images_on_cpu(
    images: Tensor, plan: Plan, threads: int = 0, covers: Covers | None = None
) -> Tensor:
    """The plan on (B, C, H, W) uint8 pictures in memory; threads share a batch of large ones.

    covers: per picture what of it is pasted from its partner, (H, W) bool or None.
    """
    source = np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy())
    count, channels = len(source), source.shape[3]
    out = np.empty((count, *plan.size, channels), np.uint8)
    values = plan.size[0] * plan.size[1] * channels
    noise = photo.noise_levels(plan.noise_std, values, channels) if plan.noise_std else None

    def work(part: slice) -> None:
        if plan.tiling is None:
            warp_cpu(source[part], plan.matrices[part], plan.size, plan.fill, out=out[part])
        for i in range(count)[part]:
            if plan.tiling is not None:
                paint_cpu(source, plan.tiling, i, out[i])
            _finish(out[i], i, plan, noise)

    _in_threads(work, count, values // channels, threads)
    if covers is not None and plan.pasting is not None:
        _paste(out, covers, plan.pasting)
    return torch.from_numpy(_mixed(out, plan.mixing)).permute(0, 3, 1, 2)


def _finish(
    picture: np.ndarray, i: int, plan: Plan, noise: tuple[np.ndarray, np.ndarray] | None
) -> None:
    """Colour, noise and square of picture i, in place."""
    if plan.colors is not None:
        recolor(picture, plan.colors[i])
    if noise is not None and plan.noise_starts is not None:
        start = plan.noise_starts[i]
        above, below = (n[start : start + picture.size].reshape(picture.shape) for n in noise)
        add_noise(picture, above, below)
    if plan.squares is not None:
        x1, y1, x2, y2 = plan.squares[i]
        picture[y1:y2, x1:x2, :3] = CUTOUT_LEVEL


def _paste(pictures: np.ndarray, covers: Covers, pasting: Pasting) -> None:
    """Pixels of the partners, as they were before, where the covers say so; in place."""
    whole = pictures.copy()
    for picture, cover, partner in zip(pictures, covers, pasting.partner):
        if cover is not None:
            np.copyto(picture, whole[partner], where=cover.numpy()[..., None])


def _mixed(pictures: np.ndarray, mixing: Mixing | None) -> np.ndarray:
    if mixing is None:
        return pictures
    mixed = pictures.copy()
    for i, (x1, y1, x2, y2) in enumerate(mixing.boxes):
        partner = pictures[mixing.partner[i]]
        if mixing.weight[i] < 1:
            blend(pictures[i], partner, float(mixing.weight[i]), mixed[i])
        mixed[i, y1:y2, x1:x2] = partner[y1:y2, x1:x2]
    return mixed


@lru_cache(maxsize=4)
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    # Keyed by the process: a forked loader process inherits the table but not the running threads.
    return ThreadPoolExecutor(threads, thread_name_prefix="sigak-augment")


def _in_threads(work: Callable[[slice], None], count: int, pixels: int, threads: int) -> None:
    """work(slice) over 0..count, in one part per thread where pictures are large enough for it."""
    threads = min(threads or torch.get_num_threads(), count)
    if threads <= 1 or pixels < _THREADED_PIXELS:
        work(slice(0, count))
        return
    edges = np.linspace(0, count, threads + 1).astype(int).tolist()
    list(_pool(os.getpid(), threads).map(work, map(slice, edges[:-1], edges[1:])))


def images_on_device(images: Tensor, plan: Plan, covers: Covers | None = None) -> Tensor:
    """The plan on (B, C, H, W) pictures, uint8 or floating, on their own device, all at once."""
    scale = 255.0 if images.dtype == torch.uint8 else 1.0
    if plan.tiling is not None:
        work = paint_device(images.float(), plan.tiling, plan.size, scale)
    else:
        work = warp_device(images.float(), plan.matrices, plan.size, plan.fill)
    shape, device = work.shape, work.device
    if plan.colors is not None:
        work = _recolored(work, plan.colors, scale)
    if plan.noise_starts is not None:
        values = work[0].numel()
        windows = _noise_on(device, values, shape[1]).unfold(0, values, 1)
        noise = windows[torch.from_numpy(plan.noise_starts).to(device)]
        noise = noise.view(shape[0], shape[2], shape[3], shape[1]).permute(0, 3, 1, 2)
        work = (work + noise * (plan.noise_std * scale / 255)).clamp(0, scale)
    if plan.squares is not None:
        blank = _inside(plan.squares, plan.size, device)
        work[:, :3] = torch.where(blank, CUTOUT_LEVEL * scale / 255, work[:, :3])
    if covers is not None and plan.pasting is not None:
        nothing = torch.zeros(plan.size, dtype=torch.bool)
        pasted = torch.stack([nothing if c is None else c.cpu() for c in covers])[:, None]
        partner = work[torch.from_numpy(plan.pasting.partner).to(device)]
        work = torch.where(pasted.to(device), partner, work)
    if plan.mixing is not None:
        partner = work[torch.from_numpy(plan.mixing.partner).to(device)]
        weight = torch.from_numpy(plan.mixing.weight).to(work)[:, None, None, None]
        pasted = _inside(plan.mixing.boxes, plan.size, device)
        work = torch.where(pasted, partner, weight * work + (1 - weight) * partner)
    work = work.round() if images.dtype == torch.uint8 else work
    return work.clamp(0, scale).to(images.dtype).contiguous(memory_format=torch.channels_last)


@lru_cache(maxsize=4)
def _noise_on(device: torch.device, values: int, channels: int) -> Tensor:
    return torch.from_numpy(photo.noise_pool(values, channels)).to(device)


def _recolored(pictures: Tensor, colors: np.ndarray, scale: float) -> Tensor:
    """(B, C, H, W) in 0..scale through (B, 4, 4) colour matrices, as `recolor` does it."""
    matrices = torch.from_numpy(colors).to(pictures)
    offset = matrices[:, :3, 3] * (scale / 255)
    if pictures.shape[1] == 1:
        gain = matrices[:, 0, :3].sum(dim=1)
        changed = pictures * gain[:, None, None, None] + offset[:, :1, None, None]
        return changed.clamp(0, scale)
    mixed = offset[:, :, None, None]
    for k in range(3):
        mixed = mixed + matrices[:, :3, k, None, None] * pictures[:, k : k + 1]
    changed = mixed.clamp(0, scale)
    return torch.cat([changed, pictures[:, 3:]], dim=1)


def _inside(boxes: np.ndarray, size: Size, device: torch.device) -> Tensor:
    """(B, 4) int64 xyxy -> (B, 1, H, W) bool, True in the box."""
    x1, y1, x2, y2 = torch.from_numpy(boxes).to(device).T[:, :, None, None, None]
    xs = torch.arange(size[1], device=device)
    ys = torch.arange(size[0], device=device)[:, None]
    inside: Tensor = (xs >= x1) & (xs < x2) & (ys >= y1) & (ys < y2)
    return inside


def preview(images: np.ndarray, pipeline: Pipeline, rows: int, seed: int) -> np.ndarray:
    """A grid to look at: each row a picture as it is, then as the first seven epochs will see it.

    images (N, H, W, C) uint8; rows at most N of them are shown. Returns (rows * h, 8 * w, 3) uint8
    with a line between cells.
    """
    if images.ndim != 4 or images.dtype != np.uint8 or not len(images) or rows < 1:
        raise SigakError(
            "a preview needs uint8 pictures (N, H, W, C) and at least one row, "
            f"received {images.dtype} {images.shape} and {rows} rows"
        )
    count = min(rows, len(images))
    tensor = torch.from_numpy(np.ascontiguousarray(images[:count])).permute(0, 3, 1, 2)
    sizes = [(images.shape[1], images.shape[2])] * count
    batch = Batch(
        tensor, torch.arange(count), torch.eye(3).double().repeat(count, 1, 1), sizes, [""] * count
    )
    plain = Pipeline.parse("none", pipeline.size)(batch, seed, 0)
    epochs = [plain, *(pipeline(batch, seed, epoch) for epoch in range(7))]
    cells = np.stack([e.images.permute(0, 2, 3, 1).numpy() for e in epochs], axis=1)
    cells = np.repeat(cells, 3, axis=4) if cells.shape[4] == 1 else cells[..., :3]
    framed = np.pad(cells, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)), constant_values=255)
    row, column, height, width, channels = framed.shape
    return np.asarray(
        framed.transpose(0, 2, 1, 3, 4).reshape(row * height, column * width, channels)
    )
