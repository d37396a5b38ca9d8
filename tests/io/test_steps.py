"""Every step equals the Pillow call it stands for, and its matrix follows the pixels."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps
from PIL.Image import Transpose

from sigak.io import steps
from sigak.structures import SigakError

DOCS = Path(__file__).parents[2] / "docs"
RNG = np.random.default_rng(7)
RGB = RNG.integers(0, 256, (40, 60, 3), dtype=np.uint8)


def drawn(image):
    image = image.copy()
    ImageDraw.Draw(image).rectangle((5, 6, 30, 20), outline="blue", width=2)
    return image


PILLOW = {
    "crop=10,5,50,35": lambda i: i.crop((10, 5, 50, 35)),
    "resize=28": lambda i: i.resize((28, 28)),
    "resize=90,33": lambda i: i.resize((90, 33)),
    "rotate=30": lambda i: i.rotate(30, expand=True),
    "rotate=-100.5,expand": lambda i: i.rotate(-100.5, expand=True),
    "rotate=30,keep": lambda i: i.rotate(30),
    "mirror": lambda i: i.transpose(Transpose.FLIP_LEFT_RIGHT),
    "flip": lambda i: i.transpose(Transpose.FLIP_TOP_BOTTOM),
    "rotate90": lambda i: i.transpose(Transpose.ROTATE_90),
    "rotate180": lambda i: i.transpose(Transpose.ROTATE_180),
    "rotate270": lambda i: i.transpose(Transpose.ROTATE_270),
    "transpose": lambda i: i.transpose(Transpose.TRANSPOSE),
    "transverse": lambda i: i.transpose(Transpose.TRANSVERSE),
    "gray": lambda i: i.convert("L"),
    "rgb": lambda i: i.convert("RGB"),
    "channels=bgr": lambda i: Image.merge("RGB", i.split()[::-1]),
    "channels=ggb": lambda i: Image.merge("RGB", [i.split()[k] for k in (1, 1, 2)]),
    "channel=g": lambda i: i.getchannel("G"),
    "brightness=1.6": lambda i: ImageEnhance.Brightness(i).enhance(1.6),
    "contrast=0.4": lambda i: ImageEnhance.Contrast(i).enhance(0.4),
    "color=0": lambda i: ImageEnhance.Color(i).enhance(0),
    "sharpness=2": lambda i: ImageEnhance.Sharpness(i).enhance(2),
    "blur": lambda i: i.filter(ImageFilter.BLUR),
    "blur=2.5": lambda i: i.filter(ImageFilter.GaussianBlur(2.5)),
    "sharpen": lambda i: i.filter(ImageFilter.SHARPEN),
    "smooth": lambda i: i.filter(ImageFilter.SMOOTH),
    "edges": lambda i: i.filter(ImageFilter.FIND_EDGES),
    "edge-enhance": lambda i: i.filter(ImageFilter.EDGE_ENHANCE),
    "emboss": lambda i: i.filter(ImageFilter.EMBOSS),
    "contour": lambda i: i.filter(ImageFilter.CONTOUR),
    "invert": ImageOps.invert,
    "box=5,6,30,20,blue,2": drawn,
    "autocontrast": ImageOps.autocontrast,
    "equalize": ImageOps.equalize,
    "posterize=3": lambda i: ImageOps.posterize(i, 3),
    "threshold=128": lambda i: i.convert("L").point(lambda v: 255 if v >= 128 else 0),
}
NEEDS_COLOUR = {"channels=bgr", "channels=ggb", "channel=g"}
GEOMETRY = [
    "crop=10,5,50,35", "resize=90,33", "resize=28", "rotate=30", "rotate=200", "rotate=30,keep",
    "rotate=90", "mirror", "flip", "rotate90", "rotate180", "rotate270", "transpose", "transverse",
]  # fmt: skip


def test_every_step_has_a_comparison():
    assert {word.partition("=")[0] for word in PILLOW} == set(steps.STEPS)


@pytest.mark.parametrize("word", PILLOW)
def test_rgb_equals_pillow(word):
    want = np.array(PILLOW[word](Image.fromarray(RGB)))
    got = steps.run(RGB, [word])
    np.testing.assert_array_equal(got, want[:, :, None] if want.ndim == 2 else want)


@pytest.mark.parametrize("word", [w for w in PILLOW if w not in NEEDS_COLOUR])
def test_gray_equals_pillow(word):
    gray = RGB[:, :, :1]
    want = np.array(PILLOW[word](Image.fromarray(gray[:, :, 0])))
    got = steps.run(gray, [word])
    np.testing.assert_array_equal(got, want[:, :, None] if want.ndim == 2 else want)


@pytest.mark.parametrize("word", ["invert", "edges", "posterize=2", "blur=1", "brightness=0.5"])
def test_colour_steps_leave_transparency(word):
    rgba = np.dstack([RGB, RGB[:, :, 0]])
    got = steps.run(rgba, [word])
    np.testing.assert_array_equal(got[:, :, 3], rgba[:, :, 3])
    np.testing.assert_array_equal(got[:, :, :3], steps.run(RGB, [word]))


@pytest.mark.parametrize("word", GEOMETRY)
def test_matrix_follows_a_blob(word):
    """A bright blob's centre of mass moves as the matrix says."""
    ys, xs = np.mgrid[0:120, 0:160] + 0.5
    blob = 255 * np.exp(-((xs - 33.0) ** 2 + (ys - 27.0) ** 2) / (2 * 3.0**2))
    after, matrix = steps.trace(blob.astype(np.uint8)[:, :, None], [word])
    weight = after[:, :, 0].astype(float)
    ys, xs = np.mgrid[0 : after.shape[0], 0 : after.shape[1]] + 0.5
    seen = np.array([(weight * xs).sum(), (weight * ys).sum()]) / weight.sum()
    told = matrix @ [33.0, 27.0, 1.0]
    np.testing.assert_allclose(seen, told[:2], atol=0.3)
    assert matrix.dtype == np.float64


@pytest.mark.parametrize(
    "word", ["mirror", "rotate90", "transverse", "rotate=90", "crop=10,5,50,35"]
)
def test_matrix_is_exact_per_pixel(word):
    index = np.arange(40 * 60).reshape(40, 60)
    planes = np.dstack([index % 256, index // 256, index * 0]).astype(np.uint8)
    after, matrix = steps.trace(planes, [word])
    found = after[:, :, 0].astype(int) + 256 * after[:, :, 1].astype(int)
    y, x = 12, 34
    new_x, new_y, _ = matrix @ [x + 0.5, y + 0.5, 1]
    assert found[int(new_y), int(new_x)] == index[y, x]
    assert (new_x % 1, new_y % 1) == (0.5, 0.5)


def test_chain_multiplies_matrices():
    words = ["crop=10,5,50,35", "rotate90", "resize=15,20", "mirror"]
    pixels, whole = RGB, np.eye(3)
    for word in words:
        pixels, one = steps.trace(pixels, [word])
        whole = one @ whole
    together, matrix = steps.trace(RGB, " ".join(words))
    np.testing.assert_array_equal(together, pixels)
    np.testing.assert_allclose(matrix, whole)


def test_photo_exercise_equals_the_calls_by_hand():
    photo = RNG.integers(0, 256, (1000, 700, 3), dtype=np.uint8)
    by_hand = Image.fromarray(photo).crop((100, 400, 600, 900)).resize((28, 28))
    by_hand = 255 - np.array(by_hand.transpose(Transpose.FLIP_LEFT_RIGHT).convert("L"))
    chain = steps.run(photo, "crop=100,400,600,900 resize=28 mirror gray invert")
    np.testing.assert_array_equal(chain[:, :, 0], by_hand)
    assert chain.shape == (28, 28, 1)


@pytest.mark.parametrize("page", ["pictures.md", "ko/pictures.md"])
def test_the_page_on_pictures_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (DOCS / page).read_text(encoding="utf-8")
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.S):
        exec(compile(block, page, "exec"), names)
    assert names["boot"].shape == (28, 28, 1)
    for picture in re.findall(r"\]\((\S+\.(?:png|jpg))\)", text):
        assert (DOCS / page).parent.joinpath(picture).is_file()
    for name in steps.STEPS:
        assert f"`{name}" in text


def test_given_array_is_never_changed():
    before = RGB.copy()
    result = steps.run(RGB, "box=1,1,9,9 invert")
    np.testing.assert_array_equal(RGB, before)
    result[:] = 0  # the result is the caller's own
    steps.run(RGB, [])[:] = 0
    np.testing.assert_array_equal(RGB, before)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("crpo=1,2,3,4", "did you mean crop"),
        ("edge_enhance", "did you mean edge-enhance"),
        ("Mirror", "did you mean mirror"),
        ("zzz", "known are crop"),
        ("crop=1,2,3", r"crop takes x1,y1,x2,y2, received '1,2,3'; for example crop=100"),
        ("crop", "crop takes x1,y1,x2,y2"),
        ("resize=1,2,3", r"resize takes width\[,height\]"),
        ("mirror=1", "mirror takes no value, received '1'; for example mirror"),
        ("gray=", "gray takes no value"),
        ("crop=a,2,3,4", "x1 must be a whole number, received 'a'"),
        ("crop=1.5,2,3,4", "x1 must be a whole number"),
        ("blur=nan", "radius must be a number"),
        ("rotate=30,kep", "'keep' or 'expand'"),
        ("crop=0,0,61,10", "60 wide and 40 high"),
        ("crop=10,10,10,20", "x1 < x2"),
        ("resize=0", "must give a picture"),
        ("resize=1000000", "1 to 178,956,970 pixels"),
        ("blur=-1", "at least 0"),
        ("contrast=-1", "at least 0"),
        ("posterize=9", "1 to 8 bits"),
        ("channel=x", "which are rgb"),
        ("channel=rg", "one letter"),
        ("channels=rg", "1, 3 or 4"),
        ("box=1,1,9,9,blau", "no colour 'blau'"),
        ("box=9,1,1,9", "x1 <= x2"),
    ],
)
def test_mistakes_are_explained(word, said):
    with pytest.raises(SigakError, match=said):
        steps.run(RGB, [word])


def test_examples_run_and_help_names_every_step():
    photo = RNG.integers(0, 256, (900, 700, 3), dtype=np.uint8)
    text = steps.describe().splitlines()
    assert len(text) == len(steps.STEPS)
    for (name, operation), line in zip(steps.STEPS.items(), text, strict=True):
        assert line.startswith(name + operation.usage)
        steps.run(photo[:, :, :], [operation.example or name])
        assert bool(operation.arguments) == bool(operation.example)


def test_pixels_of_the_wrong_kind_are_refused():
    for wrong in (RGB.astype(float), RGB[:, :, 0], RGB[:, :, :2]):
        with pytest.raises(SigakError, match="uint8"):
            steps.run(wrong, ["mirror"])


@pytest.mark.parametrize("color", ["gray", "rgb", "rgba"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_recolor_equals_convert(color, channels):
    pixels = np.dstack([RGB, RGB[:, :, 1]])[:, :, :channels]
    mode = {"gray": "L", "rgb": "RGB", "rgba": "RGBA"}[color]
    source = Image.fromarray(pixels[:, :, 0] if channels == 1 else np.ascontiguousarray(pixels))
    want = np.array(source.convert(mode))
    got = steps.recolor(np.ascontiguousarray(pixels), color)
    np.testing.assert_array_equal(got[:, :, 0] if color == "gray" else got, want)
    assert got.flags.c_contiguous


def test_recolor_refuses_other_names():
    with pytest.raises(SigakError, match="gray, rgb, rgba"):
        steps.recolor(RGB, "bgr")
