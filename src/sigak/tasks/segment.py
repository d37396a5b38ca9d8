"""Semantic segmentation: the class of every pixel.

The network gives logits (B, K, H, W) for its canvas; they are taken back to the frame of the file
before the best class of each of its pixels is chosen. Where the truth is IGNORE nothing is learnt
and nothing is measured.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from sigak import draw, losses, metrics
from sigak.augment.pipeline import Pipeline
from sigak.io import index_map
from sigak.ops.outlines import codes
from sigak.structures import IGNORE, Batch, Masks, Sample, SigakError
from sigak.tasks import Task, unique_stems
from sigak.tasks._windows import Views, best_classes, highest, sliding

__all__ = ["TASK", "Overlap", "Segment", "Segmentation", "Semantic", "coco_rows"]

_FOLLOWED = ("miou", "pixel_accuracy", "dice", "boundary_f")


@dataclass(frozen=True)
class Segmentation:
    """The answer for one picture: the class of every pixel of the file, of `size` (H, W).

    packed: the map's bytes, compressed, so that answers for many pictures fit into memory.
    """

    source: str
    packed: bytes
    classes: tuple[str, ...]
    size: tuple[int, ...]

    @classmethod
    def of(cls, source: str, class_map: np.ndarray, classes: Sequence[str]) -> Segmentation:
        """From a map (H, W) uint8 of class indices."""
        packed = zlib.compress(np.ascontiguousarray(class_map).tobytes(), 1)
        return cls(source, packed, tuple(classes), class_map.shape)

    @property
    def class_map(self) -> np.ndarray:
        """(H, W) uint8 class indices."""
        return np.frombuffer(zlib.decompress(self.packed), np.uint8).reshape(self.size)

    @cached_property
    def pixels(self) -> list[int]:
        """How many pixels of each class there are."""
        labels = self.class_map
        return [int(np.count_nonzero(labels == k)) for k in range(len(self.classes))]

    @property
    def scores(self) -> np.ndarray:
        """(K,) float64: each class's share of the picture."""
        return np.array(self.pixels, np.float64) / math.prod(self.size)

    @property
    def label(self) -> str:
        """The class with most pixels, the first of the list (the background, where there is one)
        only if it is alone.
        """
        rest = self.pixels[1:]
        return self.classes[1 + int(np.argmax(rest))] if any(rest) else self.classes[0]

    @property
    def score(self) -> float:
        """The share of `label`."""
        return float(self.scores[self.classes.index(self.label)])

    def __str__(self) -> str:
        """The classes with their shares of the picture, as "road 41.2%, car 8.0%"."""
        order = np.argsort(-self.scores, kind="stable")
        return ", ".join(f"{self.classes[k]} {self.scores[k]:.1%}" for k in order if self.pixels[k])

    def asdict(self) -> dict[str, Any]:
        """{source, size [H, W], classes: [{label, class_id, pixels, share}]}, those that occur."""
        return {
            "source": self.source,
            "size": list(self.size),
            "classes": [
                {"label": name, "class_id": k, "pixels": count, "share": float(self.scores[k])}
                for k, (name, count) in enumerate(zip(self.classes, self.pixels))
                if count
            ],
        }


class Semantic(Task):
    """What segmentation of pictures and of volumes has in common."""

    @property
    def outputs(self) -> int:
        if len(self.classes) < 2:
            raise SigakError(
                f"segmentation tells classes apart and needs two or more, received "
                f"{', '.join(self.classes)}"
            )
        return len(self.classes)

    @property
    def colors(self) -> list[tuple[int, int, int]]:
        """One a class: the data's own, or bright ones and black for a background."""
        return list(self.palette or draw.palette(self.classes))

    def monitor(self, validated: bool) -> str:
        return "val_miou" if validated else "loss"

    def collate(self, samples: Sequence[Sample]) -> Batch:
        return Batch.of(samples)

    def metric(self) -> Overlap:
        return Overlap(self.classes)

    def learn(
        self, network: Callable[[Tensor], Tensor], batch: Batch, maps: Tensor
    ) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """The step of a network that gives logits (B, K, ...) for its images; maps (B, ...)."""
        logits = network(batch.images)
        loss = losses.pixel_loss(self.recipe.loss or "ce")(logits, maps)
        yield "main", {"loss": loss, "pixel_accuracy": _right(logits, maps)}


@final
class Segment(Semantic):
    """See the module. views: what is averaged for an answer; tile: see `Task`."""

    name = "segment"
    needs = ("class_map",)
    on_file = True
    views = Views()

    def answering(self, **choices: Any) -> Segment:
        """The same task with predict's choices: tta, such as "mirror" or "mirror,0.75,1.25"; tile,
        the side of the windows.
        """
        told = copy(self)
        told.views = Views.parse(choices.pop("tta", None) or "")
        told.tile = choices.pop("tile", None) or 0
        if told.tile < 0:
            raise SigakError(f"--tile must be at least 1, received {told.tile}")
        Task.answering(self, **choices)
        return told

    def augment(self, size: tuple[int, int]) -> Pipeline | None:
        pipeline = Pipeline.parse(self.recipe.augment, size=size, epochs=self.recipe.epochs)
        return pipeline if pipeline else None

    def steps(
        self, network: Callable[[Tensor], Tensor], batch: Batch
    ) -> Iterator[tuple[str, dict[str, Tensor]]]:
        if batch.class_maps is None:
            raise SigakError(
                "segmentation learns from class maps, and these pictures have none; give folders "
                "images and masks, or a COCO .json with polygons"
            )
        if batch.targets is None:
            yield from self.learn(network, batch, batch.class_maps)
        else:
            loss = losses.pixel_loss(self.recipe.loss or "ce")
            yield from _adapting(network, batch, batch.class_maps, loss)

    def predict(self, network: Any, batch: Batch) -> list[Segmentation]:
        """network: an engine, whose module knows the canvas's stride. With `tile` set each picture
        is cut into windows as it is in the batch.
        """
        if self.tile:
            matrices = batch.matrix.cpu()
            maps = [sliding(network, self.views, one, self.tile) for one in batch.images]
            return [
                self._of_window(source, found, matrix, size)
                for source, found, matrix, size in zip(
                    batch.sources, maps, matrices, batch.sizes, strict=True
                )
            ]
        scores = self.views.scores(network, batch.images)
        return [
            Segmentation.of(source, best_classes(one, matrix.numpy(), size), self.classes)
            for source, one, matrix, size in zip(
                batch.sources, scores, batch.matrix.cpu(), batch.sizes, strict=True
            )
        ]

    def _of_window(
        self, source: str, found: np.ndarray, matrix: Tensor, size: tuple[int, int]
    ) -> Segmentation:
        """A map of the picture as it was cut; steps done before may have moved it in its file."""
        if not torch.equal(matrix, torch.eye(3).double()) or found.shape != tuple(size):
            raise SigakError("--tile answers for files as they are; leave --prepare out")
        return Segmentation.of(source, found, self.classes)

    def draw(self, image: np.ndarray, result: Segmentation) -> np.ndarray:
        """`image` (H, W, 3) as the file has it."""
        return draw.class_map(image, result.class_map, result.classes, self.colors)

    def save(
        self, results: Sequence[Segmentation], folder: Path, forms: Sequence[str] = ()
    ) -> list[Path]:
        """maps/NAME.png, the class indices as a paletted picture of the file's size, and
        predictions.json, which names them; form "coco": coco.json, a run-length code for each class
        of each picture.
        """
        if "txt" in forms:
            raise SigakError("--txt is for detectors; the maps folder holds the class maps")
        folder.mkdir(parents=True, exist_ok=True)
        rows, files = [], []
        names = unique_stems([result.source for result in results])
        for name, result in zip(names, results, strict=True):
            files.append(folder / "maps" / f"{name}.png")
            index_map.save(files[-1], result.class_map, self.colors)
            rows.append(result.asdict() | {"map": f"maps/{name}.png"})
        texts = {"predictions.json": rows}
        if "coco" in forms:
            texts["coco.json"] = [row for result in results for row in coco_rows(result)]
        for name, body in texts.items():
            text = json.dumps(body, indent=1, ensure_ascii=False) + "\n"
            (folder / name).write_text(text, encoding="utf-8")
        return [*files, *(folder / name for name in texts)]


def _adapting(
    network: Any, batch: Batch, maps: Tensor, loss: Callable[[Tensor, Tensor], Tensor]
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The segmenter learns from the class maps (B, H, W), and to have its answers for the batch's
    targets, whose classes nobody knows, taken for answers for its images; then the discriminators
    learn to tell these answers apart. See `sigak.models.adaptsegnet`.
    """
    answers, fooling, chances = network(batch.images, batch.targets, part="main")
    learnt = torch.stack([weight * loss(logits, maps) for weight, logits in answers]).sum()
    found = {"segmentation_loss": learnt, "adversarial_loss": fooling}
    found |= {"loss": learnt + fooling, "pixel_accuracy": _right(answers[0][1], maps)}
    yield "main", found
    judged = network(*chances, part="discriminators")
    yield "discriminators", {"loss": judged, "discriminator_loss": judged}


@torch.no_grad()
def _right(logits: Tensor, maps: Tensor) -> Tensor:
    """The share of known pixels whose class is the best of the logits (B, K, H, W)."""
    known = maps != IGNORE
    return ((highest(logits.detach().unbind(1)) == maps) & known).sum() / known.sum().clamp_min(1)


def coco_rows(result: Segmentation) -> list[dict[str, Any]]:
    """One row a class of the picture, as COCO's result files for stuff have them; image_id is the
    file name without its ending, as a number where it is one, category_id the class index.
    """
    stem = Path(result.source).stem
    image_id = int(stem) if stem.isdecimal() else stem
    labels = result.class_map
    return [
        {
            "image_id": image_id,
            "category_id": k,
            "segmentation": codes(Masks.of(labels[None] == k))[0],
        }
        for k, count in enumerate(result.pixels)
        if count
    ]


class Overlap:
    """`metrics.Segmentation` fed with results and batches, in the frames of the files."""

    def __init__(self, classes: Sequence[str]) -> None:
        self.measure = metrics.Segmentation(classes)

    def update(self, results: Sequence[Segmentation], batch: Batch) -> None:
        """Take in the results of one batch."""
        if batch.truth_maps is None:
            raise SigakError("segmentation is measured against class maps, and there are none")
        for result, read in zip(results, batch.truth_maps, strict=True):
            self.measure.add(result.class_map, read())

    def merge(self, other: Overlap) -> None:
        """Take in what another process found."""
        self.measure.merge(other.measure)

    def compute(self, detail: bool = True) -> dict[str, Any]:
        """See `metrics.Segmentation.compute`."""
        found = self.measure.compute()
        return found if detail else {name: found[name] for name in _FOLLOWED}


TASK = Segment
