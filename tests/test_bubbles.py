"""The bubble chart: names stay clear of each other, in every kind of file."""

import itertools

import numpy as np
import pytest
from matplotlib.transforms import Bbox

from sigak.bubbles import Bubble, _free_place, _overlap, draw_bubbles
from sigak.io.image import describe
from sigak.structures import SigakError

WORDS = {"title": "t", "across": "x", "up": "y", "note": "n"}


@pytest.mark.parametrize(
    ("suffix", "begins"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")]
)
def test_every_kind_of_file(tmp_path, suffix, begins):
    file = tmp_path / "new" / f"chart.{suffix}"
    draw_bubbles([Bubble("one", 1.0, 50.0, 3.0), Bubble("two", 10.0, 60.0, 9.0)], file, **WORDS)
    assert file.read_bytes().startswith(begins)
    if suffix == "png":
        assert tuple(describe(file)["size"]) == (1200, 1800)


def test_one_bubble_is_a_chart_and_none_is_not(tmp_path):
    draw_bubbles([Bubble("alone", 5.0, 70.0, 1.0)], tmp_path / "one.png", **WORDS)
    with pytest.raises(SigakError, match="nothing to draw"):
        draw_bubbles([], tmp_path / "none.png", **WORDS)


def test_names_of_a_crowd_do_not_cover_each_other():
    random = np.random.default_rng(0)
    frame = Bbox.from_bounds(0, 0, 1500, 1000)
    taken: list[Bbox] = []
    for x, y in random.uniform((600, 400), (900, 600), (30, 2)):
        box, _ = _free_place((x, y), 10.0, Bbox.from_bounds(0, 0, 80, 14), taken, frame)
        taken.append(box)
    assert all(_overlap(a, b) == 0 for a, b in itertools.combinations(taken, 2))


def test_a_name_stays_inside_the_frame():
    frame = Bbox.from_bounds(0, 0, 300, 200)
    box, _ = _free_place((298.0, 198.0), 5.0, Bbox.from_bounds(0, 0, 80, 14), [], frame)
    assert box.x1 <= 300
    assert box.y1 <= 200
