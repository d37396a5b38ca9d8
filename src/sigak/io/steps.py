"""Chains of picture steps: "crop=100,400,600,900 resize=28 mirror gray invert".

A step is `name` or `name=value,value`. It does what the Pillow call of that meaning does, bit for
bit, and knows where points go: a chain has one 3x3 matrix from the picture before it to the picture
after it (continuous pixels). Steps that change colours leave transparency as it is.

One step = one small function from picture to picture = one row of `STEPS`. What a step takes is
read off its function's signature, so a new step needs nothing but its function and its row.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageEnhance, ImageFilter, ImageOps
from PIL.Image import Transpose

from sigak.structures import SigakError

__all__ = [
    "COLORS", "STEPS", "Operation", "Step", "as_array", "as_image", "describe", "parse", "recolor",
    "run", "trace",
]  # fmt: skip

COLORS = {"gray": 1, "rgb": 3, "rgba": 4}
"""Names of the colour layouts and their number of channels."""

Picture = Image.Image
Size = tuple[int, int]  # (width, height), Pillow's order; stays inside this file
Values = tuple[Any, ...]

# ------------------------------------------------------------------ what a step does to the pixels


def _crop(image: Picture, x1: int, y1: int, x2: int, y2: int) -> Picture:
    if not (0 <= x1 < x2 <= image.width and 0 <= y1 < y2 <= image.height):
        raise SigakError(
            f"crop={x1},{y1},{x2},{y2} must lie inside the picture with x1 < x2 and y1 < y2; "
            f"the picture is {image.width} wide and {image.height} high here"
        )
    return image.crop((x1, y1, x2, y2))


def _resize(image: Picture, width: int, height: int | None = None) -> Picture:
    height = width if height is None else height
    limit = 2 * (Image.MAX_IMAGE_PIXELS or math.inf)  # as for reading
    if min(width, height) < 1 or width * height > limit:
        raise SigakError(f"resize={width},{height} must give a picture of 1 to {limit:,} pixels")
    return image.resize((width, height))


def _rotate(image: Picture, degrees: float, keep: str = "expand") -> Picture:
    if keep not in ("expand", "keep"):
        raise SigakError(
            f"rotate takes 'keep' or 'expand' after the angle, received {keep!r}; "
            "for example rotate=30,keep"
        )
    return image.rotate(degrees, expand=keep == "expand")


def _box(
    image: Picture, x1: int, y1: int, x2: int, y2: int, colour: str = "red", width: int = 3
) -> Picture:
    if x2 < x1 or y2 < y1 or width < 1:
        raise SigakError(
            "box needs x1 <= x2, y1 <= y2 and a width of at least 1, "
            f"received {x1},{y1},{x2},{y2} and width {width}"
        )
    try:
        ink = ImageColor.getcolor(colour, image.mode)
    except ValueError:
        raise SigakError(
            f"box knows no colour {colour!r}; use a name such as red or a code such as #ff0000"
        ) from None
    drawn = image.copy()
    ImageDraw.Draw(drawn).rectangle((x1, y1, x2, y2), outline=ink, width=width)
    return drawn


def _channels(image: Picture, order: str) -> Picture:
    bands = dict(zip((b.lower() for b in image.getbands()), image.split(), strict=True))
    layout = {1: "L", 3: "RGB", 4: "RGBA"}.get(len(order))
    if layout is None or not set(order) <= set(bands):
        raise SigakError(
            f"channels={order} must name 1, 3 or 4 of the picture's channels, "
            f"which are {''.join(bands)} here"
        )
    return Image.merge(layout, [bands[letter] for letter in order])


def _channel(image: Picture, letter: str) -> Picture:
    if len(letter) != 1:
        raise SigakError(f"channel takes one letter, such as channel=r, received {letter!r}")
    return _channels(image, letter)


def _blur(image: Picture, radius: float | None = None) -> Picture:
    if radius is None:
        return image.filter(ImageFilter.BLUR)
    if radius < 0:
        raise SigakError(f"blur takes a radius of at least 0 pixels, received {radius:g}")
    return image.filter(ImageFilter.GaussianBlur(radius))


def _posterize(image: Picture, bits: int) -> Picture:
    if not 1 <= bits <= 8:
        raise SigakError(f"posterize keeps 1 to 8 bits of each channel, received {bits}")
    return ImageOps.posterize(image, bits)


def _threshold(image: Picture, level: int) -> Picture:
    return image.convert("L").point([255 if value >= level else 0 for value in range(256)])


def _mode(mode: str) -> Callable[[Picture], Picture]:
    return lambda image: image.convert(mode)


# ------------------------------------------------------------------ what a step does to the points


def _centred(before: Size, after: Size, linear: Sequence[float]) -> np.ndarray:
    """The map p -> L (p - centre before) + centre after; `linear` is the 2x2 L, row by row."""
    matrix = np.eye(3)
    matrix[:2, :2] = np.reshape(linear, (2, 2))
    matrix[:2, 2] = np.array(after) / 2 - matrix[:2, :2] @ (np.array(before) / 2)
    return matrix


def _crop_points(before: Size, after: Size, x1: int, y1: int, *_: Any) -> np.ndarray:
    return np.array([[1.0, 0.0, -x1], [0.0, 1.0, -y1], [0.0, 0.0, 1.0]])


def _resize_points(before: Size, after: Size, *_: Any) -> np.ndarray:
    return np.diag([after[0] / before[0], after[1] / before[1], 1.0])


def _rotate_points(before: Size, after: Size, degrees: float, *_: Any) -> np.ndarray:
    # Counter-clockwise on the screen, where y points down; rounded so that quarter turns are exact.
    cos, sin = (round(f(math.radians(degrees % 360)), 15) for f in (math.cos, math.sin))
    return _centred(before, after, (cos, sin, -sin, cos))


# ------------------------------------------------------------------ the table


@dataclass(frozen=True)
class Operation:
    """One row of `STEPS`.

    `apply(image, *values)` makes the new picture; `points(before, after, *values)` the 3x3 matrix
    from the picture of size `before` (W, H) to the one of size `after`, None where points stay;
    `alpha`: whether `apply` takes the transparency too; otherwise it sees the colours alone and
    transparency is put back after it.
    """

    apply: Callable[..., Picture]
    help: str
    example: str = ""
    points: Callable[..., np.ndarray] | None = None
    alpha: bool = False

    @property
    def arguments(self) -> list[inspect.Parameter]:
        """The values it takes, in order."""
        return list(inspect.signature(self.apply).parameters.values())[1:]

    @property
    def usage(self) -> str:
        """What follows its name, such as "=x1,y1,x2,y2[,colour[,width]]"; "" where nothing does."""
        text, brackets = "", ""
        for argument in self.arguments:
            optional = argument.default is not argument.empty
            text += ("[" if optional else "") + ("," if text else "=") + argument.name
            brackets += "]" if optional else ""
        return text + brackets


def _shape(
    apply: Callable[..., Picture], points: Callable[..., np.ndarray], example: str, text: str
) -> Operation:
    return Operation(apply, text, example, points, alpha=True)


def _turn(method: Transpose, linear: tuple[int, int, int, int], text: str) -> Operation:
    def points(before: Size, after: Size) -> np.ndarray:
        return _centred(before, after, linear)

    return Operation(lambda image: image.transpose(method), text, "", points, alpha=True)


def _enhance(enhancer: Callable[[Picture], Any], example: str, text: str) -> Operation:
    def enhance(image: Picture, factor: float) -> Picture:
        if factor < 0:
            raise SigakError(f"a factor must be at least 0, received {factor:g}; try {example}")
        enhanced: Picture = enhancer(image).enhance(factor)
        return enhanced

    return Operation(enhance, text, example)


def _filter(kernel: type[ImageFilter.Filter], text: str) -> Operation:
    return Operation(lambda image: image.filter(kernel), text)


STEPS: dict[str, Operation] = {
    "crop": _shape(_crop, _crop_points, "crop=100,400,600,900", "keep x1,y1 up to x2,y2"),
    "resize": _shape(_resize, _resize_points, "resize=28", "new size; one number for a square"),
    "rotate": _shape(_rotate, _rotate_points, "rotate=30", "counter-clockwise; ,keep: same size"),
    "mirror": _turn(Transpose.FLIP_LEFT_RIGHT, (-1, 0, 0, 1), "swap left and right"),
    "flip": _turn(Transpose.FLIP_TOP_BOTTOM, (1, 0, 0, -1), "swap top and bottom"),
    "rotate90": _turn(Transpose.ROTATE_90, (0, 1, -1, 0), "a quarter turn counter-clockwise"),
    "rotate180": _turn(Transpose.ROTATE_180, (-1, 0, 0, -1), "half a turn"),
    "rotate270": _turn(Transpose.ROTATE_270, (0, -1, 1, 0), "a quarter turn clockwise"),
    "transpose": _turn(Transpose.TRANSPOSE, (0, 1, 1, 0), "swap rows and columns"),
    "transverse": _turn(Transpose.TRANSVERSE, (0, -1, -1, 0), "the same, about the other diagonal"),
    "gray": Operation(_mode("L"), "one channel: 0.299 R + 0.587 G + 0.114 B", alpha=True),
    "rgb": Operation(_mode("RGB"), "three channels; transparency is dropped", alpha=True),
    "channels": Operation(_channels, "the channels in this order", "channels=bgr", alpha=True),
    "channel": Operation(_channel, "one channel as a gray picture", "channel=r", alpha=True),
    "brightness": _enhance(ImageEnhance.Brightness, "brightness=1.5", "0 black, 1 unchanged"),
    "contrast": _enhance(ImageEnhance.Contrast, "contrast=1.5", "0 flat gray, 1 unchanged"),
    "color": _enhance(ImageEnhance.Color, "color=0.5", "saturation: 0 none, 1 unchanged"),
    "sharpness": _enhance(ImageEnhance.Sharpness, "sharpness=2", "0 smoothed, 1 unchanged"),
    "blur": Operation(_blur, "5x5 blur, or a Gaussian of this radius in pixels", "blur=2"),
    "sharpen": _filter(ImageFilter.SHARPEN, "3x3 sharpening"),
    "smooth": _filter(ImageFilter.SMOOTH, "3x3 smoothing"),
    "edges": _filter(ImageFilter.FIND_EDGES, "bright where the picture changes"),
    "edge-enhance": _filter(ImageFilter.EDGE_ENHANCE, "stronger edges"),
    "emboss": _filter(ImageFilter.EMBOSS, "a relief lit from one side"),
    "contour": _filter(ImageFilter.CONTOUR, "dark lines where the picture changes"),
    "invert": Operation(lambda i: ImageOps.invert(i), "255 minus every value"),
    "box": Operation(_box, "draw a rectangle, both corners within", "box=10,20,110,90,red,3"),
    "autocontrast": Operation(lambda i: ImageOps.autocontrast(i), "stretch channels to 0..255"),
    "equalize": Operation(lambda i: ImageOps.equalize(i), "spread each channel's values evenly"),
    "posterize": Operation(_posterize, "keep this many bits of each channel", "posterize=3"),
    "threshold": Operation(_threshold, "white from this gray on, else black", "threshold=128"),
}  # fmt: skip
"""Every step by name."""


def describe() -> str:
    """One line per step: what to write and what it does."""
    width = max(len(name + operation.usage) for name, operation in STEPS.items())
    return "\n".join(f"{name + op.usage:<{width}}  {op.help}" for name, op in STEPS.items())


# ------------------------------------------------------------------ the chain


@dataclass(frozen=True)
class Step:
    """One step of a chain: its name in `STEPS` and its values."""

    name: str
    values: Values = ()


def parse(steps: str | Sequence[str]) -> list[Step]:
    """Steps from words ("crop=0,0,10,10", "gray") or from one string with blanks between them.

    A `SigakError` names the nearest steps for a misspelt one, what a step takes for wrong values.
    """
    words = steps.split() if isinstance(steps, str) else steps
    return [_parse_word(word) for word in words]


def _parse_word(word: str) -> Step:
    name, equals, rest = word.strip().partition("=")
    if name not in STEPS:
        near = get_close_matches(name.lower().replace("_", "-"), STEPS, 3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(STEPS)}"
        raise SigakError(f"there is no step {name!r}; {hint}")
    texts = [text.strip() for text in rest.split(",")] if equals else []
    operation = STEPS[name]
    arguments = operation.arguments
    fewest = sum(a.default is a.empty for a in arguments)
    if not fewest <= len(texts) <= len(arguments):
        takes = operation.usage.lstrip("=") or "no value"
        example = operation.example or name
        raise SigakError(f"{name} takes {takes}, received {rest!r}; for example {example}")
    return Step(name, tuple(_value(name, a, t) for a, t in zip(arguments, texts, strict=False)))


def _value(name: str, argument: inspect.Parameter, text: str) -> int | float | str:
    kind = str(argument.annotation).removesuffix(" | None")
    try:
        if kind == "int":
            return int(text)
        if kind == "float" and math.isfinite(float(text)):
            return float(text)
        if kind == "str" and text:
            return text
    except ValueError:
        pass
    wanted = {"int": "a whole number", "float": "a number", "str": "a word"}[kind]
    raise SigakError(
        f"{name}: {argument.name} must be {wanted}, received {text!r}; "
        f"for example {STEPS[name].example}"
    )


def run(pixels: np.ndarray, steps: str | Sequence[str]) -> np.ndarray:
    """The uint8 (H, W, C) picture after the chain, a new array; the given one is not changed."""
    return trace(pixels, steps)[0]


def trace(pixels: np.ndarray, steps: str | Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The picture after the chain, and the 3x3 float64 matrix from its points before to after."""
    image, matrix = as_image(pixels), np.eye(3)
    for step in parse(steps):
        operation = STEPS[step.name]
        before = image.size
        image = _apply(operation, image, step.values)
        if operation.points is not None:
            matrix = operation.points(before, image.size, *step.values) @ matrix
    return as_array(image), matrix


def _apply(operation: Operation, image: Picture, values: Values) -> Picture:
    if operation.alpha or image.mode != "RGBA":
        return operation.apply(image, *values)
    changed = operation.apply(image.convert("RGB"), *values).convert("RGB")
    changed.putalpha(image.getchannel("A"))
    return changed


def recolor(pixels: np.ndarray, color: str) -> np.ndarray:
    """uint8 (H, W, 1, 3 or 4) pixels as "gray", "rgb" or "rgba", the values of Pillow's `convert`.

    Transparency is dropped, not blended, as `convert` does; without it a picture becomes opaque.
    """
    if color not in COLORS:
        raise SigakError(f"color must be one of {', '.join(COLORS)}, received {color!r}")
    if pixels.shape[2] == COLORS[color]:
        return pixels
    if color == "gray":
        return as_array(as_image(pixels).convert("L"))
    colours = np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels[:, :, :3]
    if color == "rgb":
        return np.ascontiguousarray(colours)
    return np.concatenate([colours, np.full_like(colours[:, :, :1], 255)], axis=2)


def as_image(pixels: np.ndarray) -> Picture:
    """A Pillow image of uint8 (H, W, C) pixels, C = 1, 3 or 4."""
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in COLORS.values():
        raise SigakError(
            f"a picture here is uint8 (H, W, 1, 3 or 4), received {pixels.dtype} {pixels.shape}; "
            "sigak.io.image.read makes one of anything"
        )
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def as_array(image: Picture) -> np.ndarray:
    """The new, writable uint8 (H, W, C) pixels of a Pillow image of mode L, RGB or RGBA."""
    pixels = np.array(image)  # np.array, not asarray: Pillow's own memory is read-only
    return pixels[:, :, None] if pixels.ndim == 2 else pixels
