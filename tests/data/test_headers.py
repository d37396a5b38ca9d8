"""Sizes read from headers are those of the decoded pictures."""

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from sigak.data.headers import measure
from sigak.io import image


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp", ".gif", ".tif"])
@pytest.mark.parametrize("orientation", [None, 1, 3, 6, 8])
def test_the_size_is_that_of_the_pixels(tmp_path, suffix, orientation):
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    path = tmp_path / f"a{suffix}"
    Image.new("RGB", (31, 17), "red").save(path, exif=exif)
    [header] = measure([path])
    assert header.size == image.read(path).shape[:2]
    assert header.damage is None
    assert header.orientation == image.describe(path)["orientation"]


def test_kinds_of_jpeg_and_png(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (300, 200, 3), np.uint8)
    picture = Image.fromarray(noise)
    picture.save(tmp_path / "progressive.jpg", progressive=True)
    picture.convert("CMYK").save(tmp_path / "cmyk.jpg")
    picture.convert("L").save(tmp_path / "gray.jpg", comment=b"x" * 60_000)
    picture.save(tmp_path / "profile.jpg", icc_profile=b"p" * 150_000)  # the frame lies far behind
    picture.convert("P").save(tmp_path / "palette.png")
    notes = PngImagePlugin.PngInfo()
    notes.add_text("note", "x" * 70_000)
    picture.save(tmp_path / "notes.png", pnginfo=notes)
    assert {header[:2] for header in measure(sorted(tmp_path.iterdir()))} == {((300, 200), 1)}


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_damage_is_told(tmp_path, suffix):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    whole, cut, text = (tmp_path / f"{name}{suffix}" for name in ("whole", "cut", "text"))
    Image.fromarray(noise).save(whole)
    cut.write_bytes(whole.read_bytes()[:2000])
    text.write_text("no picture")
    headers = measure([whole, cut, text, tmp_path / "lost.jpg"])
    assert headers[0].damage is None
    for header, word in zip(headers[1:], ("cut short", "not a picture", "no such file")):
        assert word in header.damage
        assert header.size == (0, 0)
