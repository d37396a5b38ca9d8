"""How a picture meets a network's size, and the matrix that says where its points went."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from PIL import Image

__all__ = ["FITS", "LETTERBOX", "RESAMPLES", "STRIDE", "fit"]

LETTERBOX = 114  # gray of the bars beside a letterboxed picture
STRIDE = 32  # of detectors: what the sides of their canvas are multiples of


def fit(
    pixels: np.ndarray, size: tuple[int, int], how: str, resample: str = "area"
) -> tuple[np.ndarray, np.ndarray]:
    """uint8 (H, W, C) pixels at `size` (H, W) by one of `FITS`, and the 3x3 matrix that led there.

    resample: "area", shrinking averages areas and enlarging is bilinear; "bilinear", both are,
    without looking at more than four pixels; or "antialias", bilinear over as many pixels as become
    one, as Pillow does it. Pixels of that size are returned untouched.
    """
    if pixels.shape[:2] == size:
        return pixels, np.eye(3)
    return FITS[how](pixels, size, _RESAMPLE[resample])


_Resample = Callable[[np.ndarray, tuple[int, int]], np.ndarray]


def _squash(
    pixels: np.ndarray, size: tuple[int, int], resample: _Resample
) -> tuple[np.ndarray, np.ndarray]:
    height, width = pixels.shape[:2]
    return resample(pixels, size), np.diag([size[1] / width, size[0] / height, 1.0])


def _inside(
    pixels: np.ndarray, size: tuple[int, int], resample: _Resample
) -> tuple[np.ndarray, np.ndarray]:
    """The whole picture as large as `size` allows, its sides in their ratio."""
    height, width = pixels.shape[:2]
    scale = min(size[0] / height, size[1] / width)
    return _squash(pixels, (max(1, round(height * scale)), max(1, round(width * scale))), resample)


def _letterbox(
    pixels: np.ndarray, size: tuple[int, int], resample: _Resample
) -> tuple[np.ndarray, np.ndarray]:
    inner, matrix = _inside(pixels, size, resample)
    top, left = (size[0] - inner.shape[0]) // 2, (size[1] - inner.shape[1]) // 2
    return _on_gray(inner, size, top, left), _moved(matrix, left, top)


def _corner(
    pixels: np.ndarray, size: tuple[int, int], resample: _Resample
) -> tuple[np.ndarray, np.ndarray]:
    inner, matrix = _inside(pixels, size, resample)
    return _on_gray(inner, size, 0, 0), matrix


def _rect(
    pixels: np.ndarray, size: tuple[int, int], resample: _Resample
) -> tuple[np.ndarray, np.ndarray]:
    inner, matrix = _inside(pixels, size, resample)
    canvas = -(-inner.shape[0] // STRIDE) * STRIDE, -(-inner.shape[1] // STRIDE) * STRIDE
    top, left = (canvas[0] - inner.shape[0]) // 2, (canvas[1] - inner.shape[1]) // 2
    return _on_gray(inner, canvas, top, left), _moved(matrix, left, top)


def _on_gray(inner: np.ndarray, size: tuple[int, int], top: int, left: int) -> np.ndarray:
    if inner.shape[:2] == size:
        return inner
    canvas = np.full((*size, inner.shape[2]), LETTERBOX, np.uint8)
    canvas[:, :, 3:] = 255  # the bars of an RGBA picture are opaque
    canvas[top : top + inner.shape[0], left : left + inner.shape[1]] = inner
    return canvas


def _moved(matrix: np.ndarray, left: int, top: int) -> np.ndarray:
    matrix[:2, 2] = left, top
    return matrix


def _centre_crop(
    pixels: np.ndarray, size: tuple[int, int], resample: _Resample
) -> tuple[np.ndarray, np.ndarray]:
    height, width = pixels.shape[:2]
    scale = max(size[0] / height, size[1] / width)
    outer, matrix = _squash(
        pixels, (max(size[0], round(height * scale)), max(size[1], round(width * scale))), resample
    )
    top, left = (outer.shape[0] - size[0]) // 2, (outer.shape[1] - size[1]) // 2
    matrix[:2, 2] = -left, -top
    inner = outer[top : top + size[0], left : left + size[1]]
    return np.ascontiguousarray(inner), matrix


def _longest(
    pixels: np.ndarray, size: tuple[int, int], resample: _Resample
) -> tuple[np.ndarray, np.ndarray]:
    height, width = pixels.shape[:2]
    scale = max(size) / max(height, width)
    return _squash(
        pixels, (max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))), resample
    )


def _native(
    pixels: np.ndarray, size: tuple[int, int], resample: _Resample
) -> tuple[np.ndarray, np.ndarray]:
    return pixels, np.eye(3)


FITS = {
    "squash": _squash,
    "letterbox": _letterbox,
    "corner": _corner,
    "rect": _rect,
    "crop": _centre_crop,
    "native": _native,
    "longest": _longest,
}
"""Ways to meet a size: distort; keep all, in the middle of gray bars or at their upper left; keep
all on the smallest canvas inside the size whose sides are multiples of `STRIDE`; keep the middle
(short side whole); leave the picture as it is, whatever the size; bring the longer side to the
size, without bars."""


def _resample(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Area average along axes that shrink, then bilinear along axes that grow.

    A shrinking below 1.5 is bilinear too: four neighbours miss next to nothing of the picture there
    (what is left after a reduced JPEG decode is mostly of that kind), at a quarter of the time.
    """
    shrunk = (min(size[0], pixels.shape[0]), min(size[1], pixels.shape[1]))
    if pixels.shape[0] < 1.5 * size[0] and pixels.shape[1] < 1.5 * size[1]:
        shrunk = (pixels.shape[0], pixels.shape[1])
    for target, method in ((shrunk, cv2.INTER_AREA), (size, cv2.INTER_LINEAR)):
        if pixels.shape[:2] != target:
            resized = cv2.resize(pixels, target[::-1], interpolation=method)
            pixels = resized.reshape(*target, pixels.shape[2])  # OpenCV drops a single channel
    return pixels


def _bilinear(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The four nearest pixels of each place, as most detectors' published weights expect it."""
    resized = cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_LINEAR)
    shaped: np.ndarray = resized.reshape(*size, pixels.shape[2])
    return shaped


def _antialias(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A triangle as wide as two pixels of the result, weighted over what it covers."""
    planes = [Image.fromarray(plane) for plane in np.moveaxis(pixels, 2, 0)]
    small = [plane.resize(size[::-1], Image.Resampling.BILINEAR) for plane in planes]
    return np.stack([np.asarray(plane) for plane in small], axis=2)


_RESAMPLE: dict[str, _Resample] = {
    "area": _resample,
    "bilinear": _bilinear,
    "antialias": _antialias,
}
RESAMPLES = tuple(_RESAMPLE)
