"""Geometry: each function draws one (B, 3, 3) float64 matrix, canvas to canvas.

Nothing is resampled here. The pipeline multiplies the matrices, so a chain of any length costs one
resampling, and boxes, points and masks follow exactly.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from sigak.augment.draws import Draws
from sigak.ops.boxes import area, clip, transform_boxes
from sigak.ops.outlines import move_masks
from sigak.ops.points import swap_points, transform_points
from sigak.structures import Instances

__all__ = [
    "KEEP_SHARE",
    "KEEP_SIDE",
    "crop",
    "flip",
    "move_instances",
    "perspective",
    "random_resized_crop",
    "resize",
    "rotate",
    "shear",
    "shift",
    "zoom",
]

Size = tuple[int, int]

# An object is dropped when less than this share of its moved box is left on the canvas, or when a
# side of what is left is shorter than this many pixels.
KEEP_SHARE = 0.1
KEEP_SIDE = 1.0


def _identity(count: int) -> np.ndarray:
    return np.tile(np.eye(3), (count, 1, 1))


def _about_centre(matrices: np.ndarray, size: Size) -> np.ndarray:
    """The same maps with the centre of the canvas, not its corner, as the fixed point."""
    there, back = np.eye(3), np.eye(3)
    there[:2, 2] = size[1] / 2, size[0] / 2
    back[:2, 2] = -there[:2, 2]
    return np.asarray(there @ matrices @ back)


def resize(draws: Draws, source: Size, size: Size) -> np.ndarray:
    """The canvas `source` (H, W) stretched to `size`; nothing is drawn."""
    matrices = _identity(len(draws))
    matrices[:, 0, 0], matrices[:, 1, 1] = size[1] / source[1], size[0] / source[0]
    return matrices


def flip(draws: Draws, axes: str, size: Size) -> np.ndarray:
    """Mirrors with chance one half: "h" left-right, "v" up-down, "both" each by its own coin.

    "alternate" is left-right in every other epoch, beginning by a coin for each picture, so that
    two epochs show a picture both ways (Jordan 2024, arXiv 2404.00498).
    """
    matrices = _identity(len(draws))
    for axis, name in enumerate("hv"):
        if axes in (name, "both"):
            _mirror(matrices, draws.chance(f"flip.{name}"), axis, size)
    if axes == "alternate":
        coin = draws.at_epoch(0).chance("flip.alternate")
        _mirror(matrices, coin ^ (draws.epoch % 2 == 1), 0, size)
    return matrices


def _mirror(matrices: np.ndarray, chosen: np.ndarray, axis: int, size: Size) -> None:
    """Make the `chosen` (B,) bool identities mirrors along x (axis 0) or y (axis 1), in place."""
    matrices[chosen, axis, axis] = -1.0
    matrices[chosen, axis, 2] = size[1 - axis]


def rotate(draws: Draws, degrees: float, size: Size) -> np.ndarray:
    """Turns about the centre by up to ± degrees; a positive angle turns clockwise on the screen."""
    angle = draws.uniform("rotate", -degrees, degrees) * np.pi / 180.0
    matrices = _identity(len(draws))
    matrices[:, 0, 0] = matrices[:, 1, 1] = np.cos(angle)
    matrices[:, 1, 0] = np.sin(angle)
    matrices[:, 0, 1] = -matrices[:, 1, 0]
    return _about_centre(matrices, size)


def shear(draws: Draws, degrees: float, size: Size) -> np.ndarray:
    """Slants upright lines by up to ± degrees; the centre row stays where it is."""
    matrices = _identity(len(draws))
    matrices[:, 0, 1] = np.tan(draws.uniform("shear", -degrees, degrees) * np.pi / 180.0)
    return _about_centre(matrices, size)


def zoom(draws: Draws, amounts: tuple[float, ...], size: Size) -> np.ndarray:
    """Scales about the centre by 1 ± amount; above 1 magnifies.

    One amount keeps the picture's proportions; two are drawn apart, for the height and the width.
    """
    height = draws.uniform("zoom", 1.0 - amounts[0], 1.0 + amounts[0])
    width = height
    if len(amounts) == 2:
        width = draws.uniform("zoom.width", 1.0 - amounts[1], 1.0 + amounts[1])
    matrices = _identity(len(draws))
    matrices[:, 0, 0], matrices[:, 1, 1] = width, height
    return _about_centre(matrices, size)


def shift(draws: Draws, amounts: tuple[float, ...], size: Size) -> np.ndarray:
    """Moves by up to ± a share of the width and of the height; one amount serves both."""
    across, down = amounts[0] * size[1], amounts[-1] * size[0]
    matrices = _identity(len(draws))
    matrices[:, 0, 2] = draws.uniform("shift.x", -across, across)
    matrices[:, 1, 2] = draws.uniform("shift.y", -down, down)
    return matrices


def perspective(draws: Draws, amount: float, size: Size) -> np.ndarray:
    """Tilts the picture plane: along either axis the scale changes by up to about `amount`."""
    matrices = _identity(len(draws))
    matrices[:, 2, 0] = draws.uniform("perspective.x", -amount, amount) / size[1]
    matrices[:, 2, 1] = draws.uniform("perspective.y", -amount, amount) / size[0]
    return _about_centre(matrices, size)


def crop(draws: Draws, padding: int) -> np.ndarray:
    """A random window after padding every side by `padding` pixels; whole moves, exact pixels."""
    matrices = _identity(len(draws))
    matrices[:, 0, 2] = draws.integers("crop.x", -padding, padding + 1)
    matrices[:, 1, 2] = draws.integers("crop.y", -padding, padding + 1)
    return matrices


def random_resized_crop(draws: Draws, smallest: float, size: Size) -> np.ndarray:
    """A window of `smallest` to all of the area, stretched by 3/4 to 4/3, brought to the canvas.

    Szegedy et al., "Going Deeper with Convolutions" (CVPR 2015). A side that would be longer than
    the canvas is cut to it.
    """
    share = draws.uniform("rrc.area", smallest, 1.0)
    ratio = np.exp(draws.uniform("rrc.ratio", np.log(3 / 4), np.log(4 / 3)))
    matrices = _identity(len(draws))
    for axis, side in enumerate((np.sqrt(share * ratio), np.sqrt(share / ratio))):
        side = np.minimum(side, 1.0)
        start = draws.uniform(f"rrc.{'xy'[axis]}", 0.0, 1.0 - side) * size[1 - axis]
        matrices[:, axis, axis] = 1.0 / side
        matrices[:, axis, 2] = -start / side
    return matrices


def move_instances(
    instances: Instances, matrix: np.ndarray, size: Size, swap: Sequence[int] | None = None
) -> Instances:
    """Objects of one picture through a (3, 3) matrix onto a canvas of `size` (H, W).

    Boxes become the hull of their moved corners, cut to the canvas; what has vanished (KEEP_SHARE,
    KEEP_SIDE) goes with all its fields. Masks are resampled by nearest pixel; points move exactly,
    and where the matrix mirrors, `swap` renames them.
    """
    through = torch.from_numpy(matrix)
    hull = transform_boxes(instances.boxes, through)
    boxes = clip(hull, size)
    sides = boxes[:, 2:] - boxes[:, :2]
    kept = (area(boxes) >= KEEP_SHARE * area(hull)) & (sides >= KEEP_SIDE).all(dim=1)
    moved = instances[kept]
    moved.boxes = boxes[kept]
    if moved.points is not None:
        moved.points = transform_points(moved.points, through, size)
        if swap is not None and np.linalg.det(matrix) < 0:
            moved.points = swap_points(moved.points, swap)
    if moved.masks is not None:
        moved.masks = move_masks(moved.masks, matrix, size)
    return moved
