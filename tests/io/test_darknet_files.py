"""Files of Darknet: .cfg text and .weights numbers, whole and damaged."""

import struct

import numpy as np
import pytest

from sigak.io import darknet
from sigak.structures import SigakError

CFG = """
# a comment
[net]
width = 64   ; another
height=32

[Convolutional]
filters=16
anchors = 10,13,  16,30,
"""


def test_sections_keep_their_options_and_places():
    net, conv = darknet.parse_cfg(CFG)
    assert (net.kind, net.options) == ("net", {"width": "64", "height": "32"})
    assert (conv.kind, conv.where) == ("convolutional", " of line 7")
    assert conv.whole("filters") == 16
    assert conv.reals("anchors") == (10, 13, 16, 30)
    assert conv.wholes("mask", (0, 1)) == (0, 1)
    assert conv.real("scale", 1.5) == 1.5
    assert conv.word("activation", "leaky") == "leaky"


def test_what_is_written_is_read_again():
    sections = darknet.parse_cfg(CFG)
    again = darknet.parse_cfg(darknet.format_cfg(sections))
    assert [(s.kind, s.options) for s in again] == [(s.kind, s.options) for s in sections]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "begins with .net., received no section"),
        ("[convolutional]\n", r"begins with \[net\], received \[convolutional\]"),
        ("[net]\nwidth 3\n", "line 2 .* received 'width 3'"),
        ("width=3\n[net]\n", "line 1"),
    ],
)
def test_text_that_is_no_cfg_is_refused(text, message):
    with pytest.raises(SigakError, match=message):
        darknet.parse_cfg(text)


@pytest.mark.parametrize("value", ["many", "1.5", ""])
def test_a_wrong_value_is_told_with_its_line(value):
    section = darknet.parse_cfg(f"[net]\n[maxpool]\nsize={value}\n")[1]
    with pytest.raises(SigakError, match=r"\[maxpool\] of line 2: expected a whole number for siz"):
        section.whole("size")
    with pytest.raises(SigakError, match="expected a number for stride, received nothing"):
        section.real("stride")


def test_a_missing_cfg_is_told(tmp_path):
    with pytest.raises(SigakError, match=r"none\.cfg cannot be read"):
        darknet.read_cfg(tmp_path / "none.cfg")


NUMBERS = np.array([1.5, -2.0, 3e-9], np.float32)


def test_numbers_make_the_round_trip(tmp_path):
    path = tmp_path / "a" / "net.weights"
    darknet.write_weights(path, NUMBERS, seen=2**40)
    assert path.stat().st_size == 20 + 12
    numbers, version, seen = darknet.read_weights(path)
    assert numbers.tobytes() == NUMBERS.tobytes()
    assert (version, seen) == ((0, 2, 5), 2**40)
    assert [p.name for p in path.parent.iterdir()] == ["net.weights"]


def test_the_old_header_has_16_bytes(tmp_path):
    path = tmp_path / "old.weights"
    path.write_bytes(struct.pack("<3iI", 0, 1, 0, 77) + NUMBERS.tobytes())
    numbers, version, seen = darknet.read_weights(path)
    assert numbers.tobytes() == NUMBERS.tobytes()
    assert (version, seen) == ((0, 1, 0), 77)


@pytest.mark.parametrize("length", [0, 11, 19, 21])
def test_cut_files_are_refused(tmp_path, length):
    path = tmp_path / "cut.weights"
    path.write_bytes((struct.pack("<3iQ", 0, 2, 5, 0) + NUMBERS.tobytes())[:length])
    with pytest.raises(SigakError, match=r"is cut|is not a \.weights file"):
        darknet.read_weights(path)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "net.weights"
    path.write_bytes(b"PK\x03\x04" + bytes(range(100)))
    with pytest.raises(SigakError, match=r"not a \.weights file of Darknet.*PK"):
        darknet.read_weights(path)
    with pytest.raises(SigakError, match="cannot be read"):
        darknet.read_weights(tmp_path / "none.weights")
