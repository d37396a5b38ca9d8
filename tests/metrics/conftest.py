"""Random pictures with objects, crowds and detections, as COCO's lists and as our Instances."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sigak.metrics import Detection
from sigak.structures import Instances


@pytest.fixture
def made_up():
    """made_up(pictures, classes, seed) -> (COCO annotations, COCO detections).

    Objects from a few pixels to most of the picture, some of them crowds, areas that are not the
    box's, pictures without objects or detections, doubles, wrong classes, scores with many ties,
    and one picture with more detections of a class than count.
    """

    def make(pictures: int, classes: int = 8, seed: int = 0) -> tuple[dict, list]:
        rng = np.random.default_rng(seed)
        annotations, found = [], []
        for picture in range(1, pictures + 1):
            objects = _boxes(rng, rng.poisson(6) if rng.random() > 0.1 else 0)
            labels = rng.integers(1, classes + 1, len(objects))
            for box, label in zip(objects, labels):
                row = {
                    "id": len(annotations) + 1,
                    "image_id": picture,
                    "category_id": int(label),
                    "bbox": box.tolist(),
                    "area": float(box[2] * box[3] * rng.uniform(0.4, 1)),
                    "iscrowd": int(rng.random() < 0.08),
                }
                annotations.append(row)
            if rng.random() < 0.05:
                continue
            near = np.repeat(np.arange(len(objects)), rng.integers(0, 4, len(objects)))
            close = (
                objects[near] + rng.normal(0, 0.08, (len(near), 4)) * objects[near][:, [2, 3] * 2]
            )
            close[:, 2:] = close[:, 2:].clip(1)
            named = np.where(rng.random(len(near)) < 0.15, rng.integers(1, classes + 1, len(near)),
                             labels[near])  # fmt: skip
            astray = _boxes(rng, rng.poisson(3) if picture != 2 else 150)
            wild = (
                np.full(len(astray), 1)
                if picture == 2
                else rng.integers(1, classes + 1, len(astray))
            )
            scores = rng.random(len(near) + len(astray)).round(2)
            for box, label, score in zip(
                np.concatenate([close, astray]), np.concatenate([named, wild]), scores
            ):
                found.append(
                    {"image_id": picture, "category_id": int(label), "bbox": box.tolist(),
                     "score": float(score)}
                )  # fmt: skip
        known = {
            "images": [{"id": p, "width": 400, "height": 400} for p in range(1, pictures + 1)],
            "categories": [{"id": c, "name": f"class {c}"} for c in range(1, classes + 1)],
            "annotations": annotations,
        }
        return known, found

    return make


def _boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    sides = np.exp(rng.uniform(np.log(6), np.log(250), (count, 2)))
    return np.concatenate([rng.uniform(0, 300, (count, 2)), sides], axis=1)


@pytest.fixture
def fed():
    """fed(COCO annotations, COCO detections) -> a Detection that was given every picture."""

    def feed(known: dict, found: list) -> Detection:
        metric = Detection([row["name"] for row in known["categories"]])
        for picture in known["images"]:
            objects = [row for row in known["annotations"] if row["image_id"] == picture["id"]]
            rows = [row for row in found if row["image_id"] == picture["id"]]
            truth = Instances(
                **_instances(objects),
                crowd=torch.tensor([row["iscrowd"] > 0 for row in objects], dtype=torch.bool),
                areas=torch.tensor([row["area"] for row in objects], dtype=torch.float64),
            )
            scores = torch.tensor([row["score"] for row in rows], dtype=torch.float64)
            predicted = Instances(**_instances(rows), scores=scores)
            metric.add(predicted, truth, f"{picture['id']:06}.jpg")
        return metric

    return feed


def _instances(rows: list) -> dict[str, torch.Tensor]:
    boxes = torch.tensor([row["bbox"] for row in rows], dtype=torch.float64).reshape(-1, 4)
    return {
        "boxes": torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1),
        "labels": torch.tensor([row["category_id"] - 1 for row in rows], dtype=torch.int64),
    }
