"""Weights files of Keras, old and new, read by layer; damaged ones refused."""

import zipfile

import numpy as np
import pytest

from sigak.io import keras_weights, weights
from sigak.structures import SigakError

h5py = pytest.importorskip("h5py")

KERNEL, BIAS = np.arange(6, dtype=np.float32).reshape(2, 3), np.ones(3, np.float32)


def write_listed(path, *, root="", cut=False):
    """The layout of Keras 1 and 2: names in attributes, as bytes, perhaps cut into two lists."""
    with h5py.File(path, "w") as file:
        group = file.create_group(root) if root else file
        names = [b"relu", b"fc"]
        if cut:
            group.attrs["layer_names0"], group.attrs["layer_names1"] = names[:1], names[1:]
        else:
            group.attrs["layer_names"] = names
        group.create_group("relu").attrs["weight_names"] = np.array([], "S1")
        layer = group.create_group("fc")
        layer.attrs["weight_names"] = [b"fc/W:0", b"fc/b:0"]
        layer["fc/W:0"], layer["fc/b:0"] = KERNEL, BIAS


def write_numbered(path):
    """The layout of Keras 3: groups by kind, the layer's name beside its arrays."""
    with h5py.File(path, "w") as file:
        arrays = file.create_group("layers/dense_1/vars")
        arrays.attrs["name"] = "fc"
        arrays["0"], arrays["1"] = KERNEL, BIAS
        file.create_group("layers/activation/vars")


def write_archive(path):
    write_numbered(path.with_suffix(".h5"))
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(path.with_suffix(".h5"), "model.weights.h5")
        archive.writestr("config.json", "{}")


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.h5", write_listed),
        ("a.hdf5", lambda path: write_listed(path, root="model_weights")),
        ("a.h5", lambda path: write_listed(path, cut=True)),
        ("a.weights.h5", write_numbered),
        ("a.keras", write_archive),
    ],
)
def test_layers_are_read_in_order(name, write, tmp_path):
    write(tmp_path / name)
    state, names = weights.read_foreign(tmp_path / name)
    assert names == []
    assert list(state) == ["fc/0", "fc/1"]
    assert state["fc/0"].tolist() == KERNEL.tolist()
    assert state["fc/1"].tolist() == BIAS.tolist()


@pytest.mark.parametrize("suffix", [".h5", ".keras"])
def test_what_is_no_file_of_keras_is_refused(suffix, tmp_path):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(SigakError, match="not a whole weights file of Keras"):
        keras_weights.read(path)


def test_a_file_without_layers_is_refused(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = KERNEL
    with pytest.raises(SigakError, match="no layer_names"):
        keras_weights.read(tmp_path / "a.h5")
    with zipfile.ZipFile(tmp_path / "a.keras", "w") as archive:
        archive.writestr("config.json", "{}")
    with pytest.raises(SigakError, match=r"model\.weights\.h5"):
        keras_weights.read(tmp_path / "a.keras")


def test_h5py_is_asked_for(tmp_path, monkeypatch):
    write_listed(tmp_path / "a.h5")
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(SigakError, match=r"pip install sigak\[keras\]"):
        keras_weights.read(tmp_path / "a.h5")
