"""The preflight finds what was put into the data, and nothing in clean data."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import sigak
from sigak import preflight
from sigak.data import Dataset, Record, Split
from sigak.io import image


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)  # the networks are tiny


def scene(seed, tone=0, side=48):
    """A smooth random picture; tone moves the class's colour."""
    noise = np.random.default_rng(seed)
    coarse = noise.integers(0, 160, (6, 6, 3), dtype=np.uint8) + np.uint8(tone)
    return np.array(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC))


@pytest.fixture
def pets(tmp_path):
    """Two classes of 12 clean pictures in train and 4 in test: too few to judge labels by."""
    root = tmp_path / "pets"
    for split, count, start in (("train", 12, 0), ("test", 4, 500)):
        for label, (name, tone) in enumerate((("cat", 0), ("dog", 90))):
            for i in range(count):
                picture = scene(1000 * label + start + i, tone)
                image.save(root / split / name / f"{i:02d}.png", picture)
    return root


def kinds(root, **options):
    findings = preflight.check(sigak.load_data(root, **options))
    return findings, [f.kind for f in findings]


def test_clean_data_has_no_findings(pets, sigak_cli):
    assert kinds(pets)[0] == []
    said = sigak_cli("data", "pets", "--check")
    assert said.code == 0
    assert said.out == "nothing suspicious was found\n"


def test_a_recompressed_copy_in_another_split_is_a_leak(pets, sigak_cli):
    copy = (scene(3) * 0.9 + 8).astype(np.uint8)
    large = np.array(Image.fromarray(copy).resize((96, 96)))
    image.save(pets / "test/cat/copy.jpg", large, quality=60)
    [finding], [kind] = kinds(pets)
    assert kind == "leak"
    assert finding.source.endswith("copy.jpg")
    assert "near copy of" in finding.reason
    assert "train/cat/03.png" in finding.reason.replace("\\", "/")
    said = sigak_cli("data", "pets", "--check", "--json")
    assert said.code == 1
    told = json.loads(said.out)
    assert told["total"] == 33
    assert told["findings"][0]["kind"] == "leak"
    assert "things to look at in pets: 1" in said.err


def test_an_exact_copy_is_told_once(pets):
    image.save(pets / "test/cat/same.png", scene(3))
    findings, found = kinds(pets)
    assert found == ["leak"]
    assert "identical to" in findings[0].reason


def test_copies_of_one_class_are_summed_up_and_of_two_are_doubtful_labels(pets):
    for i in range(3):
        image.save(pets / f"train/cat/again{i}.jpg", scene(i), quality=70)
    image.save(pets / "train/dog/strange.jpg", scene(7), quality=70)
    findings, found = kinds(pets)
    assert found.count("copy") == 1
    assert "3 pictures are near copies" in findings[found.index("copy")].reason
    doubtful = [f for f in findings if "there it is 'cat' and here 'dog'" in f.reason]
    assert [f.kind for f in doubtful] == ["label"]


def test_values_sizes_and_colours_that_stand_out(pets):
    image.save(pets / "train/cat/black.png", np.zeros((48, 48, 3), np.uint8))
    image.save(pets / "train/cat/dim.png", (scene(900) // 8).astype(np.uint8))
    twelve = (scene(901)[..., 0].astype(np.uint16) * 16) % 4096
    Image.fromarray(twelve).save(pets / "train/cat/scan.png")
    image.save(pets / "train/dog/strip.png", np.tile(scene(902), (1, 12, 1)))
    findings, _ = kinds(pets)
    told = {(f.kind, f.source.replace("\\", "/").rsplit("/", 1)[1].split(",")[0]) for f in findings}
    assert ("range", "black.png") in told
    assert ("range", "dim.png") in told
    assert ("range", "scan.png") in told
    assert ("size", "strip.png") in told
    by_source = {
        f.source.replace("\\", "/").rsplit("/", 1)[1]: f for f in findings if f.kind == "range"
    }
    assert "16-bit" in by_source["scan.png"].reason
    assert "all black" in by_source["black.png"].reason
    assert "color" in {f.kind for f in findings}  # black and the scan are gray


def test_a_picture_damaged_behind_its_header_is_found(pets):
    path = pets / "train/cat/00.png"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    findings, found = kinds(pets)
    assert found == ["file"]
    assert findings[0].source.endswith("00.png")


def test_uneven_classes_are_told_of(folder):
    root = folder(classes=("cat", "dog"), count=40)
    for i in range(37):
        (root / "dog" / f"{i}.png").unlink()
    findings, found = kinds(root, val=0)
    assert found == ["balance"]
    assert findings[0].source == "dog"
    assert "3 pictures in train" in findings[0].reason


def test_wrong_labels_are_found():
    """Stripes across and stripes down, three of them in the wrong class."""
    noise = np.random.default_rng(0)
    pixels = noise.integers(0, 120, (120, 16, 16, 1), dtype=np.uint8)
    labels = np.arange(120) % 2
    for i, label in enumerate(labels):
        start = int(noise.integers(4))
        (pixels[i, start::4] if label else pixels[i, :, start::4])[:] = 255
    wrong = [10, 41, 77]
    given = labels.copy()
    given[wrong] ^= 1
    records = [Record(f"stripes#{i}", int(label)) for i, label in enumerate(given)]
    dataset = Dataset("stripes", ["down", "across"], {"train": Split("train", records, pixels)})
    state = torch.random.get_rng_state()
    findings = preflight.check(dataset)
    assert torch.equal(state, torch.random.get_rng_state())
    found = {f.source for f in findings}
    assert len(found) >= 2  # a small network need not be sure of all of them
    assert found <= {f"stripes#{i}" for i in wrong}
    assert {f.kind for f in findings} == {"label"}


def test_findings_are_told_kind_by_kind():
    findings = [preflight.Finding("leak", f"{i}.png", "a copy", "remove it") for i in range(12)]
    findings.append(preflight.Finding("size", "z.png", "too small", "look"))
    text = preflight.describe_findings(findings)
    assert text.startswith("leak (12)\n  0.png: a copy. Remove it.\n")
    assert "and 2 more" in text
    assert text.endswith("size (1)\n  z.png: too small. Look.\n")


@pytest.mark.data
def test_real_photographs_are_not_taken_for_copies():
    dataset = sigak.load_data("cifar10")
    small = {name: s.subset(np.arange(1500), name) for name, s in dataset.splits.items()}
    findings = preflight.check(Dataset("part", dataset.classes, small))
    assert sum(f.kind in ("leak", "copy") for f in findings) <= 5
