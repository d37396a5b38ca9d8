"""Folders of volumes and masks: what is read, and what is told of the files that do not fit."""

import json

import nibabel
import numpy as np
import pytest

from sigak import data
from sigak.data import volumes
from sigak.structures import IGNORE, SigakError


def put(path, values, axes="RAS"):
    """A file of values (D, H, W); NIfTI files with x, y and z leading as `axes` say."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        return np.save(path, values)
    signs = [1 if letter in "RAS" else -1 for letter in axes]
    return nibabel.Nifti1Image(values.T, np.diag([*signs, 1])).to_filename(path)


@pytest.fixture
def scans(tmp_path):
    """Six volumes with masks of the values 0, 3 and 7; returns their folder."""
    rng = np.random.default_rng(0)
    for i in range(6):
        shape = (5 + i, 6, 7)
        put(tmp_path / f"scans/images/{i}.nii.gz", rng.normal(size=shape).astype(np.float32))
        mask = rng.choice(np.array([0, 3, 7], np.uint8), shape)
        put(tmp_path / f"scans/masks/{i}.nii.gz", mask)
    return tmp_path / "scans"


def test_a_folder_of_volumes(scans):
    dataset = data.load(scans, val=0)
    assert dataset.kind == "volume"
    assert dataset.classes == ["0", "3", "7"]
    assert dataset.color == "gray"
    assert dataset.problems == []
    [train] = dataset.splits.values()
    assert [(r.depth, r.size) for r in train.records] == [(5 + i, (6, 7)) for i in range(6)]
    values = np.asarray(nibabel.load(scans / "masks/2.nii.gz").dataobj).T
    assert np.array_equal(train.records[2].class_map.read(), np.searchsorted([0, 3, 7], values))


def test_names_of_classes(scans):
    rows = [{"name": "air", "value": 0, "color": [0, 0, 0]},
            {"name": "bone", "value": 7, "color": [255, 255, 0]},
            {"name": "fat", "value": 3, "color": [0, 255, 0]}]  # fmt: skip
    (scans / "classes.json").write_text(json.dumps(rows))
    dataset = data.load(scans)
    assert dataset.classes == ["air", "bone", "fat"]
    assert dataset.palette == [(0, 0, 0), (255, 255, 0), (0, 255, 0)]
    first = dataset.splits["train"].records[0]
    values = np.asarray(nibabel.load(first.class_map.source).dataobj).T
    assert np.array_equal(first.class_map.read() == 1, values == 7)


def test_a_value_beyond_the_list_is_told(scans):
    (scans / "classes.txt").write_text("air\nbone\n")
    record = data.load(scans, val=0).splits["train"].records[0]
    with pytest.raises(
        SigakError, match=r"0\.nii\.gz holds the value 3, which is no class; .*0 to"
    ):
        record.class_map.read()


@pytest.mark.parametrize("layout", ["{}/images", "images/{}"])
def test_splits(scans, layout, tmp_path):
    root = tmp_path / "split"
    for split, numbers in (("training", (0, 1, 2)), ("val", (3,)), ("test", (4, 5))):
        for kind in ("images", "masks"):
            folder = root / layout.format(split).replace("images", kind)
            folder.mkdir(parents=True)
            for i in numbers:
                (scans / kind / f"{i}.nii.gz").rename(folder / f"{i}.nii.gz")
    dataset = data.load(root)
    assert {name: len(s) for name, s in dataset.splits.items()} == {"train": 3, "val": 1, "test": 2}


def test_a_held_out_share_and_a_digest(scans):
    one, other = data.load(scans, val=0.3), data.load(scans, val=0)
    assert {name: len(s) for name, s in one.splits.items()} == {"train": 4, "val": 2}
    before = data.digest(one)
    assert before == data.digest(other)
    put(scans / "masks/0.nii.gz", np.zeros((5, 6, 7), np.uint8))
    assert data.digest(data.load(scans)) != before


def test_what_does_not_fit_is_left_out_and_named(scans):
    (scans / "images/0.nii.gz").write_bytes(b"no volume")
    (scans / "masks/1.nii.gz").unlink()
    put(scans / "masks/2.nii.gz", np.zeros((6, 7, 7), np.uint8))
    put(scans / "masks/3.nii.gz", np.zeros((8, 6, 7), np.uint8), "LAS")
    put(scans / "masks/4.nii.gz", np.full((9, 6, 7), 2035, np.int16))
    dataset = data.load(scans, val=0)
    assert len(dataset.splits["train"]) == 1
    assert dataset.classes == ["0", "3", "7"]
    told = {p.source.removeprefix(f"{scans}/"): p.reason for p in dataset.problems}
    assert told["images/0.nii.gz"].startswith("is no NIfTI file, or damaged")
    assert told["images/1.nii.gz"] == "has no mask of its name"
    shapes = "it is 6 x 7 x 7 (depth x height x width), its volume 7 x 6 x 7"
    assert told["masks/2.nii.gz"] == shapes
    assert told["masks/3.nii.gz"] == "its axes lead LAS, those of its volume RAS"
    assert told["masks/4.nii.gz"].startswith("holds the value 2035; ")
    with pytest.raises(SigakError, match="5 mistakes in all"):
        data.load(scans, strict=True)


def test_volumes_that_lie_otherwise_than_most_are_told(scans):
    put(scans / "images/3.nii.gz", np.ones((8, 6, 7), np.float32), "LPS")
    put(scans / "masks/3.nii.gz", np.zeros((8, 6, 7), np.uint8), "LPS")
    dataset = data.load(scans, val=0, strict=True)
    [problem] = dataset.problems
    assert problem.reason == "its axes lead LPS, those of most volumes RAS"
    assert len(dataset.splits["train"]) == 6


def test_black_and_white_masks(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(2):
        put(tmp_path / f"images/{i}.npy", rng.normal(size=(4, 5, 6)))
        put(tmp_path / f"masks/{i}.npy", rng.choice(np.array([0, 255], np.uint8), (4, 5, 6)))
    dataset = data.load(tmp_path, val=0)
    assert dataset.classes == ["background", "foreground"]
    (tmp_path / "classes.txt").write_text("air\nbone\n")
    named = data.load(tmp_path, val=0)
    assert named.classes == ["air", "bone"]
    assert set(np.unique(named.splits["train"].records[0].class_map.read())) == {0, 1}
    assert set(np.unique(dataset.splits["train"].records[0].class_map.read())) == {0, 1}


def test_masks_without_a_class(tmp_path):
    put(tmp_path / "images/0.npy", np.zeros((4, 5, 6)))
    put(tmp_path / "masks/0.npy", np.full((4, 5, 6), IGNORE, np.uint8))
    with pytest.raises(SigakError, match="no mask has a class, nothing could be learnt"):
        data.load(tmp_path)


def test_folders_that_lack_something(tmp_path):
    put(tmp_path / "a/images/0.npy", np.zeros((4, 5, 6)))
    with pytest.raises(SigakError, match="no folder masks beside it"):
        data.load(tmp_path / "a")
    (tmp_path / "a/masks").mkdir()
    with pytest.raises(SigakError, match=r"volumes with masks in .*, received none: has no mask"):
        data.load(tmp_path / "a")
    assert not volumes.recognize(tmp_path)


def test_it_is_described_and_drawn(scans):
    dataset = data.load(scans)
    facts = data.summary(dataset)
    assert facts["depth"] == {"min": 5, "median": 7, "max": 10}
    assert facts["classes"][1] == {"name": "3", "train": 5, "val": 1}
    text = data.describe_text(dataset)
    assert "6 volumes, 5-10 (median 7) deep x 6 high x 7 wide, gray" in text
    sheet = data.sheet(dataset)
    assert sheet.dtype == np.uint8
    assert sheet.shape[2] == 3


def test_pictures_and_volumes_are_not_mistaken_for_each_other(scans):
    with pytest.raises(SigakError, match="holds volumes, and this is a network for pictures"):
        data.provide(data.load(scans), ("class_map",))
    with pytest.raises(SigakError, match="digits holds pictures, and this is a network for vol"):
        data.provide(data.load("digits"), ("class_map", "volume"))
    dataset = data.load(scans)
    assert data.provide(dataset, ("class_map", "volume")) is dataset


def test_the_check_of_pictures_is_refused(scans, sigak_cli):
    said = sigak_cli("data", scans, "--check")
    assert said.code == 2
    assert "the checks look at pictures" in said.err
