"""Drawing on pictures: text of any script, and sheets of pictures with captions.

Pictures are (H, W, 3) uint8 RGB; what is handed in is never changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sigak.structures import SigakError

__all__ = ["grid", "text"]

_Color = tuple[int, int, int]

# Fonts with Korean, Chinese and Japanese letters that systems bring; Pillow knows where to look.
_SYSTEM_FONTS = (
    "NanumGothic.ttf",
    "NotoSansCJK-Regular.ttc",
    "NotoSansKR-Regular.otf",
    "AppleSDGothicNeo.ttc",
    "malgun.ttf",
)
_MARGIN = 4  # pixels between pictures, and between a picture and its caption


def text(
    image: np.ndarray,
    at: tuple[float, float],
    words: str,
    *,
    size: int = 14,
    color: _Color = (0, 0, 0),
    background: _Color | None = None,
) -> np.ndarray:
    """A copy of `image` with `words` written from the point `at` = (x, y), their upper left corner.

    size is the letters' height in pixels; background fills the box behind them. Where no font of
    the system has a letter, a box or a question mark takes its place.
    """
    canvas = Image.fromarray(_rgb(image))
    pen = ImageDraw.Draw(canvas)
    font, words = _font_for(words, size)
    if background is not None:
        pen.rectangle(pen.textbbox(at, words, font=font), fill=background)
    pen.text(at, words, fill=color, font=font)
    return np.array(canvas)


def grid(
    images: Sequence[np.ndarray], captions: Sequence[str], columns: int = 8, side: int = 112
) -> np.ndarray:
    """(H, W, 3) uint8: pictures of any sizes in rows of `columns`, their captions below them.

    Every picture is fitted into a square of `side` pixels, small ones enlarged with hard pixel
    edges; a caption too long for its place is shortened. The captions keep one readable size
    whatever the pictures' sizes are.
    """
    if not images or len(images) != len(captions) or columns < 1:
        raise SigakError(
            f"expected at least one picture and column, and a caption each; received {len(images)} "
            f"pictures, {len(captions)} captions and {columns} columns"
        )
    size = max(12, side // 8)
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    width, height = side + 2 * _MARGIN, side + size + 4 * _MARGIN
    canvas = Image.new("RGB", (columns * width, rows * height), "white")
    pen = ImageDraw.Draw(canvas)
    for place, (image, caption) in enumerate(zip(images, captions)):
        left, top = place % columns * width, place // columns * height
        picture = _fit(Image.fromarray(_rgb(image)), side)
        inset = (width - picture.width) // 2, _MARGIN + (side - picture.height) // 2
        canvas.paste(picture, (left + inset[0], top + inset[1]))
        font, words = _font_for(caption, size)
        words = _shorten(pen, words, font, side)
        start = left + (width - pen.textlength(words, font=font)) / 2
        pen.text((start, top + side + 2 * _MARGIN), words, fill="black", font=font)
    return np.array(canvas)


def _rgb(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) of a gray, RGB or RGBA uint8 picture; transparency is left out."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3, 4):
        raise SigakError(
            f"expected a uint8 picture (H, W, 1), (H, W, 3) or (H, W, 4), received {image.dtype} "
            f"{image.shape}"
        )
    return np.ascontiguousarray(np.broadcast_to(image[..., :3], (*image.shape[:2], 3)))


def _fit(picture: Image.Image, side: int) -> Image.Image:
    scale = side / max(picture.size)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    how = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    return picture.resize(size, how)


def _shorten(
    pen: ImageDraw.ImageDraw,
    words: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    width: int,
) -> str:
    if pen.textlength(words, font=font) <= width:
        return words
    while words and pen.textlength(words + "...", font=font) > width:
        words = words[:-1]
    return words + "..."


def _font_for(words: str, size: int) -> tuple[ImageFont.FreeTypeFont | ImageFont.ImageFont, str]:
    """A font for `words` at `size` pixels, and the words as it can write them, on one line."""
    words = " ".join(words.split())
    font = _font(size, ascii_only=words.isascii())
    if isinstance(font, ImageFont.FreeTypeFont):
        return font, words.encode("utf-8", "replace").decode()
    return font, words.encode("latin-1", "replace").decode("latin-1")  # Pillow without FreeType


@lru_cache(maxsize=32)
def _font(size: int, ascii_only: bool) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font Pillow carries, which has ASCII letters, or for others the first that is found."""
    for name in () if ascii_only else (*_SYSTEM_FONTS, _matplotlib_font()):
        try:
            return ImageFont.truetype(name, size)
        except (OSError, ImportError):
            continue
    return ImageFont.load_default(size)


def _matplotlib_font() -> str:
    """DejaVu Sans, which comes with matplotlib, has Latin, Greek and Cyrillic letters."""
    import matplotlib

    return str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))
