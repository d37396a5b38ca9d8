"""Semantic segmentation of volumes: the class of every voxel.

A volume goes through the network in windows that overlap; the answer is as large as the file, and
is written beside what was there before: voxel by voxel in the same place in space.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
from torch import Tensor

from sigak import draw
from sigak.augment.volumes import VolumeAugmentation
from sigak.io import volumes
from sigak.structures import Batch, SigakError
from sigak.tasks import unique_stems
from sigak.tasks._blocks import sweep
from sigak.tasks.segment import Segmentation, Semantic

__all__ = ["TASK", "SegmentVolume", "SegmentedVolume"]


@dataclass(frozen=True)
class SegmentedVolume(Segmentation):
    """The answer for one volume: the class of every voxel of the file, of `size` (D, H, W).

    origin: the file that was answered for, None for an array; spacing: millimetres from voxel to
    voxel along D, H and W, where the file says so.
    """

    origin: str | None = None
    spacing: tuple[float, float, float] | None = None

    def asdict(self) -> dict[str, Any]:
        """{source, size [D, H, W], spacing, classes: [{label, class_id, voxels, share,
        millilitres}]}, those that occur; spacing and millilitres where the file tells of them.
        """
        known = self.spacing is not None
        litre = math.prod(self.spacing or ()) / 1000
        rows = [
            {"label": name, "class_id": k, "voxels": count, "share": float(self.scores[k])}
            | ({"millilitres": count * litre} if known else {})
            for k, (name, count) in enumerate(zip(self.classes, self.pixels))
            if count
        ]
        facts = {"source": self.source, "size": list(self.size)}
        return facts | ({"spacing": list(self.spacing or ())} if known else {}) | {"classes": rows}


@final
class SegmentVolume(Semantic):
    """See the module."""

    name = "segment_volume"
    needs = ("class_map", "volume")

    def augment(self, size: tuple[int, int]) -> VolumeAugmentation | None:
        return VolumeAugmentation.parse(self.recipe.augment)

    def steps(
        self, network: Callable[[Tensor], Tensor], batch: Batch
    ) -> Iterator[tuple[str, dict[str, Tensor]]]:
        if batch.class_maps is None:
            raise SigakError("segmentation learns from masks, and these volumes have none")
        yield from self.learn(network, batch, batch.class_maps)

    def predict(self, network: Any, batch: Batch) -> list[SegmentedVolume]:
        """network: an engine, whose module knows its stride and, as `input_shape`, its window."""
        largest = network.network.input_shape[1:]
        origins = batch.origins or [None] * len(batch)
        return [
            self._result(source, sweep(network, volume, largest), origin)
            for source, volume, origin in zip(batch.sources, batch.images, origins, strict=True)
        ]

    def _result(self, source: str, labels: np.ndarray, origin: object) -> SegmentedVolume:
        made = SegmentedVolume.of(source, labels, self.classes)
        file = str(origin) if isinstance(origin, str | Path) else None
        spacing = None if file is None else volumes.describe(file).spacing
        return SegmentedVolume(source, made.packed, made.classes, made.size, file, spacing)

    def draw(self, image: np.ndarray, result: SegmentedVolume) -> np.ndarray:
        """`image`: the voxels (D, H, W, 1) float32 in [0, 1]."""
        return draw.volume(image, result.class_map, result.classes, self.colors)

    def save(
        self, results: Sequence[SegmentedVolume], folder: Path, forms: Sequence[str] = ()
    ) -> list[Path]:
        """masks/NAME.nii.gz, the class of each voxel, in the place in space of the file that was
        answered for, or masks/NAME.npy for an array; and predictions.json, which names them.
        """
        self.refuse_forms(forms)
        folder.mkdir(parents=True, exist_ok=True)
        files, rows = [], []
        names = unique_stems([result.source for result in results])
        for name, result in zip(names, results, strict=True):
            like = result.origin if result.spacing is not None else None
            files.append(folder / "masks" / f"{name}{'.npy' if like is None else '.nii.gz'}")
            volumes.save(files[-1], result.class_map, like)
            rows.append(result.asdict() | {"mask": f"masks/{files[-1].name}"})
        text = json.dumps(rows, indent=1, ensure_ascii=False) + "\n"
        (folder / "predictions.json").write_text(text, encoding="utf-8")
        return [*files, folder / "predictions.json"]


TASK = SegmentVolume
