"""Evaluate: a checkpoint and labelled pictures in, the figures of the field out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sigak import data
from sigak.data import Dataset, Record, Split
from sigak.data.feed import Feed, Pictures
from sigak.data.patches import Volumes
from sigak.prediction import Assessment, Predictor, assess, load, pixels_of
from sigak.structures import UNKNOWN, SigakError
from sigak.tasks import Task

__all__ = ["evaluate", "mistakes"]


def evaluate(
    checkpoint: str | Path | Predictor,
    dataset: str | Path | Dataset,
    *,
    split: str = "",
    device: str = "auto",
    batch: int = 64,
    download: bool = False,
    engine: str = "",
) -> dict[str, Any]:
    """Measure `checkpoint` on a split of `dataset`; the figures of the task's metric, and which
    split it was.

    split: train, val, test or all. By default the test split; without one the pictures that were
    held out when the checkpoint was trained on this very data; all of them if the data is new to
    it. engine: see `sigak.load`.
    """
    predictor = load(checkpoint, device=device, engine=engine)
    trained = predictor.header["recipe"]
    needs = predictor.task.needs
    if not isinstance(dataset, Dataset):
        how = {"val": trained.get("val", 0.1), "seed": trained.get("seed", 0)}
        how["single_class"] = predictor.header["data"].get("single_class", False)
        dataset = data.load(dataset, download=download, needs=needs, **how)
    dataset = data.provide(dataset, needs)
    name = split or _default_split(predictor, dataset)
    chosen = _pick(dataset, name)
    if not predictor.task.agnostic:
        chosen = _relabel(chosen, dataset.classes, predictor.classes)
    kind = Volumes if predictor.preparation.depth else Pictures
    pictures = kind(
        chosen,
        predictor.preparation,
        predictor.task.collate,
        device=predictor.engine.device,
        masks="masks" in predictor.task.needs,
    )
    feed = Feed(pictures.load(), batch=batch)
    found = assess(predictor.engine, predictor.task, feed)
    figures = {"data": dataset.name, "split": name, **found.metric.compute()}
    figures["problems"] = [p.__dict__ for p in dataset.problems + pictures.problems]
    return figures


def _default_split(predictor: Predictor, dataset: Dataset) -> str:
    if "test" in dataset.splits:
        return "test"
    known = predictor.header["data"].get("digest") == data.digest(dataset)
    return "val" if known and "val" in dataset.splits else "all"


def _pick(dataset: Dataset, name: str) -> Split:
    if name == "all":
        parts = list(dataset.splits.values())
        pixels = None if parts[0].pixels is None else np.concatenate([p.pixels for p in parts])  # type: ignore[misc]
        return Split(name, [r for p in parts for r in p.records], pixels)
    if name not in dataset.splits:
        raise SigakError(
            f"{dataset.name} has no split {name!r}; it has {', '.join(dataset.splits)}, or say "
            f"--split all"
        )
    return dataset.splits[name]


def _relabel(split: Split, given: list[str], known: list[str]) -> Split:
    """The split with the labels of the checkpoint's class order; classes it does not know are
    refused.
    """
    if given == known:
        return split
    strange = [c for c in given if c not in known]
    if strange:
        raise SigakError(
            f"the data has classes the checkpoint does not know: {', '.join(strange[:5])}; "
            f"it was trained on {', '.join(known[:10])}"
        )
    table = np.array([known.index(c) for c in given], np.int64)
    records = [_renumbered(r, table) for r in split.records]
    return Split(split.name, records, split.pixels)


def _renumbered(record: Record, table: np.ndarray) -> Record:
    """The record with its class indices looked up in `table`."""
    if record.objects is not None:
        objects = replace(record.objects, labels=table[record.objects.labels])
        return replace(record, objects=objects)
    if record.class_map is not None:
        return replace(record, class_map=record.class_map.relabelled(table))
    return record if record.label == UNKNOWN else replace(record, label=int(table[record.label]))


def mistakes(found: Assessment, task: Task, feed: Feed, most: int = 24) -> list[dict[str, Any]]:
    """The worst answers with their pictures, for the report."""
    worst = task.mistakes(found.results, found.labels)[:most]
    if not worst:
        return []
    pictures = pixels_of(feed, [found.positions[place] for place, _ in worst])
    return [{**facts, "image": picture} for (_, facts), picture in zip(worst, pictures)]
