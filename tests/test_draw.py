"""Text and sheets of pictures."""

import numpy as np
import pytest

from sigak.draw import grid, text
from sigak.structures import SigakError

WHITE = np.full((40, 120, 3), 255, np.uint8)


def test_text_writes_and_leaves_the_original_alone():
    drawn = text(WHITE, (5, 5), "sigak")
    assert (WHITE == 255).all()
    assert drawn.shape == WHITE.shape
    ys, xs = np.nonzero(drawn.min(axis=2) < 128)
    assert ys.min() >= 5
    assert xs.min() >= 5
    assert 8 <= np.ptp(ys) <= 20


def test_text_of_another_size_and_color():
    small, large = (text(WHITE, (0, 0), "Ay", size=size) for size in (10, 30))
    assert (large < 128).sum() > 3 * (small < 128).sum()
    red = text(WHITE, (0, 0), "Ay", size=30, color=(255, 0, 0), background=(0, 0, 255))
    assert (red == (255, 0, 0)).all(axis=2).any()
    assert (red == (0, 0, 255)).all(axis=2).any()


@pytest.mark.parametrize("words", ["시각", "視覚", "Käfer", "🙂", "a\nb", "\udcff", "", "\x00"])
def test_any_text_can_be_written(words):
    assert text(WHITE, (0, 0), words).shape == WHITE.shape
    assert grid([WHITE], [words]).ndim == 3


def test_letters_with_accents_are_not_boxes():
    drawn = [text(WHITE, (0, 0), words, size=30) for words in ("é", "ü", "и", "Ω")]
    assert all((a != b).any() for a in drawn for b in drawn if a is not b)


def test_grid_of_mixed_pictures():
    tiny = np.full((2, 2, 1), 200, np.uint8)
    tall = np.full((300, 10, 3), 100, np.uint8)
    clear = np.full((64, 64, 4), 50, np.uint8)
    sheet = grid([tiny, tall, clear], ["tiny", "tall", "clear"], columns=2, side=100)
    assert sheet.dtype == np.uint8
    assert sheet.shape == (2 * 128, 2 * 108, 3)
    assert (sheet[54, 54] == 200).all()
    assert (sheet[54, 108 + 54] == 100).all()
    assert (sheet[54, 108 + 20] == 255).all()  # beside the tall one
    assert (sheet[128 + 54, 54] == 50).all()


def test_small_pictures_keep_hard_edges():
    checks = np.array([[0, 255], [255, 0]], np.uint8)[..., None]
    sheet = grid([checks], [""], side=100)
    assert set(np.unique(sheet)) == {0, 255}
    assert (sheet[4:54, 4:54] == 0).all()


def test_long_captions_stay_in_their_place():
    sheet = grid([WHITE, WHITE], ["", "a very long caption " * 9], columns=2, side=96)
    assert (sheet[:, :104] == 255).all()
    assert (sheet[:, 104:] < 128).any()


@pytest.mark.parametrize(
    ("images", "captions", "columns"), [([], [], 8), ([WHITE], [], 8), ([WHITE], ["a"], 0)]
)
def test_mistakes(images, captions, columns):
    with pytest.raises(SigakError, match="expected at least one picture and column"):
        grid(images, captions, columns)


@pytest.mark.parametrize("image", [WHITE[..., 0], WHITE.astype(float), WHITE[..., :2]])
def test_pictures_of_another_kind_are_refused(image):
    with pytest.raises(SigakError, match="expected a uint8 picture"):
        text(image, (0, 0), "x")
