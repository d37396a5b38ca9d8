"""Prompts: points and boxes say which object is meant, masks answer; or everything is asked for.

The network is a `Sam`: it embeds a picture, and answers prompts about the embedding. Prompts and
masks are in pixels of the file. It learns from objects with masks as in Kirillov et al. 2023,
appendix A: see `sigak.tasks._lesson`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from sigak import draw
from sigak.asking import Prompts
from sigak.augment.pipeline import Pipeline
from sigak.io import image as images
from sigak.ops.outlines import code_of, run_lengths
from sigak.ops.regions import Enlargement, Region
from sigak.structures import Batch, Instances, Sample, SigakError
from sigak.tasks import Task, unique_stems
from sigak.tasks._everything import Found, everything, precise
from sigak.tasks._lesson import Overlap, lesson, middle, planes_of

__all__ = ["TASK", "Prompt", "Question", "Segment", "Segments", "answer", "coco_rows", "questions"]

_TOGETHER = 16  # questions of one form that are answered at once
_SIMPLE = "sam: say what is meant with --point X,Y, --box X1,Y1,X2,Y2 or --everything"


@dataclass(frozen=True)
class Question:
    """What is meant by one object: points [(x, y, on)], on 1 for the object and 0 for what is not;
    box (x1, y1, x2, y2); mask (h, w) float logits of an earlier answer. In pixels of the file.
    """

    points: tuple[tuple[float, float, int], ...] = ()
    box: tuple[float, float, float, float] | None = None
    mask: np.ndarray | None = None


@dataclass(frozen=True)
class Segment:
    """One mask: its region in the file, the predicted IoU; what was asked; coarse logits (h, w),
    which a further question may carry on from; of --everything the crop (x1, y1, x2, y2).
    """

    region: Region
    quality: float
    question: Question
    coarse: np.ndarray | None = None
    crop: tuple[int, int, int, int] | None = None


@dataclass(frozen=True)
class Segments:
    """The masks of one picture of `size` (H, W); origin is what it was read from."""

    source: str
    size: tuple[int, int]
    segments: list[Segment]
    origin: object = field(default=None, compare=False)

    def __len__(self) -> int:
        return len(self.segments)

    def __str__(self) -> str:
        """How many, and the best of them, as "3 masks, the best 97.1% (12,345 pixels)"."""
        if not self.segments:
            return "nothing found"
        best = max(self.segments, key=lambda one: one.quality)
        words = "1 mask" if len(self) == 1 else f"{len(self)} masks, the best"
        return f"{words} {best.quality:.1%} ({best.region.area:,} pixels)"

    @property
    def masks(self) -> np.ndarray:
        """(N, H, W) bool."""
        found = [one.region.mask(self.size) for one in self.segments]
        return np.stack(found) if found else np.zeros((0, *self.size), bool)

    def asdict(self) -> dict[str, Any]:
        """{source, size [H, W], objects}: Segment Anything's records, segmentation as COCO's packed
        run lengths and bbox as x, y, width, height between the middles of the outermost pixels.
        """
        objects = [self._record(one) for one in self.segments]
        return {"source": self.source, "size": list(self.size), "objects": objects}

    def _record(self, one: Segment) -> dict[str, Any]:
        x1, y1, x2, y2 = one.region.box
        wide, high = max(0, x2 - x1 - 1), max(0, y2 - y1 - 1)
        record: dict[str, Any] = {
            "segmentation": _code(one.region, self.size),
            "area": one.region.area,
            "bbox": [float(v) for v in (x1, y1, wide, high)],
            "predicted_iou": one.quality,
            "point_coords": [list(point[:2]) for point in one.question.points],
            "stability_score": one.region.stability,
        }
        if one.question.box is not None:
            record["box"] = list(one.question.box)
        if one.crop is not None:
            x1, y1, x2, y2 = one.crop
            record["crop_box"] = [float(v) for v in (x1, y1, x2 - x1, y2 - y1)]
        return record


@final
class Prompt(Task):
    """See the module. asked: the prompts that `answering` was given."""

    name = "prompt"
    needs = ("objects", "masks")
    on_file = True
    agnostic = True
    asked: Prompts | None = None
    wanted: tuple[Question, ...] = ()

    def answering(self, **choices: Any) -> Prompt:
        """The same task with predict's choices, the fields of `Prompts`."""
        told = copy(self)
        known = Prompts.__dataclass_fields__
        own = {name: choices.pop(name) for name in list(choices) if name in known}
        Task.answering(self, **choices)
        told.asked = Prompts(**own)
        told.wanted = tuple(questions(told.asked))
        return told

    @property
    def outputs(self) -> int:
        return 1

    def monitor(self, validated: bool) -> str:
        return "val_box_iou" if validated else "loss"

    def collate(self, samples: Sequence[Sample]) -> Batch:
        return Batch.of(samples)

    def augment(self, size: tuple[int, int]) -> Pipeline | None:
        spec, epochs = f"fill=gray,{self.recipe.augment}", self.recipe.epochs
        return Pipeline.parse(spec, size=size, classes=len(self.classes), epochs=epochs)

    def steps(self, network: Any, batch: Batch) -> Iterator[tuple[str, dict[str, Tensor]]]:
        yield "main", network(batch.images, lesson(batch))

    def predict(self, network: Any, batch: Batch) -> list[Segments]:
        """network: an engine, which also knows the module that answers."""
        asked = self.asked or Prompts()
        if asked.everything:
            return [self._everything(network, batch, place) for place in range(len(batch))]
        if batch.truth is not None and not self.wanted:  # to be measured
            wanted = [_of_truth(truth) for truth in batch.truth]
        elif self.wanted:
            wanted = [list(self.wanted)] * len(batch)
        else:
            raise SigakError(_SIMPLE)
        with precise(asked.half, batch.images.device):
            embedded = network(batch.images).float()
        inner = (int(batch.images.shape[2]), int(batch.images.shape[3]))
        found = []
        for place, size in enumerate(batch.sizes):
            frames = (inner, size, batch.matrix[place].cpu().numpy())
            _refuse_prepared(*frames)
            one = embedded[place : place + 1]
            masks = answer(network.network, one, wanted[place], frames, every=asked.all_masks)
            found.append(Segments(batch.sources[place], size, masks, _origin(batch, place)))
        return found

    def _everything(self, engine: Any, batch: Batch, place: int) -> Segments:
        """Of the picture as it lies in the file: crops are taken from there."""
        origin = _origin(batch, place)
        if self.asked is None or origin is None:
            raise SigakError("--everything looks at pictures as they lie in their files")
        inner = (int(batch.images.shape[2]), int(batch.images.shape[3]))
        _refuse_prepared(inner, batch.sizes[place], batch.matrix[place].cpu().numpy())
        pixels = images.read(getattr(origin, "pixels", origin))
        network = engine.network
        preparation = images.Preparation(network.size, "rgb", "longest", resample="antialias")
        found = everything(network, pixels, preparation, self.asked, engine.device)
        size = (pixels.shape[0], pixels.shape[1])
        return Segments(batch.sources[place], size, [_segment(one) for one in found], origin)

    def metric(self) -> Overlap:
        return Overlap()

    def draw(self, image: np.ndarray, result: Segments) -> np.ndarray:
        """`image` (H, W, 3) as the file has it, every mask in a colour of its own."""
        regions = [one.region for one in result.segments]
        order = sorted(range(len(regions)), key=lambda i: -regions[i].area)
        canvas = np.array(image)
        for i in order:  # the smallest on top
            x1, y1, x2, y2 = regions[i].box
            part, inside = canvas[y1:y2, x1:x2], regions[i].patch
            color = np.array(draw.color_of(i), np.float32)
            part[inside] = np.rint(0.5 * part[inside] + 0.5 * color)
            part[_rim(inside)] = color
        return canvas

    def save(
        self, results: Sequence[Segments], folder: Path, forms: Sequence[str] = ()
    ) -> list[Path]:
        """predictions.json, as --json prints it; form "coco": coco.json, a COCO result file with
        masks; "cutouts": cutouts/NAME-NUMBER.png, the objects alone on a transparent ground.
        """
        if "txt" in forms:
            raise SigakError("--txt is for detectors; --coco writes masks")
        folder.mkdir(parents=True, exist_ok=True)
        texts = {"predictions.json": [r.asdict() for r in results]}
        if "coco" in forms:
            texts["coco.json"] = coco_rows(results)
        for name, value in texts.items():
            text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
            (folder / name).write_text(text, encoding="utf-8")
        paths = [folder / name for name in texts]
        if "cutouts" in forms:
            names = unique_stems([result.source for result in results])
            for name, result in zip(names, results, strict=True):
                paths += _cut_out(result, folder / "cutouts" / name)
        return paths


def coco_rows(results: Sequence[Segments]) -> list[dict[str, Any]]:
    """The masks as COCO's result files have them: category_id is 1, boxes end behind the last
    pixel; image_id is the file's name without its ending, as a number where it is one.
    """
    rows = []
    for result in results:
        stem = Path(result.source).stem
        for one in result.segments:
            x1, y1, x2, y2 = one.region.box
            rows.append(
                {
                    "image_id": int(stem) if stem.isdecimal() else stem,
                    "category_id": 1,
                    "segmentation": _code(one.region, result.size),
                    "bbox": [float(v) for v in (x1, y1, x2 - x1, y2 - y1)],
                    "score": one.quality,
                }
            )
    return rows


def _code(region: Region, size: tuple[int, int]) -> dict[str, Any]:
    """The mask as COCO's run lengths, packed in text."""
    code = code_of(run_lengths(region.patch, *region.corner, size))
    return {"size": list(size), "counts": code["counts"].decode()}


def _cut_out(result: Segments, stem: Path) -> list[Path]:
    origin = getattr(result.origin, "pixels", result.origin)
    pixels, paths = images.read(origin), []
    for number, one in enumerate(result.segments, 1):
        x1, y1, x2, y2 = one.region.box
        if one.region.area:
            ground = 255 * one.region.patch[..., None].astype(np.uint8)
            paths.append(stem.with_name(f"{stem.name}-{number:03d}.png"))
            images.save(paths[-1], np.concatenate([pixels[y1:y2, x1:x2], ground], axis=2))
    return paths


def _rim(inside: np.ndarray) -> np.ndarray:
    """The pixels of a mask that have a neighbour outside it."""
    framed = np.pad(inside, 1)
    core = framed[:-2, 1:-1] & framed[2:, 1:-1] & framed[1:-1, :-2] & framed[1:-1, 2:]
    rim: np.ndarray = inside & ~core
    return rim


def _refuse_prepared(inner: tuple[int, int], size: tuple[int, int], matrix: np.ndarray) -> None:
    """SigakError where a picture is not whole and upright on its canvas `inner` (H, W)."""
    whole = np.diag([inner[1] / size[1], inner[0] / size[0], 1.0])
    if not np.allclose(matrix, whole, rtol=0.02, atol=0.02):
        raise SigakError("prompts mean places of the file as it is; leave out --prepare")


def _of_truth(truth: Instances) -> list[Question]:
    """Of every true object its box, then its middle."""
    asked = []
    for plane in planes_of(truth).numpy():
        if plane.any():
            rows, columns = np.flatnonzero(plane.any(1)), np.flatnonzero(plane.any(0))
            x2, y2 = float(columns[-1]) + 1, float(rows[-1]) + 1
            asked.append(Question(box=(float(columns[0]), float(rows[0]), x2, y2)))
            asked.append(Question(((*middle(plane), 1),)))
    return asked


def _origin(batch: Batch, place: int) -> object:
    return None if batch.origins is None else batch.origins[place]


def _segment(found: Found) -> Segment:
    question = Question(((*found.point, 1),))
    return Segment(found.region, found.quality, question, None, found.crop)


# ------------------------------------------------------------------ questions


def questions(asked: Prompts, known: bool = False) -> list[Question]:
    """What the prompts mean: each box an object, or all points one object, with `apart` each its
    own; points beside one box belong to it. known: an earlier mask already says what is meant, so
    that points may all be off the object.
    """
    points = [_point(one) for one in asked.point]
    boxes = [_box(one) for one in asked.box]
    if asked.apart:
        if boxes or any(on != 1 for *_, on in points):
            raise SigakError(
                "--apart makes an object of every point: leave out --box and points with ,0"
            )
        return [Question((point,)) for point in points]
    if points and len(boxes) > 1:
        raise SigakError(
            f"points can refine one --box, received {len(boxes)}; ask for one object at a time"
        )
    if boxes:
        return [Question(tuple(points), box) for box in boxes]
    if points and not known and not any(on for *_, on in points):
        raise SigakError("at least one point must be on the object: add --point X,Y without ,0")
    return [Question(tuple(points))] if points else []


def _numbers(words: Any, flag: str, expected: str) -> list[float]:
    try:
        parts = words.split(",") if isinstance(words, str) else words
        found = [float(part) for part in parts]
    except (TypeError, ValueError):
        found = [math.nan]
    if not all(map(math.isfinite, found)):
        raise SigakError(f"{flag} must be {expected}, received {words!r}")
    return found


def _point(words: Any) -> tuple[float, float, int]:
    expected = "X,Y, or X,Y,0 for a point that is not on the object"
    numbers = _numbers(words, "--point", expected)
    if len(numbers) not in (2, 3) or (len(numbers) == 3 and numbers[2] not in (0, 1)):
        raise SigakError(f"--point must be {expected}, received {words!r}")
    return numbers[0], numbers[1], int(numbers[2]) if len(numbers) == 3 else 1


def _box(words: Any) -> tuple[float, float, float, float]:
    expected = "X1,Y1,X2,Y2 with X1 < X2 and Y1 < Y2"
    numbers = _numbers(words, "--box", expected)
    if len(numbers) != 4 or not (numbers[0] < numbers[2] and numbers[1] < numbers[3]):
        raise SigakError(f"--box must be {expected}, received {words!r}")
    return numbers[0], numbers[1], numbers[2], numbers[3]


def answer(
    network: Any,
    embedding: Tensor,
    asked: Sequence[Question],
    frames: tuple[tuple[int, int], tuple[int, int], np.ndarray],
    *,
    every: bool = False,
) -> list[Segment]:
    """The masks of one picture, embedding (1, d, h, w). frames: the (h, w) it has on the canvas,
    the (H, W) of its file, the (3, 3) matrix from there to the canvas.

    A question of one point could mean several things: of its three answers the best is taken, with
    `every` all are, of any question.
    """
    inner, size, matrix = frames
    coarse = 4 * int(embedding.shape[2])
    enlargement = Enlargement(coarse, network.size[0], inner, size)
    for question in asked:
        _refuse_outside(question, size)
    found: dict[int, list[Segment]] = {}
    for places in _alike(asked):
        parts = [_on_canvas(asked[place], matrix, coarse) for place in places]
        prompts = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        moved = {name: value.to(embedding.device) for name, value in prompts.items()}
        with torch.inference_mode():
            masks, quality = network.answer(embedding, network.asked(**moved))
        for place, mask, score in zip(places, masks.float().cpu(), quality.float().cpu()):
            found[place] = [
                Segment(enlargement.region(mask[i]), float(score[i]), asked[place], mask[i].numpy())
                for i in _chosen(asked[place], score, every)
            ]
    return [one for place in sorted(found) for one in found[place]]


def _alike(asked: Sequence[Question]) -> list[list[int]]:
    """Places of questions that are put the same way, a few together."""
    groups: dict[tuple[int, bool, bool], list[int]] = {}
    for place, one in enumerate(asked):
        form = (len(one.points), one.box is not None, one.mask is not None)
        groups.setdefault(form, []).append(place)
    return [
        group[i : i + _TOGETHER]
        for group in groups.values()
        for i in range(0, len(group), _TOGETHER)
    ]


def _chosen(question: Question, quality: Tensor, every: bool) -> list[int]:
    """Which of the four answers are meant."""
    if every:
        return [1, 2, 3]
    vague = len(question.points) == 1 and question.box is None and question.mask is None
    return [1 + int(quality[1:].argmax())] if vague else [0]


def _on_canvas(question: Question, matrix: np.ndarray, coarse: int) -> dict[str, Tensor]:
    def moved(places: Any) -> np.ndarray:
        pairs = np.asarray(places, float).reshape(-1, 2)
        return np.asarray(pairs @ matrix[:2, :2].T + matrix[:2, 2])

    found: dict[str, Tensor] = {}
    if question.points:
        on = [point[2] for point in question.points]
        found["points"] = torch.from_numpy(moved([p[:2] for p in question.points]))[None]
        found["labels"] = torch.tensor([on])
    if question.box is not None:
        found["boxes"] = torch.from_numpy(moved(question.box).reshape(1, 4))
    if question.mask is not None:
        if question.mask.shape != (coarse, coarse):
            raise SigakError(
                f"an earlier mask must be the coarse logits of an answer, {coarse}x{coarse}, "
                f"received {question.mask.shape}"
            )
        found["masks"] = torch.from_numpy(np.asarray(question.mask, np.float32))[None, None]
    return found


def _refuse_outside(question: Question, size: tuple[int, int]) -> None:
    height, width = size
    for x, y, _ in question.points:
        if not (0 <= x <= width and 0 <= y <= height):
            raise SigakError(
                f"the point {x:g},{y:g} is not on the picture, which is {width} wide and {height} "
                "high"
            )
    if question.box is not None:
        x1, y1, x2, y2 = question.box
        if x1 >= width or y1 >= height or x2 <= 0 or y2 <= 0:
            raise SigakError(
                f"the box {x1:g},{y1:g},{x2:g},{y2:g} is not on the picture, which is {width} wide "
                f"and {height} high"
            )
    if not (question.points or question.box is not None or question.mask is not None):
        raise SigakError(_SIMPLE)


TASK = Prompt
