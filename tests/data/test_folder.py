"""Folders of pictures: layouts, damaged files, and every mistake a user can make with them."""

import unicodedata
from zlib import crc32

import numpy as np
import pytest
from PIL import Image

from sigak.data import load
from sigak.structures import SigakError


def picture(path, value=None, mode="RGB", size=(10, 8)):
    """A picture file of random pixels, the same for the same `value`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0], len(Image.new(mode, (1, 1)).getbands()))
    seed = crc32(str(path).encode()) if value is None else value
    pixels = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    Image.fromarray(pixels.squeeze(), mode if shape[2] != 1 else None).save(path)
    return path


@pytest.fixture
def animals(tmp_path):
    for i in range(10):
        picture(tmp_path / "animals" / "dog" / f"{i}.png")
        picture(tmp_path / "animals" / "cat" / f"{i}.JPG")
    return tmp_path / "animals"


def names(split):
    return sorted(record.source.replace("\\", "/").split("animals/")[1] for record in split.records)


def test_class_folders(animals):
    data = load(animals, val=0.2)
    assert data.name == "animals"
    assert data.classes == ["cat", "dog"]
    assert data.color == "rgb"
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 16, "val": 4}
    assert np.bincount(data.splits["val"].labels).tolist() == [2, 2]
    assert data.problems == []
    assert data.splits["train"].pixels is None
    assert all(("cat" in r.source) == (r.label == 0) for r in data.splits["train"].records)


def test_the_split_depends_on_names_and_seed_not_on_the_place(animals, tmp_path):
    moved = animals.rename(tmp_path / "elsewhere").rename(tmp_path / "animals")
    first, again = load(animals), load(str(moved))
    assert names(first.splits["val"]) == names(again.splits["val"])
    assert any(
        names(load(animals, seed=seed).splits["val"]) != names(first.splits["val"])
        for seed in range(1, 5)
    )


def test_no_validation_split_when_none_is_asked_for(animals):
    assert list(load(animals, val=0).splits) == ["train"]


def test_split_folders_are_used_as_they_are(tmp_path):
    for split, count in (("Training", 4), ("valid", 2), ("TEST", 3)):
        for i in range(count):
            picture(tmp_path / split / "a" / f"{i}.png")
            picture(tmp_path / split / "b" / "deeper" / f"{i}.png")
    picture(tmp_path / "unlabelled" / "1.png")
    (tmp_path / "readme.txt").write_text("hello")
    data = load(tmp_path)
    assert {k: len(v) for k, v in data.splits.items()} == {"train": 8, "val": 4, "test": 6}
    assert [(p.reason, p.action) for p in data.problems] == [
        ("files that are not pictures (1): readme.txt", "ignored"),
        ("folders that are no split of classes (1): unlabelled", "ignored"),
    ]


def test_val_is_carved_beside_a_test_folder(tmp_path):
    for split in ("train", "test"):
        for i in range(5):
            picture(tmp_path / split / "a" / f"{i}.png")
            picture(tmp_path / split / "b" / f"{i}.png")
    splits = load(tmp_path, val=0.2).splits
    assert {name: len(split) for name, split in splits.items()} == {
        "train": 8,
        "val": 2,
        "test": 10,
    }


def test_train_may_be_a_class_of_vehicles(tmp_path):
    for name in ("bus", "car", "train"):
        for i in range(2):
            picture(tmp_path / name / f"{i}.png")
    assert load(tmp_path).classes == ["bus", "car", "train"]


def test_hidden_files_are_passed_over_and_others_counted(animals):
    picture(animals / ".cache" / "1.png")
    picture(animals / "__MACOSX" / "1.png")
    picture(animals / "cat" / ".hidden.png")
    picture(animals / "stray.png")
    (animals / "cat" / "notes.txt").write_text("x")
    (animals / "dog" / "Thumbs.db").write_bytes(b"x")
    data = load(animals)
    assert data.classes == ["cat", "dog"]
    assert sum(map(len, data.splits.values())) == 20
    assert [p.reason for p in data.problems] == [
        "files that are not pictures (2): cat/notes.txt, dog/Thumbs.db",
        "pictures in no class folder (1): stray.png",
    ]


def test_gray_pictures_make_a_gray_set(tmp_path):
    for name in "ab":
        for i in range(3):
            picture(tmp_path / name / f"{i}.png", mode="L")
    assert load(tmp_path).color == "gray"
    assert load(tmp_path, color="rgba").color == "rgba"
    picture(tmp_path / "b" / "3.png")
    assert load(tmp_path).color == "rgb"


@pytest.fixture
def damaged(animals):
    whole = (animals / "cat" / "0.JPG").read_bytes()
    (animals / "cat" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (animals / "cat" / "text.jpg").write_text("this is no picture")
    (animals / "dog" / "empty.png").write_bytes(b"")
    return animals


def test_damaged_files_are_named_and_skipped(damaged):
    data = load(damaged)
    assert sum(map(len, data.splits.values())) == 20
    assert {p.action for p in data.problems} == {"skipped"}
    ends = sorted(p.source.replace("\\", "/").rpartition("/")[2] for p in data.problems)
    assert ends == ["cut.jpg", "empty.png", "text.jpg"]
    assert all(p.reason for p in data.problems)


def test_damaged_files_are_refused_when_strict(damaged):
    with pytest.raises(SigakError, match=r"damaged files \(3\) in .*cut\.jpg"):
        load(damaged, strict=True)


def test_a_class_of_damaged_files_alone_is_empty(animals):
    (animals / "fish").mkdir()
    (animals / "fish" / "1.jpg").write_bytes(b"\xff\xd8")
    with pytest.raises(SigakError, match="none that can be read for fish in the train split"):
        load(animals)


def test_an_empty_class_is_refused(animals):
    (animals / "fish").mkdir()
    with pytest.raises(SigakError, match="fish"):
        load(animals)


def test_a_class_may_be_empty_where_it_is_only_measured(tmp_path):
    for i in range(3):
        picture(tmp_path / "train" / "a" / f"{i}.png")
        picture(tmp_path / "train" / "b" / f"{i}.png")
    picture(tmp_path / "val" / "a" / "9.png")
    (tmp_path / "val" / "b").mkdir()
    assert [(p.source, p.reason) for p in load(tmp_path).problems] == [
        ("val/b", "no pictures of this class")
    ]


def test_one_class_only(tmp_path):
    picture(tmp_path / "cat" / "1.png")
    with pytest.raises(SigakError, match="at least two; received cat"):
        load(tmp_path)


@pytest.mark.parametrize("spec", ["nowhere/to/be/found", "./digits", "digits/"])
def test_no_such_folder(spec, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        SigakError, match="does not exist; expected one folder of pictures per class"
    ):
        load(spec)


def test_a_file_instead_of_a_folder(tmp_path):
    path = picture(tmp_path / "cat.png")
    with pytest.raises(SigakError, match="is a file; expected one folder"):
        load(path)


def test_an_empty_folder(tmp_path):
    with pytest.raises(SigakError, match="received no folders and 0 pictures"):
        load(tmp_path)


def test_pictures_without_class_folders(tmp_path):
    picture(tmp_path / "1.png")
    picture(tmp_path / "2.png")
    with pytest.raises(SigakError, match=r"cat/1\.jpg.* received no folders and 2 pictures"):
        load(tmp_path)


def test_splits_without_class_folders(tmp_path):
    for split in ("train", "test"):
        picture(tmp_path / split / "1.png")
    with pytest.raises(
        SigakError, match=r"train.dog.1\.jpg, at least two; received no class folders"
    ):
        load(tmp_path)


def test_a_test_folder_without_classes_is_no_split(tmp_path):
    for name in "ab":
        for i in range(3):
            picture(tmp_path / "train" / name / f"{i}.png")
    picture(tmp_path / "test" / "1.png")
    data = load(tmp_path)
    assert list(data.splits) == ["train", "val"]
    assert [p.reason for p in data.problems] == ["folders that are no split of classes (1): test"]


def test_a_test_folder_alone(tmp_path):
    for name in "ab":
        picture(tmp_path / "test" / name / "1.png")
    assert {name: len(split) for name, split in load(tmp_path).splits.items()} == {"test": 2}


def test_splits_of_different_classes(tmp_path):
    for split, classes in (("train", "ab"), ("test", "ac")):
        for name in classes:
            picture(tmp_path / split / name / "1.png")
    with pytest.raises(SigakError, match="only in train: b; only in test: c"):
        load(tmp_path)


def test_two_folders_for_one_split(tmp_path):
    for split in ("train", "val", "valid"):
        for name in "ab":
            picture(tmp_path / split / name / "1.png")
    with pytest.raises(
        SigakError, match=r"one folder for the val split, received .*val and .*valid"
    ):
        load(tmp_path)


def test_duplicates_across_splits_are_reported_and_kept(tmp_path):
    for split in ("train", "test"):
        for name in "ab":
            picture(tmp_path / split / name / "own.png")
        picture(tmp_path / split / "a" / "same.png", value=1)
    data = load(tmp_path, val=0)
    assert len(data.splits["test"]) == 3
    (problem,) = data.problems
    assert problem.source.endswith("same.png")
    assert "test" in problem.source
    assert "same.png of train" in problem.reason
    assert problem.action == "kept"


def test_duplicates_within_train_stay_on_one_side(animals):
    for i in range(4):
        for copy in range(3):
            picture(animals / "cat" / f"twin-{i}-{copy}.png", value=100 + i)
    data = load(animals, val=0.4)
    for i in range(4):
        sides = {name for name, split in data.splits.items() if f"twin-{i}-" in str(names(split))}
        assert len(sides) == 1
    assert data.problems == []


def test_one_picture_in_two_classes_is_reported(animals):
    picture(animals / "cat" / "x.png", value=5)
    picture(animals / "dog" / "y.png", value=5)
    data = load(animals)
    (problem,) = data.problems
    assert "there it is 'cat' and here 'dog'" in problem.reason
    assert not {"cat/x.png", "dog/y.png"} & set(names(data.splits["val"]))


def test_a_class_with_one_picture_is_kept_for_training_and_said(animals):
    picture(animals / "emu" / "1.png")
    data = load(animals)
    assert [(p.source, p.action) for p in data.problems] == [("emu", "kept in train")]
    assert 2 not in data.splits["val"].labels


def test_unicode_names_composed_and_decomposed(tmp_path):
    for split, form in (("train", "NFC"), ("test", "NFD")):
        for name in ("고양이", "Käfer"):
            folder = tmp_path / split / unicodedata.normalize(form, name)
            picture(folder / "사진 1.png")
    assert load(tmp_path).classes == ["Käfer", "고양이"]


def test_links_in_circles_end(animals):
    try:
        (animals / "cat" / "again").symlink_to(animals / "cat", target_is_directory=True)
    except OSError:
        pytest.skip("this system makes no links")
    assert sum(map(len, load(animals).splits.values())) == 20


def test_linked_class_folders_are_followed(animals, tmp_path):
    try:
        (animals / "wolf").symlink_to(animals / "dog", target_is_directory=True)
    except OSError:
        pytest.skip("this system makes no links")
    assert load(animals).classes == ["cat", "dog", "wolf"]
