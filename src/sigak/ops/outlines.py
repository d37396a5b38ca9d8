"""Outlines of objects, as annotation files state them, and masks: from one to the other, and masks
through a matrix.

An outline is a list of polygons, (K, 2) float x, y in continuous pixels each, or a run-length code
of COCO: {"size": [H, W], "counts": ...} with the lengths of runs down the columns, zeros first, as
a list or packed in text. Polygons become pixels by COCO's own rule, so that areas and overlaps are
those of its tools: edges are followed on a grid five times as fine
(https://github.com/cocodataset/cocoapi, BSD-2-Clause; the rule comes with hotcoco).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import hotcoco.mask
import numpy as np

from sigak.errors import SigakError
from sigak.ops.warp import warp_cpu
from sigak.structures import Masks

__all__ = [
    "Outline",
    "code_of",
    "codes",
    "cut",
    "filled",
    "masks_of",
    "move_masks",
    "polygons_of",
    "run_lengths",
]

Outline = list[np.ndarray] | dict[str, Any]
Size = tuple[int, int]
_Piece = tuple[np.ndarray, tuple[int, int]]  # a patch, and x, y of its first pixel

_NOTHING = np.zeros((0, 0), bool)


# ------------------------------------------------------------------ outlines to masks


def masks_of(outlines: Sequence[Outline], size: Size, matrix: np.ndarray | None = None) -> Masks:
    """The masks of outlines on a picture of `size` (H, W).

    With a (3, 3) `matrix` polygons are moved by it before they are filled; codes, which are of the
    picture as it lies in the file, are resampled by nearest pixel. SigakError where a code is
    damaged or, without a matrix, of another size.
    """
    pieces = [
        _decoded(outline, size, matrix)
        if isinstance(outline, dict)
        else filled([p if matrix is None else _moved(p, matrix) for p in outline], size)
        for outline in outlines
    ]
    corners = np.array([corner for _, corner in pieces], np.int64).reshape(-1, 2)
    return Masks([patch for patch, _ in pieces], corners, size)


def _moved(polygon: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    moved = polygon @ matrix[:2, :2].T + matrix[:2, 2]
    if (matrix[2] != (0.0, 0.0, 1.0)).any():
        moved = moved / (polygon @ matrix[2, :2].T + matrix[2, 2])[:, None]
    return np.asarray(moved)


def filled(polygons: Sequence[np.ndarray], size: Size) -> _Piece:
    """What is in at least one of the polygons, as COCO fills them."""
    flat = [polygon.ravel().tolist() for polygon in polygons if len(polygon) >= 3]
    if not flat:
        return _NOTHING, (0, 0)
    # On the whole picture: a window around the object would round some corners the other way.
    return _opened(hotcoco.mask.merge(hotcoco.mask.frPyObjects(flat, *size)))


def _opened(code: dict[str, Any]) -> _Piece:
    """A packed code as a patch."""
    left, top, width, height = (int(side) for side in hotcoco.mask.to_bbox(code).tolist())
    if not width * height:
        return _NOTHING, (0, 0)
    plane = hotcoco.mask.decode(code)
    patch = np.ascontiguousarray(plane[top : top + height, left : left + width])
    return patch.astype(bool), (left, top)


def code_of(outline: dict[str, Any]) -> dict[str, Any]:
    """A run-length code in its packed form; SigakError where its runs do not fill its size."""
    try:
        height, width = (int(side) for side in outline["size"])
        counts = outline["counts"]
        if isinstance(counts, list):
            if min(counts, default=0) < 0 or sum(counts) != height * width:
                raise ValueError(f"its runs make {sum(counts)} pixels, its size {height} x {width}")
            packed = hotcoco.mask.frPyObjects({"size": [height, width], "counts": counts}, height,
                                              width)  # fmt: skip
        else:
            packed = {"size": [height, width], "counts": counts}
            hotcoco.mask.area(packed)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise SigakError(f"a run-length code cannot be read: {error}") from None
    return dict(packed)


def _decoded(outline: dict[str, Any], size: Size, matrix: np.ndarray | None) -> _Piece:
    code = code_of(outline)
    if matrix is None and tuple(code["size"]) != tuple(size):
        height, width = code["size"]
        raise SigakError(
            f"a run-length code is of {height} x {width} pixels, and its picture of {size[0]} x "
            f"{size[1]}"
        )
    patch, corner = _opened(code)
    return (patch, corner) if matrix is None else _resampled(patch, corner, matrix, size)


# ------------------------------------------------------------------ masks to outlines


def run_lengths(patch: np.ndarray, left: int, top: int, size: Size) -> dict[str, Any]:
    """The code, with its counts as a list, of a patch (h, w) bool at (left, top) of a picture of
    `size` (H, W).
    """
    height, width = patch.shape
    framed = np.zeros((width + 1, height + 1), bool)  # a zero before and after every column
    framed[:width, 1:] = patch.T
    flat = framed.ravel()
    column, row = np.divmod(np.flatnonzero(flat[1:] != flat[:-1]), height + 1)
    ends = (left + column) * size[0] + top + row
    through = np.zeros(len(ends) + 1, bool)  # from the foot of a column to the head of the next
    through[1:-1] = ends[1:] == ends[:-1]
    ends = ends[~(through[1:] | through[:-1])]
    if not len(ends) or ends[-1] < size[0] * size[1]:
        ends = np.append(ends, size[0] * size[1])
    counts = np.diff(ends, prepend=0)
    return {"size": list(size), "counts": counts.tolist()}


def codes(masks: Masks) -> list[dict[str, Any]]:
    """The run-length code of each mask, packed: {"size": [H, W], "counts": text}."""
    packed = [
        code_of(run_lengths(patch, x, y, masks.size))
        for patch, (x, y) in zip(masks.patches, masks.corners.tolist())
    ]
    return [code | {"counts": code["counts"].decode("ascii")} for code in packed]


def polygons_of(masks: Masks) -> list[list[np.ndarray]]:
    """The outer border of every part of each mask, (K, 2) float64 x, y along the edges of pixels;
    holes are not told. Parts that touch at a corner alone are one.
    """
    found = []
    for patch, corner in zip(masks.patches, masks.corners):
        # On a grid twice as fine a border pixel tells on which side of its pixel the border is.
        fine = patch.view(np.uint8).repeat(2, 0).repeat(2, 1)
        parts: Sequence[np.ndarray] = ()
        if patch.any():
            parts, _ = cv2.findContours(fine, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        found.append([_distinct((part[:, 0] + part[:, 0] % 2) / 2) + corner for part in parts])
    return found


def _distinct(points: np.ndarray) -> np.ndarray:
    """Points (K, 2) of a closed line without those that repeat the one before."""
    return np.asarray(points[(points != np.roll(points, 1, 0)).any(1)])


# ------------------------------------------------------------------ masks through a matrix


def move_masks(masks: Masks, matrix: np.ndarray, size: Size) -> Masks:
    """Masks through a (3, 3) matrix onto a canvas of `size` (H, W), by nearest pixel."""
    pieces = [
        _resampled(patch, (x, y), matrix, size)
        for patch, (x, y) in zip(masks.patches, masks.corners.tolist())
    ]
    corners = np.array([corner for _, corner in pieces], np.int64).reshape(-1, 2)
    return Masks([patch for patch, _ in pieces], corners, size)


def _resampled(
    patch: np.ndarray, corner: tuple[int, int], matrix: np.ndarray, size: Size
) -> _Piece:
    height, width = patch.shape
    shift = np.eye(3)
    shift[:2, 2] = corner
    inner = matrix @ shift
    corners = _moved(np.array([[0, 0], [width, 0], [0, height], [width, height]], float), inner)
    first, last = _window(np.concatenate([corners.min(0), corners.max(0)]), size)
    if not patch.size or (last <= first).any():
        return _NOTHING, (0, 0)
    shift[:2, 2] = -first
    extent = (int(last[1] - first[1]), int(last[0] - first[0]))
    pixels = patch.view(np.uint8)[None, ..., None]
    moved = warp_cpu(pixels, (shift @ inner)[None], extent, "constant", nearest=True)
    return moved[0, ..., 0].astype(bool), (int(first[0]), int(first[1]))


def _window(box: np.ndarray, size: Size) -> tuple[np.ndarray, np.ndarray]:
    """The first pixel x, y and the one behind the last of those whose centres a box (4,) holds."""
    limit = np.array(size[::-1])
    edges = np.clip(np.ceil(box.reshape(2, 2) - 0.5), 0, limit).astype(np.int64)
    return edges[0], edges[1]


def cut(values: Sequence[np.ndarray], matrices: np.ndarray, boxes: np.ndarray, size: Size) -> Masks:
    """Masks of soft values: where they are above 0, within their boxes.

    values N arrays (h, w) float32; matrices (N, 3, 3) lead from their pixels into a frame of `size`
    (H, W); boxes (N, 4) xyxy there. Values are mixed linearly and go on beyond their edge.
    """
    patches, corners = [], []
    for value, matrix, box in zip(values, matrices, boxes, strict=True):
        first, last = _window(box, size)
        width, height = (last - first).tolist()
        if width <= 0 or height <= 0:
            patches.append(_NOTHING)
            corners.append((0, 0))
            continue
        shift = np.eye(3)
        shift[:2, 2] = -first
        out = np.empty((1, height, width, 1), np.float32)
        warp_cpu(
            value[None, ..., None], (shift @ matrix)[None], (height, width), "nearest", out=out
        )
        patches.append(out[0, ..., 0] > 0)
        corners.append(tuple(first.tolist()))
    return Masks(patches, np.array(corners, np.int64).reshape(-1, 2), size)
