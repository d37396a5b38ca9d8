"""CIFAR in the official binary form, written here and read back."""

import hashlib
import io
import tarfile
from dataclasses import replace

import numpy as np
import pytest

from sigak.data import cifar, digest, load
from sigak.data.cifar import SETS, _unpack
from sigak.structures import SigakError


def write_records(path, labels, pixels):
    """labels (N, bytes per record) and pixels (N, 32, 32, 3) as the authors write them."""
    planes = pixels.transpose(0, 3, 1, 2).reshape(len(pixels), -1)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.concatenate([labels, planes], axis=1).astype(np.uint8).tofile(path)


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("SIGAK_DATA", str(tmp_path))
    monkeypatch.setenv("SIGAK_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def cifar10(root):
    folder = root / "cifar-10-batches-bin"
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (6, 4, 32, 32, 3), np.uint8)
    labels = random.integers(0, 10, (6, 4, 1), np.uint8)
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
    for name, label, pixel in zip(names, labels, pixels):
        write_records(folder / name, label, pixel)
    return folder, labels, pixels


def test_cifar10(cifar10):
    _, labels, pixels = cifar10
    data = load("cifar10", val=0)
    np.testing.assert_array_equal(data.splits["train"].pixels, pixels[:5].reshape(20, 32, 32, 3))
    np.testing.assert_array_equal(data.splits["train"].labels, labels[:5].ravel())
    np.testing.assert_array_equal(data.splits["test"].pixels, pixels[5])
    assert data.splits["train"].pixels.flags.c_contiguous
    assert data.color == "rgb"
    assert data.classes == list(SETS["cifar10"].classes)


def test_class_names_come_from_the_set_where_it_has_them(cifar10):
    folder, *_ = cifar10
    (folder / "batches.meta.txt").write_text("\n".join("abcdefghij") + "\n\n")
    assert load("cifar10").classes == list("abcdefghij")
    (folder / "batches.meta.txt").write_text("a\nb\n")
    with pytest.raises(SigakError, match="expected 10 different class names, received 2"):
        load("cifar10")


@pytest.mark.parametrize(("name", "column"), [("cifar100-coarse", 0), ("cifar100", 1)])
def test_cifar100_fine_and_coarse(root, name, column):
    labels = np.array([[19, 99], [0, 3], [7, 42]])
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    for file in ("train.bin", "test.bin"):
        write_records(root / "cifar-100-binary" / file, labels, pixels)
    data = load(name, val=0)
    np.testing.assert_array_equal(data.splits["train"].labels, labels[:, column])
    np.testing.assert_array_equal(data.splits["train"].pixels, pixels)


def test_published_class_names():
    fine, coarse = SETS["cifar100"].classes, SETS["cifar100-coarse"].classes
    assert (len(fine), len(coarse), len(SETS["cifar10"].classes)) == (100, 20, 10)
    assert list(fine) == sorted(set(fine))
    assert list(coarse) == sorted(set(coarse))


@pytest.mark.parametrize("size", [0, 3072, 3073 * 2 - 1])
def test_a_cut_file(cifar10, size):
    path = cifar10[0] / "data_batch_3.bin"
    path.write_bytes(b"\0" * size)
    with pytest.raises(SigakError, match=rf"data_batch_3\.bin.*3073 bytes, received {size} bytes"):
        load("cifar10")


def test_labels_beyond_the_classes(cifar10):
    folder, labels, pixels = cifar10
    write_records(folder / "test_batch.bin", np.full_like(labels[5], 10), pixels[5])
    with pytest.raises(SigakError, match=r"test_batch\.bin.*0 to 9, received 10 .*4 such labels"):
        load("cifar10")


def test_identical_pictures_of_train_and_test_are_reported(cifar10):
    folder, labels, pixels = cifar10
    write_records(folder / "test_batch.bin", labels[0], pixels[0])
    reasons = [p.reason for p in load("cifar10", val=0).problems if p.source == "cifar10/test#2"]
    assert reasons == ["identical to cifar10/train#2 of train"]


def test_unpacks_only_what_is_wanted_and_nowhere_else(tmp_path):
    archive = tmp_path / "inner" / "set.tar.gz"
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as tar:
        for name in ("../outside.bin", "set/good.bin", "set/other.bin"):
            member = tarfile.TarInfo(name)
            member.size = 4
            tar.addfile(member, io.BytesIO(b"data"))
        link = tarfile.TarInfo("set/link.bin")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    _unpack(archive, ["good.bin", "outside.bin"])
    written = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file())
    assert written == ["inner/good.bin", "inner/outside.bin", "inner/set.tar.gz"]
    with pytest.raises(SigakError, match=r"expected it to hold link\.bin"):
        _unpack(archive, ["link.bin"])


def test_a_missing_archive_is_fetched_and_unpacked(cifar10, publisher, tmp_path, monkeypatch):
    folder, *_ = cifar10
    address, published = publisher
    (folder / "batches.meta.txt").write_text("\n".join("abcdefghij"))
    archive = published / "cifar-10-binary.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, folder.name)
    md5 = hashlib.md5(archive.read_bytes()).hexdigest()
    monkeypatch.setattr(cifar, "_HOME", address)
    monkeypatch.setitem(cifar.SETS, "cifar10", replace(cifar.SETS["cifar10"], md5=md5))
    here = load("cifar10")
    monkeypatch.delenv("SIGAK_DATA")
    fetched = load("cifar10", download=True)
    assert digest(fetched) == digest(here)
    assert fetched.classes == list("abcdefghij")
    cache = tmp_path / "cache" / folder.name
    assert {p.name for p in cache.iterdir()} == {p.name for p in folder.iterdir()}


@pytest.mark.data
def test_the_real_cifar10():
    data = load("cifar10")
    assert {k: len(v) for k, v in data.splits.items()} == {
        "train": 45000,
        "val": 5000,
        "test": 10000,
    }
    assert np.bincount(data.splits["val"].labels).tolist() == [500] * 10
    assert data.classes[6] == "frog"
    assert data.problems == []
