"""Arrays and tensors of any kind as pictures: numbers into uint8, shapes into (H, W, C).

Every rule of what a range or a shape means stands here, once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from sigak.io.steps import COLORS
from sigak.structures import SigakError

__all__ = ["high_byte", "picture", "pictures", "to_uint8"]


def picture(source: object) -> np.ndarray:
    """One picture's array or tensor as uint8 (H, W, C)."""
    values, tensor = _as_numpy(source)
    if values.ndim == 2:
        return to_uint8(values)[:, :, None]
    axis = _channel_axis(values.shape, tensor) if values.ndim == 3 else None
    if axis is None:
        raise SigakError(
            "one picture has shape (H, W), (H, W, C) or (C, H, W) with C = 1, 3 or 4, "
            f"received {values.shape}"
        )
    return np.moveaxis(to_uint8(values), axis, 2)


def pictures(source: object) -> list[np.ndarray]:
    """The uint8 (H, W, C) pictures in one array or tensor."""
    values, tensor = _as_numpy(source)
    if values.ndim == 3 and values.shape[0] == 4 and values.shape[2] not in COLORS.values():
        raise SigakError(
            f"{values.shape} could be one RGBA picture or four gray ones; "
            "give (H, W, 4) for the one or (4, H, W, 1) for the four"
        )
    axis = _channel_axis(values.shape, tensor) if values.ndim in (3, 4) else None
    if values.ndim == 2 or (values.ndim == 3 and axis is None):
        return list(to_uint8(values).reshape(-1, *values.shape[-2:], 1))
    if axis is None:
        raise SigakError(
            "arrays are (H, W), (H, W, C), (C, H, W) or, for N pictures, (N, H, W), (N, H, W, C), "
            f"(N, C, H, W), with C = 1, 3 or 4; received {values.shape}"
        )
    pixels = np.moveaxis(to_uint8(values), axis, -1)
    return [pixels] if values.ndim == 3 else list(pixels)


def _as_numpy(source: object) -> tuple[np.ndarray, bool]:
    """The values, and whether they came as a tensor (whose channels come first)."""
    if isinstance(source, torch.Tensor):
        tensor = source.detach().cpu()
        return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy(), True
    if isinstance(source, np.ndarray):
        return source, False
    raise SigakError(
        "a picture is a path, the bytes of a file, a Pillow image, a NumPy array or a tensor, "
        f"received {type(source).__name__}"
    )


def _channel_axis(shape: Sequence[int], tensor: bool) -> int | None:
    """Which of the last three axes of `shape` holds channels: -1, -3, or None for neither."""
    order = (-3, -1) if tensor else (-1, -3)
    return next((axis for axis in order if shape[axis] in COLORS.values()), None)


def to_uint8(values: np.ndarray) -> np.ndarray:
    """Any numbers as uint8 of the same shape, by the rules of `sigak.io.image.read`."""
    kind = values.dtype.kind
    if values.size == 0 or kind not in "buif":
        raise SigakError(f"a picture holds numbers, received {values.dtype} {values.shape}")
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.uint16:
        return high_byte(values)
    if kind == "b":
        return values.astype(np.uint8) * np.uint8(255)
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= 255):  # written so that NaN is refused too
        raise SigakError(
            "pixels must be 0..255, or floats 0..1, without NaN; "
            f"received {values.dtype} from {low} to {high}"
        )
    if kind in "ui":
        return values.astype(np.uint8)
    scale = 255.0 if high <= 1.001 else 1.0  # sums of floats may end a little above 1
    return np.rint(values * scale).astype(np.uint8)


def high_byte(values: np.ndarray) -> np.ndarray:
    """16-bit gray as 8-bit, as Pillow itself reads 16-bit colour."""
    if values.min() < 0 or values.max() > 65535:
        raise SigakError(f"16-bit gray is 0..65535, received {values.min()} to {values.max()}")
    return (values >> 8).astype(np.uint8)
