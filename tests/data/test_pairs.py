"""Pictures with class maps: every layout, what stands for a class, and all that can be wrong."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sigak import data
from sigak.data.pairs import CITYSCAPES, VOC
from sigak.structures import IGNORE, SigakError


def picture(path, size=(6, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size[::-1], (40, 80, 120)).save(path)


def mask(path, values, mode="L", palette=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(values, np.uint8), mode if mode == "RGB" else None)
    if palette:
        image.putpalette(palette)
    image.save(path)


def values(*parts, size=(6, 8)):
    """A map of zeros with the given values in its first pixels."""
    found = np.zeros(size, np.uint8)
    found.ravel()[: len(parts)] = parts
    return found


def pair(root, name="a", map_values=None, pictures="images", maps="masks"):
    picture(root / pictures / f"{name}.jpg")
    mask(root / maps / f"{name}.png", values(1, 2, 255) if map_values is None else map_values)


def read(record):
    return record.class_map.read()


def first(dataset, split="train"):
    return dataset.splits[split].records[0]


def test_two_folders(tmp_path):
    pair(tmp_path / "set", "a")
    pair(tmp_path / "set", "b", values(2, 0))
    (tmp_path / "set/classes.txt").write_text("ground\ncat\ndog\n")
    found = data.load(tmp_path / "set", val=0)
    assert found.kind == "class_map"
    assert found.classes == ["ground", "cat", "dog"]
    assert [Path(r.source).name for r in found.splits["train"].records] == ["a.jpg", "b.jpg"]
    assert first(found).size == (6, 8)
    assert read(first(found)).ravel()[:4].tolist() == [1, 2, IGNORE, 0]
    assert found.problems == []


@pytest.mark.parametrize("above", [True, False])
def test_splits_are_folders_above_or_below(tmp_path, above):
    for split, name in (("train", "a"), ("val", "b")):
        if above:
            pair(tmp_path / split, name)
        else:
            pair(tmp_path, name, pictures=f"images/{split}", maps=f"masks/{split}")
    found = data.load(tmp_path)
    assert {name: len(split) for name, split in found.splits.items()} == {"train": 1, "val": 1}
    assert Path(first(found, "val").source).name == "b.jpg"


def test_without_names_each_value_is_a_class(tmp_path):
    pair(tmp_path, "a", values(7, 7, 255))
    pair(tmp_path, "b", values(30))
    found = data.load(tmp_path, val=0)
    assert found.classes == ["0", "7", "30"]
    assert read(first(found)).ravel()[:4].tolist() == [1, 1, IGNORE, 0]


def test_black_and_white_masks_are_background_and_foreground(tmp_path):
    pair(tmp_path, "a", values(255, 255))
    found = data.load(tmp_path, val=0)
    assert found.classes == ["background", "foreground"]
    assert read(first(found)).sum() == 2
    assert "0 and 255 alone" in found.problems[0].reason


def test_two_named_classes_may_be_black_and_white(tmp_path):
    pair(tmp_path, "a", values(255, 255))
    (tmp_path / "classes.txt").write_text("road\ncar\n")
    assert read(first(data.load(tmp_path, val=0))).sum() == 2


def test_a_palette_is_not_taken_for_colours(tmp_path):
    picture(tmp_path / "images/a.png")
    mask(tmp_path / "masks/a.png", values(0, 2, 1), palette=[9, 9, 9, 200, 0, 0, 0, 200, 0])
    found = data.load(tmp_path, val=0)
    assert found.palette == [(9, 9, 9), (200, 0, 0), (0, 200, 0)]
    assert read(first(found)).ravel()[:3].tolist() == [0, 2, 1]


def test_colours_are_looked_up(tmp_path):
    picture(tmp_path / "images/a.png")
    pixels = np.zeros((6, 8, 3), np.uint8)
    pixels[0, :3] = [[128, 64, 128], [0, 0, 142], [128, 64, 128]]
    mask(tmp_path / "masks/a.png", pixels, "RGB")
    with pytest.raises(SigakError, match=r"in colour, .* put a classes\.json"):
        data.load(tmp_path)
    rows = [("void", [0, 0, 0]), ("road", [128, 64, 128]), ("car", [0, 0, 142])]
    classes = [{"name": name, "color": color} for name, color in rows]
    (tmp_path / "classes.json").write_text(json.dumps(classes))
    found = data.load(tmp_path, val=0)
    assert found.classes == ["void", "road", "car"]
    assert found.palette[1] == (128, 64, 128)
    assert read(first(found)).ravel()[:4].tolist() == [1, 2, 1, 0]
    (tmp_path / "classes.json").write_text(json.dumps(classes[:2]))
    with pytest.raises(SigakError, match=r"colour \(0, 0, 142\), which classes\.json does not"):
        read(first(data.load(tmp_path, val=0)))


def test_pictures_of_one_name_share_a_map(tmp_path):
    pair(tmp_path / "set", "a")
    picture(tmp_path / "set/images/a.png")
    found = data.load(tmp_path / "set", val=0)
    assert [Path(r.source).name for r in found.splits["train"].records] == ["a.jpg", "a.png"]


def test_gray_colours_are_colours_too(tmp_path):
    root = tmp_path / "set"
    shades = {"a": (0, 0, 0), "b": (255, 255, 255), "c": (255, 0, 0)}
    for name, color in shades.items():
        picture(root / f"images/{name}.jpg")
        mask(root / f"masks/{name}.png", np.full((6, 8, 3), color), "RGB")
    rows = [{"name": name, "color": color} for name, color in (("x", (255, 0, 0)),
            ("y", (0, 0, 0)), ("z", (255, 255, 255)))]  # fmt: skip
    (root / "classes.json").write_text(json.dumps(rows))
    found = data.load(root, val=0)
    assert found.problems == []
    labels = [read(r).ravel()[0] for r in found.splits["train"].records]
    assert labels == [1, 2, 0]


def test_a_class_may_state_its_value(tmp_path):
    pair(tmp_path, "a", values(10, 20))
    classes = [{"name": "a", "value": 0}, {"name": "b", "value": 20}, {"name": "c", "value": 10}]
    (tmp_path / "classes.json").write_text(json.dumps({"classes": classes}))
    assert read(first(data.load(tmp_path, val=0))).ravel()[:2].tolist() == [2, 1]


def test_voc(tmp_path):
    for name in ("a", "b", "c"):
        pair(tmp_path, name, values(15, 255), "JPEGImages", "SegmentationClass")
    lists = tmp_path / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("a\nb\n")
    (lists / "val.txt").write_text("c\n")
    found = data.load(tmp_path)
    assert found.classes == list(VOC)
    assert found.classes[15] == "person"
    assert {name: len(split) for name, split in found.splits.items()} == {"train": 2, "val": 1}
    assert read(first(found)).ravel()[:3].tolist() == [15, IGNORE, 0]


def test_voc_with_boxes_is_read_as_the_task_needs_it(tmp_path):
    pair(tmp_path, "a", values(15), "JPEGImages", "SegmentationClass")
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "Annotations/a.xml").write_text(
        "<annotation><object><name>person</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>4</xmax>"
        "<ymax>4</ymax></bndbox></object></annotation>"
    )
    assert data.load(tmp_path, val=0).kind == "objects"
    assert data.load(tmp_path, val=0, needs=("class_map",)).kind == "class_map"


@pytest.mark.parametrize("ending", ["labelIds", "labelTrainIds"])
def test_cityscapes(tmp_path, ending):
    name = "aachen/aachen_000000_000019"
    for split in ("train", "val"):
        picture(tmp_path / f"leftImg8bit/{split}/{name}_leftImg8bit.png")
        found = values(7, 26, 0) if ending == "labelIds" else values(0, 13, 255)
        mask(tmp_path / f"gtFine/{split}/{name}_gtFine_{ending}.png", found)
        mask(tmp_path / f"gtFine/{split}/{name}_gtFine_instanceIds.png", values(99))
    found = data.load(tmp_path)
    assert found.classes == list(CITYSCAPES)
    assert len(found.classes) == 19
    assert sorted(found.splits) == ["train", "val"]
    assert read(first(found)).ravel()[:3].tolist() == [0, 13, IGNORE]
    assert found.palette[0] == (128, 64, 128)


# ------------------------------------------------------------------ what can be wrong


def test_pairs_that_do_not_fit_are_named(tmp_path):
    pair(tmp_path, "good")
    picture(tmp_path / "images/alone.png")
    picture(tmp_path / "images/wide.png", (6, 9))
    mask(tmp_path / "masks/wide.png", values(1))
    picture(tmp_path / "images/cut.png")
    (tmp_path / "masks/cut.png").write_bytes((tmp_path / "masks/wide.png").read_bytes()[:30])
    found = data.load(tmp_path, val=0)
    assert len(found.splits["train"]) == 1
    told = {Path(p.source).name: p.reason for p in found.problems}
    assert told["alone.png"] == "has no class map of its name"
    assert "the class map is 6 x 8 (height x width), its picture 6 x 9" in told["wide.png"]
    assert "cut.png" in told
    with pytest.raises(SigakError, match="3 mistakes"):
        data.load(tmp_path, strict=True)


def test_values_beyond_the_classes_cost_the_picture(tmp_path):
    pair(tmp_path, "a", values(3))
    (tmp_path / "classes.txt").write_text("x\ny\nz\n")
    with pytest.raises(SigakError, match=r"holds the value 3, which is no class; expected 0 to 2"):
        read(first(data.load(tmp_path, val=0)))


def test_maps_with_loss_and_with_large_values_are_refused(tmp_path):
    picture(tmp_path / "images/a.png")
    (tmp_path / "masks").mkdir()
    Image.fromarray(values(1)).save(tmp_path / "masks/a.jpg")
    with pytest.raises(SigakError, match="a JPEG, which changes values"):
        data.load(tmp_path)
    (tmp_path / "masks/a.jpg").unlink()
    Image.fromarray(values(1).astype(np.uint16) * 1000).save(tmp_path / "masks/a.png")
    with pytest.raises(SigakError, match="values from 0 to 1000"):
        data.load(tmp_path)


def test_a_map_without_values_costs_only_its_picture(tmp_path):
    pair(tmp_path, "a", values(1, 2))
    pair(tmp_path, "b")
    mask(tmp_path / "masks/b.png", np.arange(144).reshape(6, 8, 3), "RGB")
    pair(tmp_path, "c")
    Image.fromarray(values(1).astype(np.uint16) * 1000).save(tmp_path / "masks/c.png")
    found = data.load(tmp_path, val=0)
    assert [Path(r.source).name for r in found.splits["train"].records] == ["a.jpg"]
    reasons = {Path(p.source).name: p.reason for p in found.problems}
    assert "in colour" in reasons["b.png"]
    assert "0 to 1000" in reasons["c.png"]
    with pytest.raises(SigakError, match="in colour"):
        data.load(tmp_path, val=0, strict=True)


def test_nothing_but_ignored_pixels(tmp_path):
    pair(tmp_path, "a", np.full((6, 8), 255, np.uint8))
    with pytest.raises(SigakError, match="every pixel of every class map is 255"):
        data.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("classes.json", "{", "expected a list of names"),
        ("classes.json", '[{"name": "a", "color": [1, 2]}]', "expected a list of names"),
        ("classes.json", '[{"name": "a", "color": [1, 2, 300]}]', "colour"),
        ("classes.txt", "a\na\n", "names a more than once"),
        ("classes.txt", "\n", "expected 1 to 255 classes, received 0"),
    ],
)
def test_class_files_with_mistakes(tmp_path, name, text, said):
    pair(tmp_path)
    (tmp_path / name).write_text(text)
    with pytest.raises(SigakError, match=said):
        data.load(tmp_path)


def test_the_summary_counts_pictures_that_show_a_class(tmp_path):
    pair(tmp_path, "a", values(1))
    pair(tmp_path, "b", values(1, 2))
    found = data.load(tmp_path, val=0)
    rows = data.summary(found)["classes"]
    assert [row["train"] for row in rows] == [2, 2, 1]
    assert "6 high x 8 wide" in data.describe_text(found)
    assert data.sheet(found).shape[2] == 3


def test_the_digest_changes_with_the_maps(tmp_path):
    pair(tmp_path, "a")
    before = data.digest(data.load(tmp_path, val=0))
    mask(tmp_path / "masks/a.png", np.random.default_rng(0).integers(0, 3, (6, 8)))
    assert data.digest(data.load(tmp_path, val=0)) != before
