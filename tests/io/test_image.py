"""Pictures in every form a user has them: the same pixels, or a sentence on what is wrong."""

import io
import json
import os
import pickle
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps, features

from sigak.io import image
from sigak.structures import SigakError

RNG = np.random.default_rng(3)
RGB = RNG.integers(0, 256, (30, 20, 3), dtype=np.uint8)
GRAY = RGB[:, :, :1].copy()
AVIF = pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")


def smooth(height=240, width=320):
    """A picture that JPEG keeps well."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / 23) + np.cos(y / 31), np.cos((x + y) / 29), np.sin(y / 17)]
    return (127 + 60 * np.stack(waves, 2)).astype(np.uint8)


def encoded(pixels, form="PNG", **options):
    buffer = io.BytesIO()
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


# ------------------------------------------------------------------ reading


@pytest.mark.parametrize("color", ["gray", "rgb", "rgba"])
@pytest.mark.parametrize(
    "form",
    ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", pytest.param("AVIF", marks=AVIF)],
)
def test_path_bytes_picture_and_array_agree(tmp_path, form, color):
    data = encoded(RGB, form)
    path = tmp_path / f"사진 é.{form.lower()}"
    path.write_bytes(data)
    opened = Image.open(io.BytesIO(data))
    array = np.array(opened.convert("RGB"))
    want = image.read(path, color=color)
    for source in (str(path), data, bytearray(data), opened, array, torch.from_numpy(array)):
        np.testing.assert_array_equal(image.read(source, color=color), want)
    mode = {"gray": "L", "rgb": "RGB", "rgba": "RGBA"}[color]
    pillow = np.array(opened.convert("RGB").convert(mode)).reshape(want.shape)
    np.testing.assert_array_equal(want, pillow)
    assert want.dtype == np.uint8
    assert want.flags.writeable
    assert want.flags.c_contiguous


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation(form, orientation):
    data = encoded(RGB, form, exif=exif(orientation))
    want = np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    np.testing.assert_array_equal(image.read(data), want)
    np.testing.assert_array_equal(image.read(Image.open(io.BytesIO(data))), want)
    told = image.describe(data)
    assert told["size"] == want.shape[:2]
    assert told["orientation"] == orientation


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_does_not_hide_the_picture():
    data = encoded(RGB, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff garbage")
    assert image.read(data).shape == RGB.shape


RAMP = np.arange(600, dtype=np.uint16).reshape(30, 20) * 109  # 0..65291


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM"])
def test_sixteen_bit_gray_keeps_the_high_byte(form):
    data = encoded(RAMP, form)
    want = (RAMP >> 8).astype(np.uint8)
    np.testing.assert_array_equal(image.read(data, color="gray")[:, :, 0], want)
    np.testing.assert_array_equal(image.read(RAMP, color="gray")[:, :, 0], want)


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_sixteen_bit_colour_keeps_the_high_byte(suffix):
    ok, data = cv2.imencode(suffix, RGB[:, :, ::-1].astype(np.uint16) * 256 + 255)
    assert ok
    np.testing.assert_array_equal(image.read(data.tobytes()), RGB)


def test_float_tiff_zero_to_one_and_zero_to_255():
    values = GRAY[:, :, 0].astype(np.float32)
    for scaled in (values, values / 255):
        np.testing.assert_array_equal(image.read(encoded(scaled, "TIFF"), color="gray"), GRAY)
    with pytest.raises(image.DamagedImage, match="from 0"):
        image.read(encoded(values * 100, "TIFF"))


def test_palette_with_transparency():
    picture = Image.new("P", (2, 1))
    picture.putpalette([255, 0, 0, 0, 255, 0])
    picture.putdata([0, 1])
    data = encoded(picture, "PNG", transparency=1)
    assert image.read(data, color="rgba").tolist() == [[[255, 0, 0, 255], [0, 255, 0, 0]]]
    assert image.read(data).tolist() == [[[255, 0, 0], [0, 255, 0]]]


@pytest.mark.parametrize(
    ("mode", "form"),
    [("LA", "PNG"), ("RGBA", "PNG"), ("1", "PNG"), ("L", "PNG"), ("P", "GIF"), ("CMYK", "JPEG"),
     ("CMYK", "TIFF"), ("YCbCr", "TIFF"), ("LAB", "TIFF")],
)  # fmt: skip
def test_modes_equal_pillows_convert(mode, form):
    base = Image.fromarray(np.dstack([RGB, RGB[:, :, 0]])) if mode == "RGBA" else None
    if mode == "LAB":
        base = Image.frombytes("LAB", (20, 30), RGB.tobytes())
    data = encoded(base or Image.fromarray(RGB).convert(mode), form)
    opened = Image.open(io.BytesIO(data))
    assert opened.mode == mode
    np.testing.assert_array_equal(image.read(data), np.array(opened.convert("RGB")))


def test_animation_gives_its_first_frame():
    frames = [Image.fromarray(np.full((8, 8, 3), v, np.uint8)) for v in (10, 200)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert image.read(data)[0, 0].tolist() == [10, 10, 10]
    assert image.describe(data)["frames"] == 2


def test_read_as_is_keeps_the_colours():
    rgba = np.dstack([RGB, GRAY])
    for pixels in (GRAY, RGB, rgba):
        plain = pixels[:, :, 0] if pixels is GRAY else pixels
        np.testing.assert_array_equal(image.read_as_is(encoded(plain)), pixels)


# ------------------------------------------------------------------ reduced decoding


@pytest.mark.parametrize(
    ("cover", "shape"),
    [((240, 320), (240, 320)), ((121, 100), (240, 320)), ((120, 160), (120, 160)),
     ((50, 80), (60, 80)), ((8, 8), (30, 40)), ((500, 500), (240, 320))],
)  # fmt: skip
def test_cover_is_the_smallest_scale_that_covers(cover, shape):
    data = encoded(smooth(), "JPEG", quality=95)
    got = image.read(data, cover=cover)
    assert got.shape == (*shape, 3)
    want = cv2.resize(image.read(data), shape[::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(got.astype(int) - want).max() <= 6


@pytest.mark.parametrize("orientation", [1, 3, 6, 7])
def test_cover_turns_and_keeps_gray(orientation):
    data = encoded(smooth()[:, :, 0], "JPEG", exif=exif(orientation))
    whole = image.read(data, color="gray")
    got = image.read(data, color="gray", cover=(whole.shape[0] // 2, whole.shape[1] // 2))
    assert got.shape == (whole.shape[0] // 2, whole.shape[1] // 2, 1)
    want = cv2.resize(whole, got.shape[1::-1], interpolation=cv2.INTER_AREA)[:, :, None]
    assert np.abs(got.astype(int) - want).max() <= 6


def test_cover_leaves_other_formats_whole_and_refuses_cut_ones():
    assert image.read(encoded(smooth()), cover=(10, 10)).shape == (240, 320, 3)
    cmyk = Image.fromarray(smooth()).convert("CMYK")
    assert image.read(encoded(cmyk, "JPEG"), cover=(10, 10)).shape == (240, 320, 3)
    with pytest.raises(image.DamagedImage):
        image.read(encoded(smooth(), "JPEG")[:-400], cover=(10, 10))


@pytest.mark.parametrize("reduced", [False, True])
@pytest.mark.parametrize("fit", ["squash", "letterbox", "crop"])
def test_load_tells_where_the_files_points_went(fit, reduced):
    picture = np.zeros((301, 413, 3), np.uint8)
    picture[96:104, 216:232] = 255  # its centre is (224, 100)
    data = encoded(picture, "JPEG", exif=exif(6), quality=98)
    pixels, matrix, size = image.load(data, image.Preparation((64, 48), fit=fit), reduced=reduced)
    assert size == (413, 301)
    assert pixels.shape == (64, 48, 3)
    weight = np.where(pixels[:, :, 0] == 114, 0, pixels[:, :, 0]).astype(float)
    ys, xs = np.mgrid[0:64, 0:48] + 0.5
    seen = np.array([(weight * xs).sum(), (weight * ys).sum()]) / weight.sum()
    np.testing.assert_allclose(seen, (matrix @ [301 - 100, 224, 1])[:2], atol=0.5)


def test_threads_read_what_one_thread_reads(tmp_path):
    paths = [tmp_path / f"{i}.jpg" for i in range(8)]
    for i, path in enumerate(paths):
        image.save(path, np.roll(smooth(), 10 * i, axis=1))
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(image.read, paths))
    for path, pixels in zip(paths, together, strict=True):
        np.testing.assert_array_equal(pixels, image.read(path))


# ------------------------------------------------------------------ damage and description


def bomb(width, height):
    """A PNG header that promises more than it holds."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", len(header)) + chunk
    return start + struct.pack(">I", zlib.crc32(chunk)) + b"\0\0\0\0IEND\xaeB`\x82"


DAMAGED = {
    "empty.jpg": (b"", "empty"),
    "text.jpg": (b"<html>not found</html>", "not a picture .*<html>"),
    "zeros.png": (bytes(5000), "not a picture"),
    "bomb.png": (bomb(60_000, 60_000), "too large .*MAX_IMAGE_PIXELS"),
    "cut.jpg": (encoded(smooth(), "JPEG")[:3000], "cut short"),
    "end.jpg": (encoded(smooth(), "JPEG")[:-200], "cut short"),
    "cut.png": (encoded(RGB)[:900], "cut short"),
    "cut.webp": (encoded(smooth(), "WEBP")[:1500], "damaged"),
    "cut.gif": (encoded(RGB, "GIF")[:-300], "cut short"),
    "cut.bmp": (encoded(RGB, "BMP")[:-300], "cut short"),
    "cut.tif": (encoded(RGB, "TIFF")[:900], "damaged|cut short|not a picture"),
    "cut.ppm": (encoded(RGB, "PPM")[:-300], "cut short"),
    "header.png": (encoded(RGB)[:20], "damaged|cut short|not a picture"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_named(tmp_path, name):
    data, said = DAMAGED[name]
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(image.DamagedImage, match=said) as caught:
        image.read(path)
    assert caught.value.source == str(path)
    assert str(path) in str(caught.value)
    assert image.check(path) == image.check(path, thorough=True) == caught.value.reason
    with pytest.raises(image.DamagedImage, match="the given bytes"):
        image.read(data)


def test_damage_crosses_processes():
    again = pickle.loads(pickle.dumps(image.DamagedImage("a.jpg", "the file is empty")))
    assert (str(again), again.source) == ("a.jpg: the file is empty", "a.jpg")


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_whole_files_pass_the_check(tmp_path, form):
    path = tmp_path / "a.bin"
    path.write_bytes(encoded(smooth(), form))
    assert image.check(path) is None
    assert image.check(str(path), thorough=True) is None


def test_check_accepts_padding_and_films_behind_a_jpeg(tmp_path):
    path = tmp_path / "a.jpg"
    for behind in (b"\0" * 9, b"\0\0\0 ftypmp42" + bytes(range(256))):
        path.write_bytes(encoded(smooth(), "JPEG") + behind)
        assert image.check(path) is None
        assert image.read(path, cover=(10, 10)).shape[2] == 3


def test_thorough_check_finds_what_the_end_hides(tmp_path):
    data = bytearray(encoded(RGB))
    start = data.index(b"IDAT") + 4
    data[start : start + 200] = bytes(200)
    path = tmp_path / "a.png"
    path.write_bytes(data)
    assert image.check(path) is None
    assert "damaged" in image.check(path, thorough=True)


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(SigakError, match=r"there is no file .*none\.jpg"):
        image.read(tmp_path / "none.jpg")
    with pytest.raises(SigakError, match="is a folder"):
        image.read(tmp_path)
    assert image.check(tmp_path / "none.jpg") == "no such file"
    assert image.check(tmp_path) == "a folder, not a picture"


def test_large_pictures_open_when_the_limit_is_raised(monkeypatch):
    data = encoded(np.zeros((100, 100), np.uint8))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(image.DamagedImage, match="too large"):
        image.read(data)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    assert image.read(data).shape == (100, 100, 3)


def test_describe_files_pictures_and_arrays(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(np.dstack([RGB, GRAY])))
    told = image.describe(path)
    assert told == {
        "format": "PNG", "size": (30, 20), "mode": "RGBA", "bands": ["R", "G", "B", "A"],
        "bytes": path.stat().st_size, "orientation": 1, "frames": 1,
    }  # fmt: skip
    assert image.describe(path.read_bytes()) == told
    assert image.describe(Image.open(path)) == told | {"bytes": None}
    assert image.describe(Image.fromarray(RGB))["format"] == "image"
    assert image.describe(RGB.transpose(2, 0, 1))["size"] == (30, 20)
    assert image.describe(RGB.transpose(2, 0, 1))["format"] == "array"


def test_describe_survives_a_film_cut_short():
    frames = [Image.fromarray(np.roll(RGB, i, 0)) for i in range(3)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    for length in range(len(data) // 3, len(data), 97):
        assert image.describe(data[:length])["size"] == (30, 20)


# ------------------------------------------------------------------ preparing


def test_preparation_travels_through_json():
    original = image.Preparation((28, 32), "gray", "letterbox", ("crop=0,0,10,10", "invert"))
    assert image.Preparation.of(json.loads(json.dumps(original.asdict()))) == original
    assert image.Preparation.of({"size": [8, 8]}) == image.Preparation((8, 8))
    assert original.channels == 1
    with pytest.raises(SigakError, match="a preparation has"):
        image.Preparation.of({"size": [8, 8], "sise": 1})


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"size": 28}, "received 28"),
        ({"size": (0, 5)}, "at least 1"),
        ({"size": (5, 5), "color": "bgr"}, "color must be one of gray, rgb, rgba"),
        (
            {"size": (5, 5), "fit": "pad"},
            "fit must be one of squash, letterbox, corner, rect, crop",
        ),
        ({"size": (5, 5), "steps": ("miror",)}, "did you mean mirror"),
        ({"size": (5, 5), "steps": "mirror gray"}, "tuple of words"),
    ],
)
def test_wrong_preparations_are_refused(arguments, said):
    with pytest.raises(SigakError, match=said):
        image.Preparation(**arguments)


@pytest.mark.parametrize("fit", ["squash", "letterbox", "crop"])
def test_a_picture_of_the_size_is_untouched(fit):
    pixels, matrix = image.prepare(RGB, image.Preparation((30, 20), fit=fit))
    assert pixels is RGB
    np.testing.assert_array_equal(matrix, np.eye(3))


@pytest.mark.parametrize("color", ["gray", "rgb", "rgba"])
@pytest.mark.parametrize("fit", ["squash", "letterbox", "crop"])
@pytest.mark.parametrize("size", [(64, 64), (50, 200), (300, 100), (400, 500), (7, 3)])
def test_matrix_follows_the_picture(fit, size, color):
    """A ramp of x and y says where each point of the result came from."""
    height, width = 160, 240
    y, x = np.mgrid[0:height, 0:width] + 0.5
    ramp = np.dstack([x, y, y]).astype(np.uint8)
    pixels, matrix = image.prepare(ramp, image.Preparation(size, fit=fit))
    inner = matrix @ [[0, width], [0, height], [1, 1]]
    at = np.mean([np.maximum(inner[:2, 0], 0), np.minimum(inner[:2, 1], size[::-1])], axis=0)
    u, v = np.floor(at).astype(int)
    came_from = np.linalg.inv(matrix) @ [u + 0.5, v + 0.5, 1]
    np.testing.assert_allclose(pixels[v, u, :2], came_from[:2], atol=1.5)
    shaped, same = image.prepare(ramp, image.Preparation(size, color, fit))
    assert shaped.shape == (*size, {"gray": 1, "rgb": 3, "rgba": 4}[color])
    np.testing.assert_array_equal(same, matrix)


def test_letterbox_bars_and_crop():
    white = np.full((10, 40, 4), 255, np.uint8)
    boxed, matrix = image.prepare(white, image.Preparation((20, 20), "rgba", "letterbox"))
    assert boxed[0, 0].tolist() == [114, 114, 114, 255]
    assert (boxed[:, :, 0] == 255).sum() == 5 * 20
    np.testing.assert_allclose(matrix, [[0.5, 0, 0], [0, 0.5, 7], [0, 0, 1]])
    wide = np.arange(40, dtype=np.uint8)[None, :, None].repeat(10, 0)
    cropped, matrix = image.prepare(wide, image.Preparation((10, 10), "gray", "crop"))
    assert cropped[0, :, 0].tolist() == list(range(15, 25))
    np.testing.assert_allclose(matrix, [[1, 0, -15], [0, 1, 0], [0, 0, 1]])


def test_shrinking_averages_and_never_skips_lines():
    stripes = np.zeros((64, 64, 1), np.uint8)
    stripes[:, ::4] = 255
    small, _ = image.prepare(stripes, image.Preparation((16, 16), "gray"))
    assert np.unique(small).tolist() == [64]
    # One axis shrinks while the other grows: the stripes still average.
    mixed, _ = image.prepare(stripes, image.Preparation((128, 16), "gray"))
    assert np.unique(mixed).tolist() == [64]


def test_steps_run_first_and_their_matrix_counts():
    photo = smooth(1000, 700)
    steps = ("crop=100,400,600,900", "resize=28", "mirror", "gray", "invert")
    pixels, matrix = image.prepare(photo, image.Preparation((28, 28), "gray", steps=steps))
    assert pixels.shape == (28, 28, 1)
    np.testing.assert_allclose(matrix @ [100, 400, 1], [28, 0, 1], atol=1e-9)
    np.testing.assert_allclose(matrix @ [600, 900, 1], [0, 28, 1], atol=1e-9)


@pytest.mark.parametrize("pixels", [RGB, GRAY[:, :, 0], np.dstack([RGB, GRAY])])
@pytest.mark.parametrize("color", ["gray", "rgb", "rgba"])
@pytest.mark.parametrize("steps", [(), ("crop=2,2,18,20", "resize=9,11", "rotate=20")])
def test_load_is_read_and_prepare(pixels, color, steps):
    data = encoded(pixels)
    preparation = image.Preparation((16, 12), color, "letterbox", steps)
    start = "rgba" if color == "rgba" else "rgb"
    want, moved = image.prepare(image.read(data, color=start), preparation)
    got, matrix, size = image.load(data, preparation)
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(matrix, moved)
    assert size == (30, 20)


# ------------------------------------------------------------------ collecting


def test_expand_folders_patterns_and_lists(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / ".cache").mkdir()
    for name in ("b/2.JPG", "a.png", "b/10.webp", ".cache/no.png", "b/._2.jpg", "note.txt"):
        (tmp_path / name).write_bytes(b"x")
    inside = [str(tmp_path / n) for n in ("a.png", "b/10.webp", "b/2.JPG")]
    assert [n for n, _ in image.expand(tmp_path)] == inside
    assert [n for n, _ in image.expand(str(tmp_path / "**" / "*"))] == inside
    assert [n for n, _ in image.expand([inside[0], tmp_path / "b"])] == inside
    assert [n for n, _ in image.expand(tmp_path / "note.txt")] == [str(tmp_path / "note.txt")]
    for nothing in (tmp_path / "none.jpg", tmp_path / "*.bmp"):
        with pytest.raises(SigakError, match=r"no picture found.*\.jpg"):
            image.expand(nothing)
    (tmp_path / "a[1].png").write_bytes(b"x")
    assert len(image.expand(str(tmp_path / "a[1].png"))) == 1


# ------------------------------------------------------------------ saving


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".ppm", ".PNG"])
@pytest.mark.parametrize("pixels", [RGB, GRAY])
def test_lossless_formats_come_back(tmp_path, suffix, pixels):
    path = tmp_path / "new" / f"사진{suffix}"
    image.save(path, pixels)
    color = "rgb" if pixels is RGB else "gray"
    np.testing.assert_array_equal(image.read(path, color=color), pixels)
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".gif", pytest.param(".avif", marks=AVIF)])
def test_lossy_formats_stay_close(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    image.save(str(path), smooth())
    assert np.abs(image.read(path).astype(int) - smooth()).mean() < 8


def test_quality_and_float_arrays(tmp_path):
    image.save(tmp_path / "a.jpg", smooth(), quality=95)
    image.save(tmp_path / "b.jpg", smooth().transpose(2, 0, 1) / 255, quality=10)
    assert (tmp_path / "a.jpg").stat().st_size > 2 * (tmp_path / "b.jpg").stat().st_size


def test_failed_save_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.jpg"
    image.save(path, RGB)
    before = path.read_bytes()
    with pytest.raises(SigakError, match="JPEG has no transparency"):
        image.save(path, np.dstack([RGB, GRAY]))
    with pytest.raises(SigakError, match="cannot save"):
        image.save(path, np.zeros((4, 70_000), np.uint8))  # JPEG ends at 65,535
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.jpg"]
    for name in ("a.xyz", "a"):
        with pytest.raises(SigakError, match=r"use one of \.jpg"):
            image.save(tmp_path / name, RGB)


@pytest.mark.data
def test_real_photos_agree_with_pillow_and_opencv():
    root = Path(os.environ["SIGAK_DATA"])
    paths = [path for name, path in image.expand([root / "photos", root / "coco-mini"])]
    assert len(paths) > 50
    for path in paths:
        pixels = image.read(path)
        pillow = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
        np.testing.assert_array_equal(pixels, np.array(pillow))
        np.testing.assert_array_equal(pixels, image.read(path.read_bytes()))
        opened = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
        assert np.abs(pixels.astype(int) - opened).max() <= 3  # decoders may round differently
        assert image.check(path) is None
