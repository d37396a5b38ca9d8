"""MNIST-like sets in the official idx form, written here and read back."""

import gzip
import hashlib
import struct
from dataclasses import replace

import numpy as np
import pytest

from sigak.data import digest, load
from sigak.data.idx import SETS, read_idx
from sigak.structures import SigakError

STEMS = (
    "train-images-idx3-ubyte", "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte",
)  # fmt: skip


def idx_bytes(array):
    shape = struct.pack(f">{array.ndim}I", *array.shape)
    return bytes([0, 0, 8, array.ndim]) + shape + array.astype(np.uint8).tobytes()


@pytest.fixture
def mnist(tmp_path, monkeypatch):
    """A small set below $SIGAK_DATA, two files gzipped and two plain: (arrays, folder)."""
    monkeypatch.setenv("SIGAK_DATA", str(tmp_path))
    monkeypatch.setenv("SIGAK_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "mnist"
    folder.mkdir()
    random = np.random.default_rng(0)
    arrays = [
        random.integers(0, 256, (40, 6, 5)), np.arange(40) % 10,
        random.integers(0, 256, (20, 6, 5)), np.arange(20) % 10,
    ]  # fmt: skip
    for at, (stem, array) in enumerate(zip(STEMS, arrays)):
        if at % 2:
            (folder / stem).write_bytes(idx_bytes(array))
        else:
            (folder / f"{stem}.gz").write_bytes(gzip.compress(idx_bytes(array)))
    return arrays, folder


def test_reads_pixels_and_labels(mnist):
    arrays, _ = mnist
    data = load("mnist", val=0)
    assert data.color == "gray"
    assert data.classes == list("0123456789")
    for split, images, labels in (("train", *arrays[:2]), ("test", *arrays[2:])):
        assert data.splits[split].pixels.dtype == np.uint8
        assert data.splits[split].pixels.flags.writeable
        np.testing.assert_array_equal(data.splits[split].pixels, images[..., None])
        np.testing.assert_array_equal(data.splits[split].labels, labels)
    assert data.splits["test"].records[3].source == "mnist/test#3"
    assert "40 pictures, officially 60000" in {p.reason for p in data.problems}


def test_val_keeps_pixels_and_records_together(mnist):
    arrays, _ = mnist
    data = load("mnist", val=0.25)
    assert [len(data.splits[name]) for name in ("train", "val", "test")] == [30, 10, 20]
    for name in ("train", "val"):
        split = data.splits[name]
        places = [int(record.source.partition("#")[2]) for record in split.records]
        np.testing.assert_array_equal(split.pixels[..., 0], arrays[0][places])
        np.testing.assert_array_equal(split.labels, arrays[1][places])


def test_labels_beyond_the_classes(mnist):
    _, folder = mnist
    (folder / STEMS[1]).write_bytes(idx_bytes(np.array([3] * 39 + [10])))
    with pytest.raises(SigakError, match=r"train-labels.*from 0 to 9, received 10 for picture 39"):
        load("mnist")


def test_labels_of_another_set(mnist):
    _, folder = mnist
    (folder / STEMS[1]).write_bytes(idx_bytes(np.zeros(39)))
    with pytest.raises(SigakError, match=r"40 pictures in .* and 39 labels"):
        load("mnist")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "beginning with nothing"),
        (b"\x89PNG\r\n\x1a\n", "beginning with 89 50 4e 47"),
        (idx_bytes(np.zeros((2, 3, 3)))[:-1], "expected 18 bytes of data .* received 17"),
        (idx_bytes(np.zeros((2, 3, 3))) + b"x", "received 19"),
        (idx_bytes(np.zeros(4)), "in 3 dimensions"),
        (bytes([0, 0, 8, 3, 0]), "in 3 dimensions"),
    ],
)
def test_cut_and_foreign_files(tmp_path, content, match):
    path = tmp_path / "images"
    path.write_bytes(content)
    with pytest.raises(SigakError, match=match):
        read_idx(path, 3)


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-9], lambda b: b[:30] + b"!!!!" + b[34:], bytes.hex]
)
def test_cut_and_foreign_gzip_files(tmp_path, damage):
    path = tmp_path / "images.gz"
    whole = gzip.compress(idx_bytes(np.arange(600).reshape(6, 10, 10)))
    damaged = damage(whole)
    path.write_bytes(damaged if isinstance(damaged, bytes) else damaged.encode())
    with pytest.raises(SigakError, match="expected a whole file"):
        read_idx(path, 3)


def test_a_missing_set_says_where_it_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("SIGAK_DATA", str(tmp_path / "here"))
    monkeypatch.setenv("SIGAK_CACHE", str(tmp_path / "there"))
    with pytest.raises(SigakError, match=r"not on this machine.*here.*there.*--download"):
        load("mnist")
    assert not (tmp_path / "there").exists()


def test_a_missing_set_is_fetched_once(mnist, publisher, tmp_path, monkeypatch):
    _, folder = mnist
    address, published = publisher
    digests = []
    for stem in STEMS:
        plain = read_file(folder, stem)
        (published / f"{stem}.gz").write_bytes(gzip.compress(plain))
        digests.append(hashlib.md5((published / f"{stem}.gz").read_bytes()).hexdigest())
    monkeypatch.setitem(SETS, "mnist", replace(SETS["mnist"], url=address, md5=tuple(digests)))
    here = load("mnist")
    monkeypatch.delenv("SIGAK_DATA")
    fetched = load("mnist", download=True)
    assert fetched.root == tmp_path / "cache" / "mnist"
    assert digest(fetched) == digest(here)
    for file in published.iterdir():
        file.unlink()
    assert digest(load("mnist", download=True)) == digest(here)


def read_file(folder, stem):
    plain = folder / stem
    return (
        plain.read_bytes()
        if plain.exists()
        else gzip.decompress((folder / f"{stem}.gz").read_bytes())
    )


@pytest.mark.data
def test_the_real_fashion_mnist():
    data = load("fashion-mnist")
    assert {k: len(v) for k, v in data.splits.items()} == {
        "train": 54000,
        "val": 6000,
        "test": 10000,
    }
    assert np.bincount(data.splits["val"].labels).tolist() == [600] * 10
    assert data.splits["train"].pixels.shape[1:] == (28, 28, 1)
    assert data.classes[9] == "Ankle boot"
    assert data.problems == []
