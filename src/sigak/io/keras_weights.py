"""Weights saved by Keras: .h5 of Keras 1 to 3, .weights.h5 and .keras of Keras 3.

Only the layers' arrays are read; the network in the file, which may hold code, is left alone. h5py
reads the files (`pip install sigak[keras]`).
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sigak.structures import SigakError

__all__ = ["SUFFIXES", "read"]

SUFFIXES = (".h5", ".hdf5", ".keras")
_INSIDE = "model.weights.h5"  # the weights in a .keras archive


def read(path: Path) -> dict[str, Tensor]:
    """Every layer's arrays as tensors: "LAYER/0", "LAYER/1" ... in Keras's order and layout.

    A convolution has its kernel (H, W, in, out) and perhaps a bias, a dense layer (in, out), batch
    norm gamma, beta, moving mean and moving variance. Raises SigakError where the file is damaged,
    holds no layers, or h5py is missing.
    """
    try:
        import h5py
    except ImportError as error:
        raise SigakError(
            f"{path} is a file of Keras, and reading it needs h5py; install it with "
            "`pip install sigak[keras]`"
        ) from error
    try:
        with h5py.File(_open(path), "r") as file:
            found = _named_groups(file) if "layers" in file else _listed_layers(file)
            return {
                f"{layer}/{i}": torch.from_numpy(np.asarray(array, np.float32))
                for layer, arrays in found.items()
                for i, array in enumerate(arrays)
            }
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise SigakError(
            f"{path} is not a whole weights file of Keras ({error}); save it again with "
            "model.save_weights or model.save"
        ) from error


def _open(path: Path) -> Any:
    """What h5py opens: the file, or the weights inside a .keras archive."""
    if path.suffix != ".keras":
        return path
    with zipfile.ZipFile(path) as archive:
        return io.BytesIO(archive.read(_INSIDE))


def _listed_layers(file: Any) -> dict[str, list[Any]]:
    """The layers of an .h5 file, which lists their names and those of their arrays."""
    root = file.get("model_weights", file)
    return {
        layer: [root[layer][name][()] for name in _names(root[layer], "weight_names")]
        for layer in _names(root, "layer_names")
    }


def _names(group: Any, attribute: str) -> list[str]:
    """A list of names from a group's attributes; long ones are cut into NAME0, NAME1 ..."""
    parts = [attribute] if attribute in group.attrs else []
    while f"{attribute}{len(parts)}" in group.attrs:
        parts.append(f"{attribute}{len(parts)}")
    if not parts:
        raise KeyError(f"no {attribute}")
    names = [name for part in parts for name in group.attrs[part]]
    return [name.decode() if isinstance(name, bytes) else str(name) for name in names]


def _named_groups(file: Any) -> dict[str, list[Any]]:
    """The layers of a Keras 3 file, which keeps the name beside the numbered arrays."""
    layers = {}
    for group in file["layers"].values():
        arrays = group["vars"]
        if len(arrays):
            layers[str(arrays.attrs["name"])] = [arrays[str(i)][()] for i in range(len(arrays))]
    return layers
