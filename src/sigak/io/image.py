"""Pictures: read anything, check files, fit to a network's input, save.

Everything becomes uint8 (H, W, C) with C = 1 (gray), 3 (RGB) or 4 (RGBA), turned as EXIF says.
Pillow decodes, so that a path, its bytes, a Pillow image and its array give the same pixels bit for
bit; only `cover`, which training uses, decodes JPEGs with OpenCV at a reduced scale.

Pictures of over 2 * PIL.Image.MAX_IMAGE_PIXELS (178 megapixels) are refused, before they are
decoded, as decompression bombs; set that constant to open larger ones.
"""

from __future__ import annotations

import glob
import io
import os
import threading
from collections.abc import Collection
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from sigak.io import steps as chain
from sigak.io.arrays import high_byte, picture, pictures, to_uint8
from sigak.io.fit import FITS, RESAMPLES, fit
from sigak.io.steps import COLORS, as_array, as_image, recolor
from sigak.structures import SigakError

__all__ = [
    "SUFFIXES", "DamagedImage", "Preparation", "check", "describe", "expand", "load", "prepare",
    "read", "read_as_is", "read_bytes", "save",
]  # fmt: skip

SUFFIXES = (
    ".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff",
    ".ppm", ".pgm", ".pbm", ".pnm", ".avif",
)  # fmt: skip
"""File endings, in lower case, that folders and patterns are searched for."""


class DamagedImage(SigakError):  # noqa: N818 - what it is, not that it is an error
    """A file or bytes that do not decode into a picture. `source` names it, `reason` says why."""

    def __init__(self, source: str, reason: str) -> None:
        super().__init__(source, reason)  # both in args, so that it travels between processes
        self.source = source
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.source}: {self.reason}"


# ------------------------------------------------------------------ reading


class _Decoded(NamedTuple):
    """Upright pixels (H, W, C), the whole picture's (H, W), how many times smaller pixels are."""

    pixels: np.ndarray
    size: tuple[int, int]
    reduction: int = 1


def read(source: object, *, color: str = "rgb", cover: tuple[int, int] | None = None) -> np.ndarray:
    """A picture as a new uint8 (H, W, C) array; C = 1, 3 or 4 for color "gray", "rgb" or "rgba".

    source: a path, a file's bytes, a Pillow image, or a NumPy array or tensor of shape (H, W),
    (H, W, C) or (C, H, W) with C = 1, 3 or 4. Where both ends could be C, an array is (H, W, C)
    and a tensor (C, H, W). Integers are 0..255 (uint16: 0..65535, the high byte is kept), floats
    0..1, or 0..255 if any is above 1; False is 0 and True 255.
    Files of every Pillow mode: 16-bit gray keeps the high byte, palettes and CMYK become RGB, of
    animations the first frame. Transparency is dropped, not blended, like Pillow's convert("RGB").
    cover: (H, W); a JPEG may be decoded 2, 4 or 8 times smaller as long as it covers this size.
    Raises `DamagedImage` for what does not decode, `SigakError` for missing files, wrong arrays.
    """
    return recolor(_decode(source, cover).pixels, color)


def read_as_is(source: object) -> np.ndarray:
    """`read`, in the picture's own colours: gray stays (H, W, 1), transparency stays (H, W, 4)."""
    return _decode(source).pixels


def _decode(source: object, cover: tuple[int, int] | None = None) -> _Decoded:
    if isinstance(source, (str, Path)):
        return _decode_bytes(read_bytes(source), str(source), cover)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _decode_bytes(bytes(source), "the given bytes", cover)
    if isinstance(source, Image.Image):
        pixels = _decode_image(source, str(getattr(source, "filename", "") or "the given picture"))
    else:
        pixels = picture(source).copy()
    return _Decoded(pixels, pixels.shape[:2])


def read_bytes(path: str | Path) -> bytes:
    """A file's bytes; SigakError in words where it is missing, a folder, or cannot be read."""
    # The file is read here and decoded from memory, so that no decoder meets an unusual path.
    path = Path(path)
    if path.is_dir():
        raise SigakError(f"{path} is a folder; one picture is expected here")
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise SigakError(f"there is no file {path} (looked in {Path.cwd()})") from None
    except (OSError, ValueError) as error:
        raise SigakError(f"{path} cannot be read: {error}") from error


def _decode_bytes(data: bytes, name: str, cover: tuple[int, int] | None) -> _Decoded:
    image = _open(io.BytesIO(data), name)
    if cover is not None and image.format in ("JPEG", "MPO") and image.mode in ("L", "RGB"):
        reduced = _decode_reduced(data, image, cover)
        if reduced is not None:
            return reduced
    pixels = _decode_image(image, name)
    return _Decoded(pixels, pixels.shape[:2])


def _open(file: BinaryIO, name: str) -> Image.Image:
    """The picture's header, nothing decoded."""
    start = file.read(64)
    file.seek(0)
    if not start:
        raise DamagedImage(name, "the file is empty (0 bytes)")
    try:
        return Image.open(file)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        reason = f"too large ({error}); if you trust it, raise PIL.Image.MAX_IMAGE_PIXELS"
        raise DamagedImage(name, reason) from None
    except UnidentifiedImageError:
        reason = f"not a picture in a format that Pillow reads; it begins with {start[:16]!r}"
        raise DamagedImage(name, reason) from None
    except Exception as error:  # a damaged header may raise anything in a plug-in
        raise DamagedImage(name, f"its header is damaged ({error})") from error


def _decode_image(image: Image.Image, name: str) -> np.ndarray:
    """A Pillow image of any mode as upright uint8 (H, W, C)."""
    try:
        image.load()  # some formats turn the picture here, so this comes before its orientation
        if image.mode.startswith("I"):
            pixels = high_byte(np.asarray(image))[:, :, None]
        elif image.mode == "F":
            pixels = to_uint8(np.asarray(image))[:, :, None]
        else:
            gray = "L" if image.mode in ("1", "L") else "RGB"
            mode = "RGBA" if image.has_transparency_data else gray
            pixels = as_array(image if image.mode == mode else image.convert(mode))
    except SigakError as error:
        raise DamagedImage(name, str(error)) from None
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error and more
        raise DamagedImage(name, f"the picture is damaged or cut short ({error})") from error
    return _turn(pixels, _orientation(image))


_REDUCED = {
    1: cv2.IMREAD_GRAYSCALE, 2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4, 8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
}  # fmt: skip


def _decode_reduced(data: bytes, image: Image.Image, cover: tuple[int, int]) -> _Decoded | None:
    """A JPEG at the smallest scale that covers (H, W), or None where Pillow should have a look."""
    if not data.rstrip(b"\0").endswith(_ENDINGS["JPEG"]):
        return None  # OpenCV would fill what is missing with gray
    size = _upright_size(image)
    covering = [s for s in _REDUCED if all(-(-n // s) >= c for n, c in zip(size, cover))]
    reduction = max(covering, default=1)
    flags = _REDUCED[reduction] | cv2.IMREAD_IGNORE_ORIENTATION
    if image.mode == "RGB":
        flags |= cv2.IMREAD_COLOR  # one bit, which the gray flags lack
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if pixels is None:
        return None
    pixels = pixels[:, :, None] if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
    return _Decoded(_turn(pixels, _orientation(image)), size, reduction)


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1..8; 1 where there is none or it cannot be read."""
    try:
        value = int(image.getexif().get(0x0112, 1))
    except Exception:  # EXIF blocks are often broken; the picture is not
        return 1
    return value if 1 <= value <= 8 else 1


def _upright_size(image: Image.Image) -> tuple[int, int]:
    """(H, W) once turned, from the header."""
    if _orientation(image) < 5:
        return image.height, image.width
    # Newer versions of Pillow turn a TIFF's size when they open it; its tags hold the stored one.
    tags = image.getexif() if image.format == "TIFF" else {}
    return tags.get(256, image.width), tags.get(257, image.height)


def _turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """The picture as it was meant to be seen (EXIF 2.32, tag Orientation)."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


# ------------------------------------------------------------------ checking and describing

_ENDINGS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82", "GIF": b";"}


def check(path: str | Path, *, thorough: bool = False) -> str | None:
    """What is wrong with a picture file, in words, or None.

    Reads the header and the last bytes only, and decodes where those do not settle it; damage in
    the middle of a whole file is found by `thorough`, which always decodes.
    """
    path = Path(path)
    if not path.is_file():
        return "a folder, not a picture" if path.is_dir() else "no such file"
    try:
        with path.open("rb") as file:
            image = _open(file, str(path))
            if not thorough and _ends_well(file, image.format or ""):
                return None
            _decode_image(image, str(path))
    except DamagedImage as error:
        return error.reason
    except OSError as error:
        return f"cannot be read: {error}"
    return None


def _ends_well(file: BinaryIO, form: str) -> bool:
    """Whether the file ends as its format says; False also for formats without an end mark."""
    length = file.seek(0, os.SEEK_END)
    if form == "WEBP":  # RIFF: bytes 4 to 8 hold the length of what follows
        file.seek(4)
        return length >= 8 + int.from_bytes(file.read(4), "little")
    file.seek(max(0, length - 64))
    return form in _ENDINGS and file.read().rstrip(b"\0").endswith(_ENDINGS[form])


def describe(source: object) -> dict[str, Any]:
    """What a picture is, from its header.

    format; size, the (H, W) that `read` gives; mode and bands as Pillow names them; bytes;
    orientation as EXIF has it (1: upright); frames. Without a file bytes is None and format "array"
    or "image".
    """
    data, image = _header(source)
    try:
        frames = getattr(image, "n_frames", 1)
    except Exception:  # counting walks through the file, which may be damaged further on
        frames = 1
    return {
        "format": image.format or ("image" if isinstance(source, Image.Image) else "array"),
        "size": _upright_size(image),
        "mode": image.mode,
        "bands": list(image.getbands()),
        "bytes": None if data is None else len(data),
        "orientation": _orientation(image),
        "frames": frames,
    }


def _header(source: object) -> tuple[bytes | None, Image.Image]:
    if isinstance(source, (str, Path)):
        data = read_bytes(source)
        return data, _open(io.BytesIO(data), str(source))
    if isinstance(source, (bytes, bytearray, memoryview)):
        return bytes(source), _open(io.BytesIO(source), "the given bytes")
    return None, source if isinstance(source, Image.Image) else as_image(picture(source))


# ------------------------------------------------------------------ preparing


@dataclass(frozen=True)
class Preparation:
    """How any picture becomes a network's input; part of every checkpoint.

    size (H, W); color "gray", "rgb" or "rgba"; steps: a chain (see `steps`) run on the whole
    picture first; fit: "squash" to the size, "letterbox" (all of it in the middle of gray bars),
    "corner" (all of it at their upper left), "rect" (all of it on the smallest canvas of multiples
    of 32 pixels, so that pictures of different shapes have different sizes), "crop" (the middle,
    the short side whole), "native" (as it is, whatever the size) or "longest" (all of it, the
    longer side as long as the size's, nothing beside it); resample: "area", "bilinear" or
    "antialias", see `sigak.io.fit`.
    depth: of volumes, how many slices of `size` go through the network at a time, 0 for pictures;
    intensity: of volumes, how their values are scaled, see `sigak.io.volumes`.
    """

    size: tuple[int, int]
    color: str = "rgb"
    fit: str = "squash"
    steps: tuple[str, ...] = ()
    resample: str = "area"
    depth: int = 0
    intensity: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.size, tuple) or len(self.size) != 2 or min(self.size) < 1:
            raise SigakError(f"size must be (height, width) of at least 1, received {self.size!r}")
        if not isinstance(self.steps, tuple):
            raise SigakError(f"steps must be a tuple of words, received {self.steps!r}")
        choices: dict[str, Collection[str]] = {"color": COLORS, "fit": FITS, "resample": RESAMPLES}
        for name, known in choices.items():
            if (value := getattr(self, name)) not in known:
                raise SigakError(f"{name} must be one of {', '.join(known)}, received {value!r}")
        chain.parse(self.steps)

    @property
    def channels(self) -> int:
        """Channels of a prepared picture."""
        return COLORS[self.color]

    def of_one_size(self) -> Preparation:
        """The same where every picture has the size, which training needs."""
        whole = {"rect": "letterbox", "longest": "corner"}
        return replace(self, fit=whole.get(self.fit, self.fit))

    def asdict(self) -> dict[str, Any]:
        """Plain values for JSON; `Preparation.of` takes them back."""
        return asdict(self)

    @classmethod
    def of(cls, values: dict[str, Any]) -> Preparation:
        """A preparation from `asdict`'s values, also after a trip through JSON."""
        known = {f.name for f in fields(cls)}
        if "size" not in values or not known.issuperset(values):
            raise SigakError(f"a preparation has {sorted(known)}, received {sorted(values)}")
        return cls(**values | {n: tuple(values[n]) for n in ("size", "steps") if n in values})


def prepare(pixels: np.ndarray, preparation: Preparation) -> tuple[np.ndarray, np.ndarray]:
    """The uint8 (H, W, C) picture as the network takes it, and the 3x3 float64 matrix to there.

    The matrix maps points (continuous pixels) of `pixels` to points of the result. Shrinking
    averages areas, enlarging is bilinear; what has the size and colour already is not touched.
    """
    matrix = np.eye(3)
    if preparation.steps:
        pixels, matrix = chain.trace(pixels, preparation.steps)
    pixels = recolor(pixels, preparation.color)
    pixels, fitted = fit(pixels, preparation.size, preparation.fit, preparation.resample)
    return pixels, fitted @ matrix


def load(
    source: object, preparation: Preparation, *, reduced: bool = False
) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """`read` and `prepare` in one: pixels, the matrix from the file's frame, the file's (H, W).

    reduced: decode JPEGs no larger than needed (see `read`'s cover), unless there are steps, which
    count in the file's pixels.
    """
    decoded = _decode(source, preparation.size if reduced and not preparation.steps else None)
    pixels = decoded.pixels
    if preparation.steps:  # a chain starts from the colours that `read` gives
        pixels = recolor(pixels, "rgba" if preparation.color == "rgba" else "rgb")
    pixels, matrix = prepare(pixels, preparation)
    shrink = 1 / decoded.reduction  # exactly so: pixel i of a reduced JPEG covers [i s, (i + 1) s)
    return pixels, matrix @ np.diag([shrink, shrink, 1.0]), decoded.size


# ------------------------------------------------------------------ collecting and saving


def expand(sources: object) -> list[tuple[str, object]]:
    """(name, what `read` takes) for each picture that is meant.

    A path; a folder (searched in depth, sorted, hidden files left out); a pattern such as
    "photos/**/*.jpg"; bytes; a Pillow image; an array or tensor; a list of any of these.
    Arrays: (H, W), (H, W, C), (C, H, W) are one picture; (N, H, W), (N, H, W, C), (N, C, H, W) are
    N. (3, H, W) is one colour picture; (4, H, W) could be one RGBA picture or four gray ones and is
    refused. The range of values (see `read`) is judged over the whole array.
    """
    found = _expand(sources)
    if not found:
        raise SigakError("no pictures were given; expected paths, bytes, Pillow images or arrays")
    return [(name or f"image#{i}", source) for i, (name, source) in enumerate(found)]


def _expand(sources: object) -> list[tuple[str, object]]:
    if isinstance(sources, (str, Path)):
        return [(str(path), path) for path in _find(sources)]
    if isinstance(sources, (list, tuple)):
        return [pair for source in sources for pair in _expand(source)]
    if isinstance(sources, (Image.Image, bytes, bytearray, memoryview)):
        return [(str(getattr(sources, "filename", "")), sources)]
    return [("", pixels) for pixels in pictures(sources)]


def _find(source: str | Path) -> list[Path]:
    path = Path(source).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        # The root's own parts do not count: a folder may be reached through a hidden one.
        inside = [p for p in path.rglob("*") if "/." not in f"/{p.relative_to(path).as_posix()}"]
    else:
        inside = [Path(name) for name in glob.iglob(str(path), recursive=True)]
    pictures = sorted(p for p in inside if p.suffix.lower() in SUFFIXES and p.is_file())
    if not pictures:
        raise SigakError(
            f"no picture found: {path} is no file, and as a folder or pattern it holds none of "
            f"{' '.join(SUFFIXES)}"
        )
    return pictures


def save(path: str | Path, pixels: np.ndarray, quality: int = 95) -> None:
    """Write a picture in the format of the path's suffix; `pixels` as `read` takes arrays.

    The file appears whole or not at all, and folders are made as needed. quality 1..100 is for
    JPEG, WebP and AVIF. An unknown suffix, or RGBA into JPEG, is a `SigakError`.
    """
    path = Path(path)
    form = Image.registered_extensions().get(path.suffix.lower())
    if form not in Image.SAVE:
        raise SigakError(f"cannot save {path.name}: use one of {' '.join(SUFFIXES)}")
    pixels = picture(pixels)
    if form in ("JPEG", "BMP", "PPM") and pixels.shape[2] == 4:
        raise SigakError(f"cannot save {path.name}: {form} has no transparency; use .png or rgb")
    options = {"quality": quality} if form in ("JPEG", "WEBP", "AVIF") else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        as_image(pixels).save(part, form, **options)
        os.replace(part, path)
    except (OSError, ValueError) as error:
        raise SigakError(f"cannot save {path}: {error}") from error
    finally:
        part.unlink(missing_ok=True)
