"""Drawing on pictures: text of any script, and sheets of pictures with captions.

Pictures are (H, W, 3) uint8 RGB; what is handed in is never changed.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sigak.structures import SigakError

__all__ = ["boxes", "color_of", "grid", "text"]

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


def color_of(label: int) -> _Color:
    """A bright colour for a class index; neighbouring classes lie far apart on the colour wheel."""
    hue = (label * 0.61803398875 + 0.02) % 1.0  # steps of the golden ratio never come near a cycle
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)


def boxes(
    image: np.ndarray,
    corners: np.ndarray,
    captions: Sequence[str],
    labels: Sequence[int] | np.ndarray,
) -> np.ndarray:
    """A copy of `image` (H, W, 3) with boxes and their captions drawn, one colour a class.

    corners (N, 4) xyxy in the picture's pixels; the first is drawn last, on top. Lines and letters
    grow with the picture, so that they can be read at any size.
    """
    canvas = Image.fromarray(_rgb(image))
    pen = ImageDraw.Draw(canvas)
    long_side = max(canvas.size)
    line, size = max(1, round(long_side / 320)), max(10, round(long_side / 48))
    rows = list(zip(np.asarray(corners).reshape(-1, 4).tolist(), captions, labels, strict=True))
    for (x1, y1, x2, y2), words, label in reversed(rows):
        color = color_of(int(label))
        # The pixels the box covers: pixel i is [i, i + 1).
        left, right = sorted((round(x1), max(round(x2) - 1, round(x1))))
        top, bottom = sorted((round(y1), max(round(y2) - 1, round(y1))))
        pen.rectangle((left, top, right, bottom), outline=color, width=line)
        if words:
            _caption_box(pen, (left, top, right, bottom), words, size, color, canvas.size)
    return np.array(canvas)


def _caption_box(
    pen: ImageDraw.ImageDraw,
    box: tuple[int, int, int, int],
    words: str,
    size: int,
    color: _Color,
    canvas: tuple[int, int],
) -> None:
    """A caption above the box, or inside it at the picture's upper edge; never off the picture."""
    font, words = _font_for(words, size)
    left, top, right, bottom = pen.textbbox((0, 0), words, font=font)
    width, height = right - left + 4, bottom - top + 4
    x = max(0, min(box[0], canvas[0] - width))
    y = box[1] - height if box[1] >= height else box[1]
    pen.rectangle((x, y, x + width, y + height), fill=color)
    bright = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] > 140
    ink = (0, 0, 0) if bright else (255, 255, 255)
    pen.text((x + 2 - left, y + 2 - top), words, fill=ink, font=font)


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
