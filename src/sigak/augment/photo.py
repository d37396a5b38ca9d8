"""Photometric changes: each function draws one (B, 4, 4) float64 matrix over (red, green, blue, 1).

Values are in 0..255. Brightness, contrast, saturation and hue are affine in the colours, so any
chain is one matrix and one visit per pixel, and nothing is cut off between two of them. Noise is
the one change that is not affine: it is added last.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from sigak.augment.draws import Draws

__all__ = [
    "MID_GRAY",
    "brightness",
    "contrast",
    "hue",
    "noise_levels",
    "noise_pool",
    "noise_starts",
    "saturation",
]

MID_GRAY = 127.5
_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
# BT.601 luma and two chroma axes; hue turns the chroma plane and leaves luma and grays as they are.
_YIQ = np.array([_LUMA, [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])


def _identity(count: int) -> np.ndarray:
    return np.tile(np.eye(4), (count, 1, 1))


def brightness(draws: Draws, amount: float) -> np.ndarray:
    """Multiplies all values by 1 ± amount."""
    matrices = _identity(len(draws))
    matrices[:, :3, :3] *= draws.uniform("brightness", 1 - amount, 1 + amount)[:, None, None]
    return matrices


def contrast(draws: Draws, amount: float) -> np.ndarray:
    """Multiplies the distance from mid-gray (127.5, not the picture's mean) by 1 ± amount."""
    factor = draws.uniform("contrast", 1 - amount, 1 + amount)
    matrices = _identity(len(draws))
    matrices[:, :3, :3] *= factor[:, None, None]
    matrices[:, :3, 3] = (MID_GRAY * (1 - factor))[:, None]
    return matrices


def saturation(draws: Draws, amount: float) -> np.ndarray:
    """Multiplies the distance of each pixel from its own gray (BT.601 luma) by 1 ± amount."""
    factor = draws.uniform("saturation", 1 - amount, 1 + amount)[:, None, None]
    matrices = _identity(len(draws))
    matrices[:, :3, :3] = factor * np.eye(3) + (1 - factor) * np.tile(_LUMA, (3, 1))
    return matrices


def hue(draws: Draws, amount: float) -> np.ndarray:
    """Turns the plane of the colours (chroma) by up to ± amount of a full turn; luma is kept."""
    angle = draws.uniform("hue", -amount, amount) * 2 * np.pi
    turn = np.tile(np.eye(3), (len(draws), 1, 1))
    turn[:, 1, 1] = turn[:, 2, 2] = np.cos(angle)
    turn[:, 2, 1] = np.sin(angle)
    turn[:, 1, 2] = -turn[:, 2, 1]
    matrices = _identity(len(draws))
    matrices[:, :3, :3] = np.linalg.inv(_YIQ) @ turn @ _YIQ
    return matrices


_POOL = 1 << 20  # places where a picture's noise may start; two share one once in a million


@lru_cache(maxsize=4)
def noise_pool(values: int, channels: int) -> np.ndarray:
    """Standard normal noise (float32), to cut windows of `values` numbers from at any start.

    Drawing fresh noise costs more than every other step together; a window of a long pool at a
    random start looks as independent from picture to picture. Starts are multiples of `channels`,
    and the alpha of RGBA gets no noise.
    """
    pool = np.random.default_rng(0).standard_normal(_POOL * channels + values, np.float32)
    if channels == 4:
        pool[3::4] = 0.0
    return pool


@lru_cache(maxsize=4)
def noise_levels(std: float, values: int, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """The pool times std (in 0..255) as two uint8 arrays: what to add and what to take away."""
    levels = np.round(noise_pool(values, channels) * std)
    above = np.clip(levels, 0, 255).astype(np.uint8)
    return above, np.clip(-levels, 0, 255).astype(np.uint8)


def noise_starts(draws: Draws, channels: int) -> np.ndarray:
    """(B,) int64: where in the pool each picture's noise starts."""
    return draws.integers("noise", 0, _POOL) * channels
