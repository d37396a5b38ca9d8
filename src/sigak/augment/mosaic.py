"""Mosaic: four pictures of a batch on one canvas, each resampled once, straight to its place.

Bochkovskiy, Wang and Liao, "YOLOv4: Optimal Speed and Accuracy of Object Detection" (2020),
https://arxiv.org/abs/2004.10934. Four pictures touch in a point drawn anywhere on the canvas, and
what reaches over its sides is not seen; the other geometry (flip, zoom, shift ...) moves the whole.
All of it is one matrix per tile. Of a letterboxed picture the tile is the picture without its bars,
and what no tile covers is gray.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from sigak.augment.draws import Draws
from sigak.augment.geometry import move_instances
from sigak.augment.mix import joined, neighbours
from sigak.ops.points import transform_xy
from sigak.ops.warp import warp_cpu
from sigak.structures import Batch, Instances

__all__ = [
    "GRAY_LEVEL",
    "Tiling",
    "contents",
    "move_onto_tiles",
    "paint_cpu",
    "paint_device",
    "plan_tiles",
]

Size = tuple[int, int]

GRAY_LEVEL = 114  # as the bars beside a letterboxed picture

# Objects smaller or longer than this teach nothing: what is left of one at the side of a tile.
_LEAST_SIDE = 2.0
_LONGEST = 100.0  # the longer side over the shorter


@dataclass(frozen=True)
class Tiling:
    """Which parts of which pictures lie where, up to four tiles for each picture of the batch.

    source (B, 4) int64, places in the batch; matrices (B, 4, 3, 3) float64, affine, from there to
    the result; content (B, 4, 4) int64 xyxy, what of the source is shown, empty for no tile. The
    first tile is the picture's own.
    """

    source: np.ndarray
    matrices: np.ndarray
    content: np.ndarray


def contents(batch: Batch) -> np.ndarray:
    """(B, 4) int64 xyxy: where each picture lies on its canvas, without the bars beside it; the
    whole canvas where the picture has left it.
    """
    height, width = batch.images.shape[2:]
    corners = torch.tensor([[(0, 0), (w, 0), (0, h), (w, h)] for h, w in batch.sizes]).double()
    moved = torch.stack([transform_xy(c, m) for c, m in zip(corners, batch.matrix.cpu())])
    hull = torch.cat([moved.amin(dim=1), moved.amax(dim=1)], dim=1).round().long().numpy()
    found = np.clip(hull, 0, [width, height, width, height])
    found[(found[:, 2:] <= found[:, :2]).any(axis=1)] = 0, 0, width, height
    return np.asarray(found)


def plan_tiles(
    draws: Draws, probability: float, content: np.ndarray, stretch: np.ndarray, size: Size
) -> Tiling:
    """Mosaics for a share of the pictures, one tile for the others, before any other geometry.

    content (B, 4) int64 as of `contents`; stretch (B, 3, 3), diagonal, from the batch's canvas to
    the result's of `size` (H, W). The other pictures of a mosaic are the next three in a random
    ring.
    """
    source = np.stack([neighbours(draws, "mosaic.ring", steps) for steps in range(4)], axis=1)
    shown = content[source]
    matrices = np.tile(stretch[:, None], (1, 4, 1, 1))
    placed = shown * stretch[:, None, [0, 1, 0, 1], [0, 1, 0, 1]]
    quarter = (draws.integers("mosaic.place", 0, 4)[:, None] + np.arange(4)) % 4
    for axis, side in ((0, size[1]), (1, size[0])):
        middle = np.round(draws.uniform(f"mosaic.{'xy'[axis]}", 0, side))[:, None]
        after = (quarter >> axis) % 2 == 1  # right of the middle, or below it
        touching = np.where(after, placed[:, :, axis], placed[:, :, axis + 2])
        matrices[:, :, axis, 2] = middle - touching
    alone = ~draws.chance("mosaic", probability)
    matrices[alone] = stretch[alone, None]
    shown[alone, 1:] = 0
    return Tiling(source, matrices, shown)


def paint_cpu(pictures: np.ndarray, tiling: Tiling, place: int, out: np.ndarray) -> None:
    """Paint the tiles of the picture at `place` on gray.

    pictures (B, H, W, C) uint8; out (H', W', C) uint8, all of which is written.
    """
    out[:] = GRAY_LEVEL
    out[:, :, 3:] = 255  # gray is opaque
    tiles = (tiling.source[place], tiling.matrices[place], tiling.content[place])
    for source, matrix, content in zip(*tiles):
        _paint(pictures[source], matrix, content, out)


def _paint(picture: np.ndarray, matrix: np.ndarray, content: np.ndarray, out: np.ndarray) -> None:
    """Resample `content` of the picture through the matrix, onto the pixels it covers.

    A pixel belongs to the tile in which its centre lies, so neighbours neither overlap nor leave a
    gap.
    """
    moved = _hull(matrix, content)
    limit = (out.shape[1], out.shape[0])
    left, top = np.clip(np.ceil(moved[0] - 0.5), 0, limit).astype(int).tolist()
    right, bottom = np.clip(np.ceil(moved[1] - 0.5), 0, limit).astype(int).tolist()
    if right <= left or bottom <= top:
        return
    # Only what is seen is read, with two pixels around it for the mixing.
    seen = _hull(np.linalg.inv(matrix), np.array([left, top, right, bottom]))
    x1, y1 = np.maximum(np.floor(seen[0]) - 2, content[:2]).astype(int).tolist()
    x2, y2 = np.minimum(np.ceil(seen[1]) + 2, content[2:]).astype(int).tolist()
    if x2 <= x1 or y2 <= y1:  # of a turned tile only the hull reaches the canvas
        return
    here, there = np.eye(3), np.eye(3)
    here[:2, 2], there[:2, 2] = (x1, y1), (-left, -top)
    inner = there @ matrix @ here
    part, region = picture[None, y1:y2, x1:x2], out[top:bottom, left:right]
    size = (bottom - top, right - left)
    if matrix[0, 1] == 0 and matrix[1, 0] == 0:
        warp_cpu(part, inner[None], size, "nearest", out=region[None])
    else:
        warped = warp_cpu(part, inner[None], size, "nearest")[0]
        inside = _covered(inner, content - np.array([x1, y1, x1, y1]), size)
        np.copyto(region, warped, where=inside[..., None])


def _hull(matrix: np.ndarray, box: np.ndarray) -> np.ndarray:
    """(2, 2) x, y of the first and last corner of an xyxy box moved by an affine matrix."""
    x1, y1, x2, y2 = box.tolist()
    corners = np.array([[x1, x2, x1, x2], [y1, y1, y2, y2]])
    moved = matrix[:2, :2] @ corners + matrix[:2, 2:]
    return np.stack([moved.min(axis=1), moved.max(axis=1)])


def _covered(matrix: np.ndarray, box: np.ndarray, size: Size) -> np.ndarray:
    """(H, W) bool: the pixels of a result of `size` whose centres come from within an xyxy box."""
    inverse = np.linalg.inv(matrix).astype(np.float32)
    xs = np.arange(size[1], dtype=np.float32) + 0.5
    ys = np.arange(size[0], dtype=np.float32)[:, None] + 0.5
    inside = np.ones(size, bool)
    for row, first, last in zip(inverse, box[:2], box[2:]):
        from_there = row[0] * xs + (row[1] * ys + row[2])
        inside &= (from_there >= first) & (from_there < last)
    return inside


def paint_device(images: Tensor, tiling: Tiling, size: Size, scale: float) -> Tensor:
    """`paint_cpu` for all pictures of a batch at once, on their own device.

    images (B, C, H, W) float32 in 0..scale. Returns (B, C, *size).
    """
    height, width = images.shape[2:]
    device = images.device
    out = images.new_full((*images.shape[:2], *size), GRAY_LEVEL * scale / 255)
    out[:, 3:] = scale  # gray is opaque
    xs = torch.arange(size[1], device=device) + 0.5
    ys = (torch.arange(size[0], device=device) + 0.5)[:, None]
    extent = torch.tensor([width, height], device=device)
    for tile in range(4):
        inverse = np.linalg.inv(tiling.matrices[:, tile])[:, :2]
        across, down, start = (
            torch.from_numpy(inverse).float().to(device)[:, None, None].unbind(dim=-1)
        )
        there = across * xs[:, None] + down * ys[..., None] + start  # (B, H', W', 2)
        content = torch.from_numpy(tiling.content[:, tile]).to(device)[:, None, None]
        first, last = content[..., :2], content[..., 2:]
        covered = ((there >= first) & (there < last)).all(dim=-1)[:, None]
        # Half a pixel inside, nothing is mixed in from beyond the content.
        grid = torch.minimum(torch.maximum(there, first + 0.5), last - 0.5) * 2 / extent - 1
        source = torch.from_numpy(tiling.source[:, tile]).to(device)
        shown = functional.grid_sample(images[source], grid, align_corners=False)
        out = torch.where(covered, shown, out)
    return out


def move_onto_tiles(
    objects: Sequence[Instances], tiling: Tiling, size: Size, swap: Sequence[int] | None = None
) -> list[Instances]:
    """What of a batch's objects is seen on the tiles of each of its pictures, of `size` (H, W).

    Beside what `move_instances` drops, boxes no wider than 2 pixels or 100 times longer than wide
    go, which the side of a tile may leave of an object.
    """
    results = []
    for tiles in zip(tiling.source, tiling.matrices, tiling.content):
        moved = joined(
            [
                move_instances(objects[source], matrix, size, swap)
                for source, matrix, content in zip(*tiles)
                if content[2] > content[0]
            ]
        )
        sides = moved.boxes[:, 2:] - moved.boxes[:, :2]
        shorter, longer = sides.amin(dim=1), sides.amax(dim=1)
        results.append(moved[(shorter > _LEAST_SIDE) & (longer < _LONGEST * shorter)])
    return results
