"""Detection: boxes with a class and a score.

The network is a `Detector`: called with the truth it gives its losses, called without it raw
output, which its `decode` turns into boxes. Doubled boxes are removed here, class by class, and
what is left goes back into the frame of the file.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from sigak import draw, metrics
from sigak.augment.pipeline import Pipeline
from sigak.ops.boxes import clip, transform_boxes, xyxy_to_cxcywh, xyxy_to_xywh
from sigak.ops.nms import nms
from sigak.ops.outlines import codes, polygons_of
from sigak.structures import Batch, Instances, Sample, SigakError
from sigak.tasks import Task, unique_stems

if TYPE_CHECKING:
    import supervision

__all__ = ["TASK", "Average", "Detect", "Detections", "coco_rows", "yolo_lines"]

_MEASURED_FROM = 0.001  # scores below do not move the average precision
_SHOWN_FROM = 0.25
_MOST = 300  # boxes of a picture
_FOLLOWED = ("map", "map50", "map75", "ar100", "mask_map", "mask_map50", "mask_map75")


@dataclass(frozen=True)
class Detections:
    """What was found in one picture: `instances` in pixels of the file, the best first; `size` its
    (H, W).
    """

    source: str
    instances: Instances
    classes: tuple[str, ...]
    size: tuple[int, int]

    @property
    def scores(self) -> Tensor:
        """(N,) float."""
        scores = self.instances.scores
        return torch.ones(len(self.instances)) if scores is None else scores

    def __len__(self) -> int:
        return len(self.instances)

    def __str__(self) -> str:
        """How many of what, and the best score of each, as "2 car 91.2%, 1 dog 88.0%"."""
        names = [self.classes[k] for k in self.instances.labels.tolist()]
        best: dict[str, float] = {}
        for name, score in zip(names, self.scores.tolist()):
            best[name] = max(score, best.get(name, 0.0))
        counts = Counter(names)
        return ", ".join(f"{counts[name]} {name} {score:.1%}" for name, score in best.items()) or (
            "nothing found"
        )

    def asdict(self) -> dict[str, Any]:
        """{source, size [H, W], objects: [{label, class_id, score, box [x1, y1, x2, y2]}]}; where
        they have masks also an object's polygons [[x, y, x, y, ...], ...], the borders of its parts
        without holes, and an object's id where it is tracked.
        """
        rows = zip(
            self.instances.labels.tolist(), self.scores.tolist(), self.instances.boxes.tolist()
        )
        objects = [
            {"label": self.classes[k], "class_id": k, "score": score, "box": box}
            for k, score, box in rows
        ]
        if self.instances.ids is not None:
            for number, one in zip(self.instances.ids.tolist(), objects, strict=True):
                one["id"] = number
        if self.instances.masks is not None:
            for parts, one in zip(polygons_of(self.instances.masks), objects, strict=True):
                one["polygons"] = [part.ravel().tolist() for part in parts]
        return {"source": self.source, "size": list(self.size), "objects": objects}

    def to_supervision(self) -> supervision.Detections:
        """The same for the package `supervision`, which tracks, counts and draws."""
        try:
            import supervision
        except ImportError as error:
            raise SigakError(
                "this needs the package supervision: pip install supervision"
            ) from error
        labels, masks = self.instances.labels.numpy(), self.instances.masks
        return supervision.Detections(
            xyxy=self.instances.boxes.numpy().astype(np.float32).reshape(-1, 4),
            confidence=self.scores.numpy().astype(np.float32),
            mask=None if masks is None else masks.planes().numpy(),
            class_id=labels,
            tracker_id=None if self.instances.ids is None else self.instances.ids.numpy(),
            data={"class_name": np.array([self.classes[k] for k in labels], dtype=str)},
        )


class Detect(Task):
    """See the module. conf: scores at or below are left out; iou: overlap above which the lesser of
    two boxes of a class goes, 0 for the network's own; only: the classes that are shown, by index,
    all if empty.
    """

    name = "detect"
    needs: ClassVar[tuple[str, ...]] = ("objects",)
    on_file = True
    conf = _MEASURED_FROM
    iou = 0.0
    only: tuple[int, ...] = ()

    def answering(self, **choices: Any) -> Detect:
        """The same task with predict's choices: conf (default .25), iou, classes (names)."""
        told = copy(self)
        conf = choices.pop("conf", None)
        told.conf = _SHOWN_FROM if conf is None else conf
        told.iou = choices.pop("iou", None) or 0.0
        for flag, value in (("--conf", told.conf), ("--iou", told.iou)):
            if not 0 <= value <= 1:
                raise SigakError(f"{flag} must be between 0 and 1, received {value}")
        wanted = choices.pop("classes", None) or ()
        wanted = [wanted] if isinstance(wanted, str) else wanted
        strange = [name for name in wanted if name not in self.classes]
        if strange:
            raise SigakError(
                f"--classes names {strange[0]!r}, which this checkpoint does not know; it knows "
                f"{', '.join(self.classes[:10])}{', ...' if len(self.classes) > 10 else ''}"
            )
        told.only = tuple(self.classes.index(name) for name in wanted)
        Task.answering(self, **choices)
        return told

    @property
    def outputs(self) -> int:
        return len(self.classes)

    def monitor(self, validated: bool) -> str:
        return "val_map" if validated else "loss"

    def collate(self, samples: Sequence[Sample]) -> Batch:
        return Batch.of(samples)

    def augment(self, size: tuple[int, int]) -> Pipeline | None:
        # Gray outside: mirrored edges would show objects that have no boxes.
        spec = f"fill=gray,{self.recipe.augment}"
        classes, epochs = len(self.classes), self.recipe.epochs
        return Pipeline.parse(spec, size=size, classes=classes, epochs=epochs)

    def steps(self, network: Any, batch: Batch) -> Iterator[tuple[str, dict[str, Tensor]]]:
        if batch.instances is None:
            raise SigakError(
                "detection learns from boxes, and these pictures have none; give a data.yaml "
                "(YOLO), an instances .json (COCO) or a Pascal VOC folder"
            )
        yield "main", network(batch.images, [_learnt(one) for one in batch.instances])

    def predict(self, network: Any, batch: Batch) -> list[Detections]:
        """network: an engine, which also knows the module that reads its raw output."""
        size = (int(batch.images.shape[2]), int(batch.images.shape[3]))
        raw = _on_cpu(network(batch.images))
        detector = network.network
        found = detector.decode(raw, size, self.conf)
        iou = 1.0 if detector.finished else self.iou or detector.nms_iou
        return [
            Detections(source, self._finish(one, iou, matrix, frame), tuple(self.classes), frame)
            for one, source, matrix, frame in zip(
                found, batch.sources, batch.matrix.cpu(), batch.sizes, strict=True
            )
        ]

    def _finish(
        self, found: Instances, iou: float, matrix: Tensor, frame: tuple[int, int]
    ) -> Instances:
        """Candidates on the canvas -> the best of them in the file's frame."""
        if self.only:
            found = found[torch.isin(found.labels, torch.tensor(self.only))]
        if found.scores is None:
            raise SigakError("a detector's decode must give scores")
        kept = found[nms(found.boxes, found.scores, found.labels, iou, _MOST)]
        back = torch.linalg.inv(matrix)
        boxes = clip(transform_boxes(kept.boxes.double(), back), frame)
        masks = None if kept.soft is None else kept.soft.decided(boxes, back, frame)
        return replace(kept, boxes=boxes, masks=masks, soft=None)

    def metric(self) -> Average:
        return Average(self.classes)

    def draw(self, image: np.ndarray, result: Detections) -> np.ndarray:
        """`image` (H, W, 3) as the file has it."""
        labels = result.instances.labels.tolist()
        captions = [
            f"{result.classes[k]} {score:.0%}"
            for k, score in zip(labels, result.scores.tolist(), strict=True)
        ]
        if result.instances.ids is not None:
            ids = result.instances.ids.tolist()
            captions = [f"#{number} {words}" for number, words in zip(ids, captions, strict=True)]
        if result.instances.masks is not None:
            image = draw.masks(image, result.instances.masks, labels)
        return draw.boxes(image, result.instances.boxes.numpy(), captions, labels)

    def save(
        self, results: Sequence[Detections], folder: Path, forms: Sequence[str] = ()
    ) -> list[Path]:
        """predictions.json, as --json prints it; form "txt": labels/NAME.txt, one a picture, as
        YOLO writes them with the score behind; form "coco": coco.json, a COCO result file, masks as
        run-length codes.
        """
        folder.mkdir(parents=True, exist_ok=True)
        texts = {"predictions.json": _json([r.asdict() for r in results])}
        if "coco" in forms:
            texts["coco.json"] = _json(coco_rows(results))
        if "txt" in forms:
            (folder / "labels").mkdir(exist_ok=True)
            names = unique_stems([result.source for result in results])
            for name, result in zip(names, results, strict=True):
                texts[f"labels/{name}.txt"] = yolo_lines(result)
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
        return [folder / name for name in texts]


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def yolo_lines(result: Detections) -> str:
    """The boxes as lines of "class x y width height score", shares of the picture's sides; with
    masks "class x1 y1 x2 y2 ... score", the largest part of each.
    """
    height, width = result.size
    if result.instances.masks is not None:
        return _yolo_outlines(result)
    centres = xyxy_to_cxcywh(result.instances.boxes.double())
    shares = centres / torch.tensor([width, height, width, height], dtype=torch.float64)
    rows = zip(result.instances.labels.tolist(), shares.tolist(), result.scores.tolist())
    return "".join(
        f"{k} {' '.join(f'{v:.6f}' for v in box)} {score:.6f}\n" for k, box, score in rows
    )


def _yolo_outlines(result: Detections) -> str:
    height, width = result.size
    lines = []
    labels, scores = result.instances.labels.tolist(), result.scores.tolist()
    found = polygons_of(result.instances.masks) if result.instances.masks is not None else []
    for k, score, parts in zip(labels, scores, found, strict=True):
        solid = [part for part in parts if len(part) >= 3]
        if solid:
            shares = max(solid, key=_surface) / [width, height]
            lines.append(f"{k} {' '.join(f'{v:.6f}' for v in shares.ravel())} {score:.6f}\n")
    return "".join(lines)


def _surface(polygon: np.ndarray) -> float:
    """Square pixels within a polygon (K, 2) that does not cross itself."""
    x, y = polygon.T
    return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def coco_rows(results: Sequence[Detections]) -> list[dict[str, Any]]:
    """The boxes, and masks, as COCO's result files have them; image_id is the picture's file name
    without its ending, as a number where it is one, and category_id counts from 0 in the
    checkpoint's order; file_name and category_name tell which they are in any other numbering.
    """
    rows = []
    for stem, result in zip(unique_stems([r.source for r in results]), results, strict=True):
        image_id = int(stem) if stem.isdecimal() else stem
        known = {"image_id": image_id, "file_name": result.source}
        boxes = xyxy_to_xywh(result.instances.boxes.double()).tolist()
        found = [
            known
            | {"category_id": k, "category_name": result.classes[k], "bbox": box, "score": score}
            for k, box, score in zip(
                result.instances.labels.tolist(), boxes, result.scores.tolist(), strict=True
            )
        ]
        if result.instances.masks is not None:
            for code, row in zip(codes(result.instances.masks), found, strict=True):
                row["segmentation"] = code
        rows += found
    return rows


def _learnt(instances: Instances) -> Instances:
    """Without the crowds, which no detector learns from."""
    return instances if instances.crowd is None else instances[~instances.crowd]


def _on_cpu(raw: Any) -> Any:
    return raw.float().cpu() if isinstance(raw, Tensor) else [_on_cpu(part) for part in raw]


class Average:
    """`metrics.Detection` fed with results and batches."""

    def __init__(self, classes: Sequence[str]) -> None:
        self.measure = metrics.Detection(classes)

    def update(self, results: Sequence[Detections], batch: Batch) -> None:
        """Take in the results of one batch."""
        if batch.truth is None:
            raise SigakError("average precision needs pictures with boxes, and these have none")
        for result, truth in zip(results, batch.truth, strict=True):
            self.measure.add(result.instances, truth, result.source)

    def merge(self, other: Average) -> None:
        """Take in what another process found."""
        self.measure.merge(other.measure)

    def compute(self, detail: bool = True) -> dict[str, Any]:
        """See `metrics.Detection.compute`."""
        found: dict[str, Any] = self.measure.compute(detail)
        return found if detail else {name: found[name] for name in _FOLLOWED if name in found}


TASK = Detect
