"""Two domains: a set that is learnt with its truth, the source, and pictures of another kind that
shall be answered too, the target.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sigak.data import convert, load, pairs, provide
from sigak.data.records import Dataset, Record, Split
from sigak.io import image
from sigak.structures import SigakError

__all__ = ["TARGET", "joined", "read"]

TARGET = "target"  # the split of pictures that are learnt from without their truth


def read(spec: str | Path, needs: Sequence[str], **how: Any) -> Dataset:
    """The target that `spec` names: a set that `sigak.data.load` knows, or a folder of pictures
    (searched in depth) of which nothing is known. needs: the fields of `Sample` that a task asks
    for; how: as for `load`.
    """
    path = Path(spec).expanduser()
    wanted = "class_map" in needs
    if path.is_dir() and not pairs.recognize(path, wanted=wanted) and not convert.recognize(path):
        records = [Record(name) for name, _ in image.expand(path)]
        return Dataset(path.resolve().name, [], {"train": Split("train", records)})
    found = load(spec, needs=needs, **how)
    records = [record for split in found.splits.values() for record in split.records]
    outlined = any(any(r.objects.outlines or ()) for r in records if r.objects is not None)
    return provide(found, needs) if outlined else found


def joined(source: Dataset, target: Dataset) -> Dataset:
    """`source` with a split `TARGET`: the pictures of the target's "train", without their truth.

    Where the target has held-out pictures whose pixels have classes, they take the places of "val"
    and "test"; SigakError where these are not among the source's classes.
    """
    if "train" not in target.splits:
        raise SigakError(
            f"--target expects pictures to learn from, but {target.name} has only the splits "
            f"{', '.join(target.splits)}; name a folder of pictures"
        )
    held = {name: split for name, split in target.splits.items() if name != "train"}
    if target.kind == "class_map" and held:
        table = _places(target, source)
        held = {name: _relabelled(split, table) for name, split in held.items()}
    else:
        held = {name: split for name, split in source.splits.items() if name != "train"}
    bare = [Record(record.source, size=record.size) for record in target.splits["train"].records]
    unknown = Split(TARGET, bare, target.splits["train"].pixels)
    return replace(
        source,
        name=f"{source.name}-to-{target.name}",
        splits={"train": source.splits["train"], TARGET: unknown} | held,
        problems=source.problems + target.problems,
        root=None,  # they lie in two places
    )


def _places(target: Dataset, source: Dataset) -> np.ndarray:
    """(K,) int64: the source's label of each of the target's classes."""
    strange = [name for name in target.classes if name not in source.classes]
    if strange:
        raise SigakError(
            f"the class maps of the target {target.name} have classes that {source.name} has not: "
            f"{', '.join(strange[:5])}; name them alike, or give --target the pictures alone"
        )
    return np.array([source.classes.index(name) for name in target.classes], np.int64)


def _relabelled(split: Split, table: np.ndarray) -> Split:
    records = [
        replace(r, class_map=None if r.class_map is None else r.class_map.relabelled(table))
        for r in split.records
    ]
    return Split(split.name, records, split.pixels)
