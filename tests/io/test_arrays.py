"""Arrays and tensors as users hold them: every shape and range gives the picture that was meant."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from sigak.io import image
from sigak.structures import SigakError

RNG = np.random.default_rng(3)
RGB = RNG.integers(0, 256, (30, 20, 3), dtype=np.uint8)
GRAY = RGB[:, :, :1].copy()


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


CHW = np.ascontiguousarray(RGB.transpose(2, 0, 1))


@pytest.mark.parametrize(
    "source",
    [RGB, CHW, RGB.astype(np.int64), RGB.astype(np.float64), RGB / 255, (RGB / 255).astype("f4"),
     RGB.astype(np.uint16) * 257, torch.from_numpy(CHW), torch.from_numpy(RGB),
     torch.from_numpy(CHW).float() / 255, torch.from_numpy(CHW).bfloat16(),
     (torch.from_numpy(CHW) / 255).requires_grad_(), RGB[::-1][::-1]],
)  # fmt: skip
def test_arrays_and_tensors_of_a_colour_picture(source):
    np.testing.assert_array_equal(image.read(source), RGB)


@pytest.mark.parametrize("source", [GRAY, GRAY[:, :, 0], GRAY.transpose(2, 0, 1), GRAY / 255])
def test_arrays_of_a_gray_picture(source):
    np.testing.assert_array_equal(image.read(source, color="gray"), GRAY)
    np.testing.assert_array_equal(image.read(source), np.repeat(GRAY, 3, 2))


def test_bool_four_channels_and_shapes_that_fit_twice():
    assert image.read(np.eye(2, dtype=bool), color="gray")[:, :, 0].tolist() == [[255, 0], [0, 255]]
    rgba = np.dstack([RGB, GRAY])
    for source in (rgba, rgba.transpose(2, 0, 1)):
        np.testing.assert_array_equal(image.read(source, color="rgba"), rgba)
        np.testing.assert_array_equal(image.read(source), RGB)
    twice = RNG.integers(0, 256, (3, 5, 3), dtype=np.uint8)
    np.testing.assert_array_equal(image.read(twice), twice)
    np.testing.assert_array_equal(image.read(torch.from_numpy(twice)), twice.transpose(1, 2, 0))


def test_floats_a_little_above_one_are_still_zero_to_one():
    np.testing.assert_array_equal(image.read(RGB / 255 * (1 + 1e-6)), RGB)


def test_the_result_is_the_callers_own():
    given = RGB.copy()
    image.read(given)[:] = 0
    np.testing.assert_array_equal(given, RGB)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (np.full((4, 4), np.nan), "without NaN"),
        (np.full((4, 4), -0.1), "from -0.1"),
        (np.full((4, 4), 256), "to 256"),
        (np.full((4, 4), 300.0), "to 300"),
        (np.full((4, 4), np.inf), "to inf"),
        (np.zeros((4, 4), complex), "complex128"),
        (np.zeros((0, 4)), r"\(0, 4\)"),
        (np.zeros((5, 4, 2)), r"\(5, 4, 2\)"),
        (np.zeros((2, 4, 4, 3)), "one picture"),
        (None, "NoneType"),
        (3.5, "float"),
    ],
)
def test_wrong_values_are_refused(source, said):
    with pytest.raises(SigakError, match=said):
        image.read(source)


DIGITS = RNG.integers(0, 256, (5, 28, 28), dtype=np.uint8)
BATCH = RNG.integers(0, 256, (5, 9, 8, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        (DIGITS, [d[:, :, None] for d in DIGITS]),
        (DIGITS[:1], [DIGITS[0][:, :, None]]),
        (DIGITS[0], [DIGITS[0][:, :, None]]),
        (DIGITS[0][:, :, None], [DIGITS[0][:, :, None]]),
        (DIGITS[:, :, :, None], [d[:, :, None] for d in DIGITS]),
        (torch.from_numpy(DIGITS)[:, None], [d[:, :, None] for d in DIGITS]),
        (DIGITS[:4][..., None], [d[:, :, None] for d in DIGITS[:4]]),
        (BATCH, list(BATCH)),
        (BATCH / 255, list(BATCH)),
        (BATCH.transpose(0, 3, 1, 2), list(BATCH)),
        (torch.from_numpy(BATCH).permute(0, 3, 1, 2).float() / 255, list(BATCH)),
        (BATCH[0], [BATCH[0]]),
        (BATCH[0].transpose(2, 0, 1), [BATCH[0]]),
        ([BATCH[0], DIGITS], [BATCH[0], *[d[:, :, None] for d in DIGITS]]),
        (Image.fromarray(RGB), [RGB]),
        (png(RGB), [RGB]),
    ],
)
def test_expand_arrays_and_batches(source, wanted):
    found = image.expand(source)
    assert len(found) == len(wanted)
    for (_, one), want in zip(found, wanted, strict=True):
        color = "gray" if want.shape[2] == 1 else "rgb"
        np.testing.assert_array_equal(image.read(one, color=color), want)
    assert len({name for name, _ in found}) == len(found)


def test_expand_judges_the_range_over_the_whole_batch():
    batch = np.zeros((2, 6, 6))
    batch[0] = 200.0
    batch[1] = 1.0  # dark, but of a 0..255 batch
    assert [image.read(p).max() for _, p in image.expand(batch)] == [200, 1]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (DIGITS[:4], "one RGBA picture or four gray"),
        (torch.from_numpy(DIGITS[:4]), "one RGBA picture or four gray"),
        (np.zeros((5, 6, 7, 8)), r"received \(5, 6, 7, 8\)"),
        (np.zeros(5), r"received \(5,\)"),
        (np.zeros((0, 28, 28)), r"\(0, 28, 28\)"),
        ([], "no pictures were given"),
        ([1, 2], "received int"),
        (None, "received NoneType"),
    ],
)
def test_expand_refuses_what_it_cannot_know(source, said):
    with pytest.raises(SigakError, match=said):
        image.expand(source)
