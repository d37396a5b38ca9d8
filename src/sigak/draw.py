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

from sigak.structures import Masks, SigakError

__all__ = ["boxes", "class_map", "color_of", "grid", "masks", "palette", "text", "volume"]

_Color = tuple[int, int, int]
_Box = tuple[int, int, int, int]
_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

# Fonts with Korean, Chinese and Japanese letters that systems bring; Pillow knows where to look.
_SYSTEM_FONTS = (
    "NanumGothic.ttf",
    "NotoSansCJK-Regular.ttc",
    "NotoSansKR-Regular.otf",
    "AppleSDGothicNeo.ttc",
    "malgun.ttf",
)
_VEIL = 0.45  # how much of a mask's colour covers the picture
_STRIP = 1 << 20  # pixels that are coloured at a time: large pictures need little memory besides
_PANEL = 288  # pixels that a slice of a volume is enlarged to
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
    grow with the picture, so that they can be read at any size. Captions do not cover each other:
    the first chooses its place first, and one that finds none is left out.
    """
    canvas = Image.fromarray(_rgb(image))
    pen = ImageDraw.Draw(canvas)
    long_side = max(canvas.size)
    line, size = max(1, round(long_side / 320)), max(10, round(long_side / 48))
    places = map(_covered, np.asarray(corners).reshape(-1, 4))
    rows = list(zip(places, captions, labels, strict=True))
    for box, _, label in reversed(rows):
        pen.rectangle(box, outline=color_of(int(label)), width=line)
    taken: list[_Box] = []
    for box, words, label in rows:
        if words:
            font, words = _font_for(words, size)
            place = _free_place(box, _measure(pen, words, font), canvas.size, taken)
            if place is not None:
                taken.append(place)
                _plate(pen, place, words, font, color_of(int(label)))
    return np.array(canvas)


def palette(classes: Sequence[str]) -> list[_Color]:
    """A colour a class; black for a first class called background."""
    colors = [color_of(label) for label in range(len(classes))]
    return [(0, 0, 0), *colors[1:]] if classes[0] == "background" else colors


def class_map(
    image: np.ndarray, labels: np.ndarray, classes: Sequence[str], colors: Sequence[_Color]
) -> np.ndarray:
    """A copy of `image` (H, W, 3) with the pixels of classes in their colours and a legend of those
    that occur, the largest first; a class of black, and labels beyond the list, stay as they are.

    labels (H, W) uint8.
    """
    picture = np.array(_rgb(image))
    inks = np.zeros((256, 3), np.float32)
    inks[: len(colors)] = colors
    inked = inks.any(1) & (np.arange(256) < len(classes))
    counts = np.zeros(256, np.int64)
    step = max(1, _STRIP // picture.shape[1])
    for top in range(0, len(picture), step):
        part, values = picture[top : top + step], labels[top : top + step]
        mixed = np.rint(0.45 * part + 0.55 * inks[values]).astype(np.uint8)
        np.copyto(part, mixed, where=inked[values][..., None])
        counts += np.bincount(values.ravel(), minlength=256)
    counts[~inked] = 0
    canvas = Image.fromarray(picture)
    pen = ImageDraw.Draw(canvas)
    size = max(10, round(max(canvas.size) / 48))
    top = 2
    for label in np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)].tolist():
        font, words = _font_for(classes[label], size)
        width, height = _measure(pen, words, font)
        if top + height > canvas.height:
            break
        place = (2, top, 2 + width, top + height - 1)
        _plate(pen, place, words, font, tuple(colors[label]))  # type: ignore[arg-type]
        top += height + 1
    return np.array(canvas)


def volume(
    voxels: np.ndarray, labels: np.ndarray, classes: Sequence[str], colors: Sequence[_Color]
) -> np.ndarray:
    """(H, W, 3): three slices of a volume, across D, across H and across W, as they are above and
    with the voxels of classes in their colours below.

    voxels (D, H, W, 1) in [0, 1], labels (D, H, W) uint8. Of each axis the slice is shown that has
    most voxels of coloured classes, or the middle one. Voxels are drawn as squares, small ones
    enlarged.
    """
    inked = np.zeros(256, bool)
    inked[: len(colors)] = np.any(colors, 1)
    shown = inked[labels]
    times = max(1, _PANEL // max(labels.shape))
    pictures, captions = [], []
    for axis, name in enumerate("DHW"):
        counts = shown.sum(tuple(a for a in range(3) if a != axis))
        place = int(counts.argmax()) if counts.any() else labels.shape[axis] // 2
        gray = np.rint(voxels.take(place, axis) * 255).astype(np.uint8)
        both = [part.repeat(times, 0).repeat(times, 1) for part in (gray, labels.take(place, axis))]
        pictures.append(_rgb(both[0]))
        pictures.append(class_map(both[0], both[1], classes, colors))
        captions.append(f"{name} {place}")
    side = max(max(picture.shape[:2]) for picture in pictures)
    return grid(pictures[::2] + pictures[1::2], captions * 2, 3, side)


def masks(image: np.ndarray, found: Masks, labels: Sequence[int] | np.ndarray) -> np.ndarray:
    """A copy of `image` (H, W, 3) with masks laid over it, one colour a class, and their borders
    drawn; the first is laid last, on top.
    """
    canvas = np.array(_rgb(image))
    if canvas.shape[:2] != tuple(found.size):
        raise SigakError(
            f"masks of {found.size[0]} x {found.size[1]} do not fit a picture of "
            f"{canvas.shape[0]} x {canvas.shape[1]}"
        )
    for patch, window, label in reversed(
        list(zip(found.patches, found.windows(), labels, strict=True))
    ):
        if patch.any():
            color = np.array(color_of(int(label)), np.float32)
            part = canvas[window]
            mixed = part * (1 - _VEIL) + color * _VEIL
            framed = np.pad(patch, 1)
            inner = framed[:-2, 1:-1] & framed[2:, 1:-1] & framed[1:-1, :-2] & framed[1:-1, 2:]
            shown = np.where(inner[..., None], mixed, color)
            np.copyto(part, shown.round().astype(np.uint8), where=patch[..., None])
    return canvas


def _covered(corners: np.ndarray) -> _Box:
    """The first and last pixels that a box covers: pixel i is [i, i + 1)."""
    x1, y1, x2, y2 = (float(v) for v in corners)
    left, right = sorted((round(x1), max(round(x2) - 1, round(x1))))
    top, bottom = sorted((round(y1), max(round(y2) - 1, round(y1))))
    return left, top, right, bottom


def _measure(pen: ImageDraw.ImageDraw, words: str, font: _Font) -> tuple[int, int]:
    """(width, height) of a caption with its margin; all captions of a font are equally high."""
    return round(pen.textlength(words, font=font)) + 4, _line_height(font) + 4


def _line_height(font: _Font) -> int:
    top, bottom = font.getbbox("Ág")[1::2]
    return round(bottom - top)


def _free_place(
    box: _Box, measure: tuple[int, int], canvas: tuple[int, int], taken: Sequence[_Box]
) -> _Box | None:
    """Where a caption of `measure` (width, height) covers no other: above its box, else in it,
    below or beside it; never off the picture.
    """
    (left, top, right, bottom), (width, height) = box, measure
    above, below = top - height, bottom + 1
    corners = [(left, above), (right - width + 1, above)]
    if right - left >= width and bottom - top >= 2 * height:  # else it would hide what is in there
        corners += [(left, top), (right - width + 1, top), (left, bottom - height + 1)]
    corners += [(left, below), (right - width + 1, below), (right + 1, top), (left - width, top)]
    for x, y in corners:
        x = max(0, min(x, canvas[0] - width))
        place = (x, y, x + width - 1, y + height - 1)
        if 0 <= y <= canvas[1] - height and not any(_meet(place, other) for other in taken):
            return place
    return None


def _meet(one: _Box, other: _Box) -> bool:
    across = one[0] <= other[2] and other[0] <= one[2]
    return across and one[1] <= other[3] and other[1] <= one[3]


def _plate(pen: ImageDraw.ImageDraw, place: _Box, words: str, font: _Font, color: _Color) -> None:
    """A caption on its coloured ground."""
    pen.rectangle(place, fill=color)
    bright = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] > 140
    ink = (0, 0, 0) if bright else (255, 255, 255)
    top = font.getbbox("Ág")[1]
    pen.text((place[0] + 2, place[1] + 2 - top), words, fill=ink, font=font)


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
    size = min(max(12, side // 8), 36)
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
    font: _Font,
    width: int,
) -> str:
    if pen.textlength(words, font=font) <= width:
        return words
    while words and pen.textlength(words + "...", font=font) > width:
        words = words[:-1]
    return words + "..."


def _font_for(words: str, size: int) -> tuple[_Font, str]:
    """A font for `words` at `size` pixels, and the words as it can write them, on one line."""
    words = " ".join(words.split())
    font = _font(size, ascii_only=words.isascii())
    if isinstance(font, ImageFont.FreeTypeFont):
        return font, words.encode("utf-8", "replace").decode()
    return font, words.encode("latin-1", "replace").decode("latin-1")  # Pillow without FreeType


@lru_cache(maxsize=32)
def _font(size: int, ascii_only: bool) -> _Font:
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
