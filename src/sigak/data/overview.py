"""A data set for people: counts, sizes, problems, and a sheet of its pictures."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

from sigak import draw
from sigak.data.classmaps import ClassMap
from sigak.data.records import Dataset, Record, Split, digest, keys
from sigak.data.splits import THREADS, shuffled
from sigak.io import image, volumes
from sigak.ops.outlines import masks_of
from sigak.structures import SigakError

__all__ = ["describe_text", "sheet", "summary"]

_MEASURED = 1000  # pictures per split whose headers tell the sizes
_SHOWN = 20  # problems listed for people; `summary` has them all


def summary(dataset: Dataset) -> dict[str, Any]:
    """What there is to know of a set, as values JSON can hold.

    name, kind, root, digest, color; classes: a list of {"name", one count per split}, of pictures,
    in a set with boxes of objects, and with class maps of pictures that show the class, among at
    most 1,000 of them; splits: counts of pictures; total; height and width:
    {"min", "median", "max"} in pixels, of 1,000 pictures per split where there are more; depth: the
    same of the slices, of volumes alone; problems: a list of {"source", "reason", "action"}.
    """
    counts = {name: _counts(dataset, split) for name, split in dataset.splits.items()}
    sizes = np.array(_sizes(dataset))
    return {
        "name": dataset.name,
        "kind": dataset.kind,
        "root": None if dataset.root is None else str(dataset.root),
        "digest": digest(dataset),
        "color": dataset.color,
        "classes": [
            {"name": name} | {split: counts[split][label] for split in counts}
            for label, name in enumerate(dataset.classes)
        ],
        "splits": {name: len(split) for name, split in dataset.splits.items()},
        "total": sum(len(split) for split in dataset.splits.values()),
        **_depths(dataset),
        "height": _spread(sizes[:, 0]),
        "width": _spread(sizes[:, 1]),
        "problems": [asdict(problem) for problem in dataset.problems],
    }


def _counts(dataset: Dataset, split: Split) -> list[int]:
    classes = len(dataset.classes)
    if dataset.kind not in ("class_map", "volume"):
        return np.bincount(split.object_labels, minlength=classes).tolist()  # type: ignore[no-any-return]
    maps = [r.class_map for r in split.records[:: -(-len(split) // _MEASURED)]]
    with ThreadPoolExecutor(THREADS) as pool:
        seen = pool.map(lambda one: _shown(one, classes), filter(None, maps))
        return np.sum([np.zeros(classes, np.int64), *seen], axis=0).tolist()  # type: ignore[no-any-return]


def _shown(class_map: ClassMap, classes: int) -> np.ndarray:
    """(K,) 1 for each class that a map shows; none of a map that cannot be read."""
    try:
        values = class_map.read()
    except SigakError:
        return np.zeros(classes, np.int64)
    return (np.bincount(values.ravel(), minlength=256)[:classes] > 0).astype(np.int64)


def _sizes(dataset: Dataset) -> list[tuple[int, int]]:
    """(H, W) of pictures from all over each split; of a decoded one, which has one size, once."""
    sizes: list[tuple[int, int]] = []
    for split in dataset.splits.values():
        if split.pixels is not None:
            sizes.append((split.pixels.shape[-3], split.pixels.shape[-2]))
            continue
        step = -(-len(split) // _MEASURED)
        looked_at = split.records[::step]
        sizes += [record.size for record in looked_at if record.size]
        sources = [record.source for record in looked_at if not record.size]
        with ThreadPoolExecutor(THREADS) as pool:
            headers = pool.map(image.describe, sources)
            sizes += [tuple(header["size"]) for header in headers]
    return sizes


def _depths(dataset: Dataset) -> dict[str, dict[str, int]]:
    """How many slices the volumes have; nothing of pictures."""
    depths = [record.depth for split in dataset.splits.values() for record in split.records]
    return {"depth": _spread(np.array(depths))} if dataset.kind == "volume" else {}


def _spread(values: np.ndarray) -> dict[str, int]:
    return {
        "min": int(values.min()),
        "median": int(np.median(values)),
        "max": int(values.max()),
    }


def describe_text(dataset: Dataset, width: int = 100) -> str:
    """`summary` for people: a table of classes, `width` letters wide, and the problems."""
    from rich.console import Console
    from rich.table import Table

    facts = summary(dataset)
    table = Table("class", box=None, pad_edge=False)
    for name in facts["splits"]:
        table.add_column(name, justify="right")
    for row in facts["classes"]:
        table.add_row(*(str(cell) for cell in row.values()))
    if facts["kind"] == "objects":
        sums = [sum(row[name] for row in facts["classes"]) for name in facts["splits"]]
        table.add_row("all objects", *map(str, sums), style="bold")
    whole = "pictures" if facts["kind"] == "objects" else "all"
    table.add_row(whole, *(str(count) for count in facts["splits"].values()), style="bold")

    things = "volumes" if facts["kind"] == "volume" else "pictures"
    text = StringIO()
    text.write(
        f"{facts['name']}: {facts['total']:,} {things}, {_sides(facts)}, {facts['color']}\n\n"
    )
    Console(file=text, width=width, markup=False, emoji=False, color_system=None).print(table)
    problems = facts["problems"]
    if problems:
        text.write(f"\nproblems ({len(problems):,})\n")
        for problem in problems[:_SHOWN]:
            text.write(f"  {problem['source']}: {problem['reason']} ({problem['action']})\n")
        if len(problems) > _SHOWN:
            text.write(f"  and {len(problems) - _SHOWN:,} more\n")
    return text.getvalue()


def _sides(facts: dict[str, Any]) -> str:
    """Sizes in words, such as "32 high x 32 wide" or "90-480 (median 240) high x 32 wide"; of
    volumes "16 deep" before it.
    """

    def side(spread: dict[str, int]) -> str:
        low, middle, high = spread["min"], spread["median"], spread["max"]
        return str(low) if low == high else f"{low}-{high} (median {middle})"

    deep = f"{side(facts['depth'])} deep x " if "depth" in facts else ""
    return f"{deep}{side(facts['height'])} high x {side(facts['width'])} wide"


def sheet(dataset: Dataset, rows: int = 4, columns: int = 8, seed: int = 0) -> np.ndarray:
    """(H, W, 3) uint8: up to rows x columns pictures with their class names or boxes, the classes
    in turn.

    The pictures are of the "train" split, or the first there is; of volumes four are shown.
    """
    side = 112 if dataset.kind == "label" else 240
    if dataset.kind == "volume":
        rows, columns, side = 2, 2, 640
    split = dataset.splits.get("train", next(iter(dataset.splits.values())))
    turns: dict[int, int] = {}
    order = []
    labels = split.labels
    for index in shuffled(keys(dataset, split), seed):
        label = int(labels[index])
        turns[label] = turns.get(label, -1) + 1
        order.append((turns[label], label, index))
    chosen = [index for _, _, index in sorted(order)[: rows * columns]]
    return draw.grid(
        [_look(split, i, dataset) for i in chosen],
        [_caption(split.records[i], dataset.classes) for i in chosen],
        columns,
        side,
    )


def _look(split: Split, index: int, dataset: Dataset) -> np.ndarray:
    """A picture of the split (H, W, 3), its objects or classes drawn on it."""
    classes = dataset.classes
    record = split.records[index]
    source = record.source if split.pixels is None else split.pixels[index]
    if record.depth and record.class_map is not None:
        values = volumes.read(source if isinstance(source, str) else source[..., 0])
        voxels, labels = volumes.scaled(values, record.source), record.class_map.read()
        return draw.volume(
            voxels[..., None], labels, classes, dataset.palette or draw.palette(classes)
        )
    pixels = image.read(source)
    if record.class_map is not None:
        colors = dataset.palette or draw.palette(classes)
        return draw.class_map(pixels, record.class_map.read(), classes, colors)
    if record.objects is None:
        return pixels
    objects = record.objects
    names = [classes[k] for k in objects.labels]
    if any(objects.outlines or ()):
        masks = masks_of(objects.outlines or [], (pixels.shape[0], pixels.shape[1]))
        pixels = draw.masks(pixels, masks, objects.labels)
    return draw.boxes(pixels, objects.boxes, names, objects.labels)


def _caption(record: Record, classes: list[str]) -> str:
    if record.class_map is not None:
        return Path(record.source).stem
    if record.objects is None:
        return classes[record.label]
    return f"{len(record.objects)} object{'s' * (len(record.objects) != 1)}"
