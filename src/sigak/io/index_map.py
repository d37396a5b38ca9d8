"""Pictures whose pixels are numbers of classes: read as they are stored, written with a palette.

Reading a map like a photograph would turn its palette into colours and its 1-bit gray into 255;
here a pixel's value is what the file holds.
"""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from sigak.io.image import DamagedImage, read_bytes
from sigak.structures import SigakError

__all__ = ["in_color", "palette_of", "read", "save"]

Color = tuple[int, int, int]

_VALUES = ("1", "L", "P", "LA", "PA")
_LOSSY = ("JPEG", "MPO", "WEBP", "AVIF")


def read(path: str | Path, colors: Mapping[Color, int] | None = None) -> np.ndarray:
    """(H, W) uint8 values of a gray, paletted or 1-bit file (0 and 1); of one in colour the values
    that `colors` gives its colours.

    Raises `DamagedImage` for what does not decode, and SigakError for lossy formats, values above
    255 and colours that are not known.
    """
    image = _decoded(path)
    if image.mode in _VALUES:
        band = image.getchannel(0) if image.mode in ("LA", "PA") else image
        return np.array(band, dtype=np.uint8)
    values = np.asarray(image.convert("RGB") if image.mode == "RGBA" else image)
    if values.ndim == 2:
        if values.min() < 0 or values.max() > 255:
            raise SigakError(
                f"{path} holds values from {values.min()} to {values.max()}; a class map has "
                "values from 0 to 255"
            )
        return values.astype(np.uint8)
    if values.ndim != 3 or values.shape[2] != 3:
        raise SigakError(f"{path} is of the kind {image.mode}; a class map is gray or paletted")
    if not colors and (values == values[..., :1]).all():
        return np.ascontiguousarray(values[..., 0])
    return _looked_up(path, values, colors)


def _decoded(path: str | Path) -> Image.Image:
    data = read_bytes(path)
    try:
        image = Image.open(io.BytesIO(data))
        form = image.format
        image.load()
    except Exception as error:  # decoders raise whatever they like
        raise DamagedImage(str(path), f"not a whole picture ({error})") from None
    if form in _LOSSY:
        raise SigakError(
            f"{path} is a {form}, which changes values; keep class maps in a format without loss, "
            "such as PNG"
        )
    return image


def _looked_up(
    path: str | Path, pixels: np.ndarray, colors: Mapping[Color, int] | None
) -> np.ndarray:
    """(H, W, 3) colours as (H, W) values."""
    if not colors:
        raise SigakError(
            f"{path} is in colour, and what its colours mean is not known; put a classes.json with "
            'entries like {"name": "road", "color": [128, 64, 128]} beside the folders'
        )
    wide = pixels.astype(np.int32)
    codes = (wide[..., 0] << 16) | (wide[..., 1] << 8) | wide[..., 2]
    found, places = np.unique(codes, return_inverse=True)
    known = {(r << 16) | (g << 8) | b: value for (r, g, b), value in colors.items()}
    strange = [code for code in found.tolist() if code not in known]
    if strange:
        first = (strange[0] >> 16, strange[0] >> 8 & 255, strange[0] & 255)
        raise SigakError(f"{path} holds the colour {first}, which classes.json does not name")
    table = np.array([known[code] for code in found.tolist()], np.uint8)
    return np.asarray(table[places].reshape(codes.shape))


def palette_of(path: str | Path) -> list[Color] | None:
    """The colours of a paletted file in the order of its values; None of others."""
    image = _decoded(path)
    if image.mode != "P":
        return None
    flat = image.getpalette("RGB") or []
    return [(flat[i], flat[i + 1], flat[i + 2]) for i in range(0, len(flat) - 2, 3)]


def in_color(path: str | Path) -> bool:
    """Whether a file's pixels are colours, none of them gray, instead of values."""
    pixels = np.asarray(_decoded(path))
    return pixels.ndim == 3 and not bool((pixels[..., :3] == pixels[..., :1]).all())


def save(path: str | Path, values: np.ndarray, palette: Sequence[Color]) -> None:
    """Write (H, W) uint8 values as a paletted PNG, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    image = Image.fromarray(values)
    image.putpalette([part for color in palette for part in color])
    try:
        image.save(part, "PNG")
        os.replace(part, path)
    except OSError as error:
        raise SigakError(f"cannot save {path}: {error}") from error
    finally:
        part.unlink(missing_ok=True)
