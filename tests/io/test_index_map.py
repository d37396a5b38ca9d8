"""Class maps as files: values as they are stored, and back."""

import numpy as np
import pytest
from PIL import Image

from sigak.io import image, index_map
from sigak.structures import SigakError


@pytest.fixture
def values():
    return np.random.default_rng(0).integers(0, 6, (9, 13)).astype(np.uint8)


def test_what_is_written_is_read(tmp_path, values):
    palette = [(0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255), (9, 9, 9), (7, 7, 7)]
    index_map.save(tmp_path / "new/a.png", values, palette)
    np.testing.assert_array_equal(index_map.read(tmp_path / "new/a.png"), values)
    assert index_map.palette_of(tmp_path / "new/a.png")[:6] == palette
    colors = image.read(tmp_path / "new/a.png")  # and looks right to everyone else
    np.testing.assert_array_equal(colors, np.array(palette, np.uint8)[values])


@pytest.mark.parametrize("mode", ["L", "P", "LA", "RGB", "I;16"])
def test_every_kind_of_file(tmp_path, values, mode):
    if mode == "I;16":
        Image.fromarray(values.astype(np.uint16)).save(tmp_path / "a.png")
    elif mode == "P":
        paletted = Image.fromarray(values)
        paletted.putpalette([5 * i for i in range(18)])
        paletted.save(tmp_path / "a.png", bits=4)
    else:
        Image.fromarray(values).convert(mode).save(tmp_path / "a.png")
    np.testing.assert_array_equal(index_map.read(tmp_path / "a.png"), values)


def test_one_bit_is_zero_and_one(tmp_path, values):
    Image.fromarray(values > 2).save(tmp_path / "a.png")
    np.testing.assert_array_equal(index_map.read(tmp_path / "a.png"), values > 2)


def test_damage_is_told(tmp_path):
    (tmp_path / "a.png").write_bytes(b"nothing")
    with pytest.raises(image.DamagedImage, match="not a whole picture"):
        index_map.read(tmp_path / "a.png")
    with pytest.raises(SigakError, match="there is no file"):
        index_map.read(tmp_path / "b.png")
