"""Pascal VOC: layouts, pixels counted from 1, everything that can be wrong in the XML files."""

import os
from pathlib import Path

import pytest
from PIL import Image

from sigak.data import load, voc
from sigak.structures import SigakError


def thing(name="cat", box=(1, 2, 10, 12), more=""):
    edges = zip(("xmin", "ymin", "xmax", "ymax"), box)
    corners = "".join(f"<{edge}>{value}</{edge}>" for edge, value in edges)
    return f"<object>\n<name>{name}</name>{more}<bndbox>{corners}</bndbox></object>\n"


def write(root, stem, *things, size=(40, 20), suffix=".jpg", folder="Annotations"):
    """A picture 40 wide and 20 high and its XML file, whose path is returned."""
    for place in (folder, "JPEGImages"):
        (root / place).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 20)).save(root / "JPEGImages" / f"{stem}{suffix}")
    stated = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>"
    path = root / folder / f"{stem}.xml"
    path.write_text(
        f"<annotation>\n<filename>{stem}{suffix}</filename>{stated}\n{''.join(things)}</annotation>",
        encoding="utf-8",
    )
    return path


def stems(data):
    return {n: [Path(r.source).stem for r in s.records] for n, s in data.splits.items()}


def test_a_set_is_read(tmp_path):
    more = "<pose>Left</pose><difficult>1</difficult>"
    write(tmp_path, "a", thing("dog", more=more), thing("cat", (1, 1, 40, 20)))
    write(tmp_path, "b", suffix=".PNG")
    data = voc.read(tmp_path)
    first, second = data.splits["train"].records
    assert data.classes == ["cat", "dog"]
    assert first.size == (20, 40)
    assert first.objects.labels.tolist() == [1, 0]
    assert first.objects.boxes.tolist() == [[0, 1, 10, 12], [0, 0, 40, 20]]
    assert first.objects.marks["pose"].tolist() == ["Left", ""]
    assert first.objects.marks["difficult"].tolist() == [1, 0]
    assert len(second.objects) == 0
    assert data.problems == []
    assert load(tmp_path, val=0).classes == ["cat", "dog"]


def test_the_lists_of_imagesets_make_splits(tmp_path):
    for stem in "abcd":
        write(tmp_path, stem, thing())
    (tmp_path / "Annotations/c.xml").unlink()
    lists = tmp_path / "ImageSets/Main"
    lists.mkdir(parents=True)
    (lists / "trainval.txt").write_text("a\nb\na\nlost\n")
    (lists / "test.txt").write_text("c  1\n")
    data = voc.read(tmp_path)
    assert stems(data) == {"train": ["a", "b"], "test": ["c"]}
    assert [problem.action for problem in data.problems] == [
        "taken once", "skipped", "taken as pictures without objects"
    ]  # fmt: skip
    assert data.problems[1].source.endswith("trainval.txt:4")


def test_xml_beside_the_pictures_in_folders_of_splits(tmp_path):
    for split in ("train", "valid"):
        write(tmp_path, split[0], thing(), folder=split)
        (tmp_path / f"JPEGImages/{split[0]}.jpg").rename(tmp_path / split / f"{split[0]}.jpg")
    assert stems(voc.read(tmp_path)) == {"train": ["t"], "val": ["v"]}


def test_a_picture_found_by_the_filename_inside(tmp_path):
    write(tmp_path, "a", thing()).rename(tmp_path / "Annotations/other.xml")
    assert stems(voc.read(tmp_path)) == {"train": ["a"]}


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (thing(""), "without a name"),
        (thing(box=("one", 2, 3, 4)), "expected numbers in bndbox"),
        (thing(box=(1, 2, 3)), "ymax None"),
        ("<object>\n<name>cat</name></object>\n", "without a bndbox"),
        (thing(box=("nan", 2, 3, 4)), "not finite"),
        (thing(box=(60, 2, 70, 4)), "outside"),
        (thing(box=(5, 2, 4, 4)), "no area"),
        (thing("dog", (1, 1, 9, 9)), "the same as"),
    ],
)
def test_a_bad_object_costs_that_object(tmp_path, bad, reason):
    path = write(tmp_path, "a", thing("dog", (1, 1, 9, 9)), bad, thing("cat", (2, 2, 8, 8)))
    data = voc.read(tmp_path)
    assert data.splits["train"].records[0].objects.boxes.tolist() == [[0, 0, 9, 9], [1, 1, 8, 8]]
    [problem] = data.problems
    assert problem.source == f"{path}:5"
    assert reason in problem.reason
    with pytest.raises(SigakError, match=r"a\.xml:5"):
        voc.read(tmp_path, strict=True)


def test_what_stands_before_the_damage_of_a_file_is_kept(tmp_path):
    path = write(tmp_path, "a", thing("dog"), thing("cat"))
    path.write_text(path.read_text().replace("<name>cat</name>", "<name>cat</nam"))
    data = voc.read(tmp_path)
    assert data.classes == ["dog"]
    assert data.problems[0].source == f"{path}:6"
    assert data.problems[0].action == "1 objects kept"


def test_entities_are_not_followed(tmp_path):
    path = write(tmp_path, "a", thing())
    write(tmp_path, "b", thing())
    path.write_text('<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/hostname">]><annotation>&e;'
                    "</annotation>")  # fmt: skip
    data = voc.read(tmp_path)
    assert len(data.splits["train"].records[0].objects) == 0
    assert "entities" in data.problems[0].reason


@pytest.mark.parametrize("size", [(0, 0), ("wide", 1), (40, 20)])
def test_a_size_that_is_not_stated_comes_from_the_picture(tmp_path, size):
    write(tmp_path, "a", thing(), size=size)
    data = voc.read(tmp_path)
    assert data.splits["train"].records[0].size == (20, 40)
    assert data.problems == []


def test_a_missing_picture(tmp_path):
    write(tmp_path, "a", thing())
    write(tmp_path, "b", thing())
    (tmp_path / "JPEGImages/b.jpg").unlink()
    data = voc.read(tmp_path)
    assert stems(data) == {"train": ["a"]}
    assert "no such file" in data.problems[0].reason


def test_single_class_and_no_set_at_all(tmp_path):
    with pytest.raises(SigakError, match="no XML file"):
        voc.read(tmp_path)
    write(tmp_path, "a", thing("dog"), thing("cat"))
    data = voc.read(tmp_path, single_class=True)
    assert data.classes == ["object"]
    assert data.splits["train"].records[0].objects.labels.tolist() == [0, 0]


@pytest.mark.data
def test_the_real_set():
    data = voc.read(Path(os.environ["SIGAK_DATA"], "raccoon-voc"))
    objects = [record.objects for record in data.splits["train"].records]
    assert (len(objects), sum(map(len, objects)), data.problems) == (80, 85, [])
    first = next(r for r in data.splits["train"].records if r.source.endswith("raccoon-1.jpg"))
    assert first.objects.boxes.tolist() == [[80, 87, 522, 408]]
