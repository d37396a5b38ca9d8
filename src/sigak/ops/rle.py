"""Outlines of objects and masks of pixels, each from the other, by COCO's rules.

An outline is a list of polygons [(K, 2), ...] in continuous pixels, or COCO's run-length code
{"size": [H, W], "counts": ...} with counts as numbers or compressed. hotcoco counts as pycocotools
does, pixel by pixel.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from hotcoco import mask as coco

from sigak.structures import SigakError

__all__ = ["mask_of", "run_lengths"]


def mask_of(outline: Any, size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool of a picture of `size`: the pixels that the outline holds, none where it is
    empty. Raises SigakError for a run-length code of another size, or none at all.
    """
    if isinstance(outline, dict):
        if tuple(outline.get("size", ())) != tuple(size):
            raise SigakError(
                f"a run-length code is of a picture of {outline.get('size')}, this one is "
                f"{list(size)} (height, width)"
            )
        code = _decodable(outline, size)
    else:
        polygons = [polygon.ravel().tolist() for polygon in outline if len(polygon) >= 3]
        if not polygons:
            return np.zeros(size, bool)
        code = coco.merge(coco.frPyObjects(polygons, *size))
    return np.asarray(coco.decode(code)).astype(bool)


def _decodable(outline: dict[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    counts = outline.get("counts")
    try:
        code: dict[str, Any] = coco.frPyObjects(outline, *size)
        covered = int(sum(counts)) if isinstance(counts, list) else size[0] * size[1]
    except Exception as error:  # the package has no error of its own for what it cannot read
        raise SigakError(f"a run-length code cannot be read ({error})") from None
    if covered != size[0] * size[1]:
        raise SigakError(
            f"a run-length code of {size[0]} x {size[1]} pixels counts {covered} of them"
        )
    return code


def run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """COCO's compressed code of a mask (H, W) bool, its counts as text that JSON can hold."""
    code = coco.encode(np.ascontiguousarray(mask, dtype=np.uint8))
    counts = code["counts"]
    text = counts.decode("ascii") if isinstance(counts, bytes) else counts
    return {"size": [int(side) for side in code["size"]], "counts": text}
