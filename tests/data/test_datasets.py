"""What holds for every set: names, digits, the summary, the digest and the sheet of samples."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sigak.data import NAMES, cifar, describe_text, digest, idx, load, sheet, summary
from sigak.structures import SigakError


@pytest.fixture
def shapes(tmp_path):
    """A folder of two classes with Korean names, pictures of several sizes, one damaged."""
    for at, name in enumerate(("네모", "동그라미")):
        folder = tmp_path / "모양" / name
        folder.mkdir(parents=True)
        for i in range(6):
            pixels = np.full((10 + i, 20, 3), 20 * i + at, np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.png")
    (tmp_path / "모양" / "네모" / "나쁨.png").write_bytes(b"?")
    return tmp_path / "모양"


def test_names_are_complete():
    known = {"digits", "scenes", "scenes-night", "blobs3d"}
    assert set(NAMES) == {*known, *idx.SETS, *cifar.SETS}


def test_digits():
    data = load("digits")
    counts = {name: np.bincount(split.labels) for name, split in data.splits.items()}
    assert sum(len(split) for split in data.splits.values()) == 1797
    assert abs(len(data.splits["test"]) - 1797 / 5) < 6
    assert all(len(count) == 10 and count.max() - count.min() <= 9 for count in counts.values())
    assert data.color == "gray"
    split = data.splits["train"]
    assert split.pixels.shape == (len(split), 8, 8, 1)
    assert (split.pixels.min(), split.pixels.max()) == (0, 255)


def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    published = load_digits()
    data = load("digits")
    for split in data.splits.values():
        places = [int(record.source.removeprefix("digits#")) for record in split.records]
        pixels = split.pixels[..., 0] / 255 * 16
        np.testing.assert_allclose(pixels, published.images[places], atol=0.05)
        np.testing.assert_array_equal(split.labels, published.target[places])


def test_the_test_part_of_digits_is_the_same_for_every_seed():
    sources = [{r.source for r in load("digits", seed=s).splits["test"].records} for s in (0, 7)]
    assert sources[0] == sources[1]


def test_a_name_is_a_name_even_where_a_folder_has_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    assert load("digits").root is None
    with pytest.raises(SigakError, match="received no folders and 0 pictures"):
        load(Path("digits"))


@pytest.mark.parametrize(
    ("spec", "near"), [("cifar-10", "cifar10"), ("MNIST", "mnist"), ("photos", ", ".join(NAMES))]
)
def test_an_unknown_name_offers_the_nearest(spec, near, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SigakError, match=f"no folder called '{spec}'; did you mean .*{near}"):
        load(spec)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"val": 1.0}, "from 0 to below 1, received 1.0"),
        ({"val": -0.1}, "received -0.1"),
        ({"color": "blue"}, "received 'blue'"),
    ],
)
def test_values_out_of_range(options, match):
    with pytest.raises(SigakError, match=match):
        load("digits", **options)


def test_summary_is_json_and_counts(shapes):
    facts = json.loads(json.dumps(summary(load(shapes, val=0.5))))
    assert facts["name"] == "모양"
    assert facts["classes"] == [
        {"name": "네모", "train": 3, "val": 3},
        {"name": "동그라미", "train": 3, "val": 3},
    ]
    assert facts["splits"] == {"train": 6, "val": 6}
    assert facts["total"] == 12
    assert facts["height"] == {"min": 10, "median": 12, "max": 15}
    assert facts["width"] == {"min": 20, "median": 20, "max": 20}
    (problem,) = facts["problems"]
    assert problem["action"] == "skipped"
    assert problem["source"].endswith("나쁨.png")


def test_names_that_look_like_markup_are_shown_as_they_are():
    data = load("digits")
    data.classes[:2] = [":cat:", "[red]"]
    assert ":cat:" in describe_text(data)
    assert "[red]" in describe_text(data)


def test_description_for_people(shapes):
    lines = describe_text(load(shapes), width=120).splitlines()
    assert lines[0] == "모양: 12 pictures, 10-15 (median 12) high x 20 wide, rgb"
    assert any(line.split() == ["동그라미", "5", "1"] for line in lines)
    assert any("나쁨.png" in line for line in lines)


def test_the_digest_follows_the_data_and_nothing_else(shapes, tmp_path):
    first = digest(load(shapes))
    assert len(first) == 16
    assert digest(load(shapes, val=0.4, seed=3)) == first
    moved = shapes.rename(tmp_path / "moved")
    assert digest(load(moved)) == first
    (moved / "네모" / "0.png").rename(moved / "동그라미" / "9.png")
    assert digest(load(moved)) != first


def test_the_digest_of_a_decoded_set():
    data = load("digits")
    first = digest(data)
    assert digest(load("digits", val=0.3, seed=9)) == first
    data.splits["test"].pixels[0, 0, 0, 0] ^= 1
    assert digest(data) != first


def test_sheet_shows_every_class_in_turn(shapes):
    picture = sheet(load(shapes), rows=1, columns=2, seed=0)
    assert picture.dtype == np.uint8
    assert picture.shape[2] == 3
    assert picture.shape[1] > picture.shape[0]
    middle = picture.shape[1] // 2
    assert picture[60, middle // 2].max() % 20 == 0  # the first class has multiples of 20
    assert picture[60, middle + middle // 2].max() % 20 == 1


def test_sheet_of_a_decoded_set_repeats_with_its_seed():
    data = load("digits")
    assert (sheet(data, 2, 5, seed=1) == sheet(data, 2, 5, seed=1)).all()
    assert (sheet(data, 2, 5, seed=1) != sheet(data, 2, 5, seed=2)).any()


def test_subset_keeps_order():
    data = load("digits", val=0)
    part = data.splits["train"].subset(np.array([5, 2]), "few")
    assert part.name == "few"
    assert [r.source for r in part.records] == [
        data.splits["train"].records[i].source for i in (5, 2)
    ]
    np.testing.assert_array_equal(part.pixels, data.splits["train"].pixels[[5, 2]])
