"""Pixels as data: URIs, so that a page holds its own pictures."""

from __future__ import annotations

import math
import struct
import zlib
from base64 import b64encode
from typing import Any

import numpy as np

from sigak.report._markup import Markup, tag
from sigak.structures import SigakError

__all__ = ["picture", "png"]

_COLOR_TYPES = {1: 0, 3: 2, 4: 6}  # channels -> PNG's number for gray, RGB, RGBA
_SMALL = 96  # pictures below this are shown enlarged, their pixels as sharp squares


def picture(image: Any, side: int, text: str, style: str | None = None) -> Markup:
    """An <img> of a uint8 (H, W) or (H, W, C) array, C 1, 3 or 4, at most `side` pixels long.

    `text` describes it; `style` is its CSS class, by default "sharp" where it is small.
    """
    pixels = np.asarray(image)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    known = pixels.ndim == 3 and pixels.shape[2] in _COLOR_TYPES and pixels.dtype == np.uint8
    if not known or not pixels.size:
        raise SigakError(
            "a picture of the report must be a uint8 array (H, W), (H, W, 1), (H, W, 3) or "
            f"(H, W, 4), received {pixels.dtype} {np.asarray(image).shape}"
        )
    if style is None and max(pixels.shape[:2]) < _SMALL:
        style = "sharp"
    source = "data:image/png;base64," + b64encode(png(_shrink(pixels, side))).decode()
    return tag("img", src=source, alt=text, class_=style)


def png(image: np.ndarray) -> bytes:
    """A uint8 (H, W, C) array, C 1, 3 or 4, as a PNG file (ISO/IEC 15948)."""
    height, width, channels = image.shape
    # Each row is written as differences to the left neighbour (filter 1), which compress better.
    left = np.zeros_like(image)
    left[:, 1:] = image[:, :-1]
    rows = np.ones((height, 1 + width * channels), np.uint8)
    rows[:, 1:] = (image - left).reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, _COLOR_TYPES[channels], 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", header)
        + _chunk(b"IDAT", zlib.compress(rows.tobytes(), 9))
        + _chunk(b"IEND", b"")
    )


def _chunk(kind: bytes, content: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + check


def _shrink(image: np.ndarray, side: int) -> np.ndarray:
    """The means of square blocks, so many that no side is longer than `side`; small ones stay."""
    height, width, channels = image.shape
    block = math.ceil(max(height, width) / side)
    if block == 1:
        return image
    high, wide = min(block, height), min(block, width)
    rows, columns = height // high, width // wide
    blocks = image[: rows * high, : columns * wide].reshape(rows, high, columns, wide, channels)
    means: np.ndarray = blocks.mean((1, 3)).round().astype(np.uint8)
    return means
