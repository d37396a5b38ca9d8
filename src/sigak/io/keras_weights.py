"""Weights saved by Keras: .h5 of Keras 1 to 3, .weights.h5 and .keras of Keras 3.

`read` gives the layers' arrays; the network in the file, which may hold code, is left alone. h5py
reads the files (`pip install sigak[keras]`). `convert` turns them into a state dict of PyTorch's
names and layouts.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sigak.structures import SigakError

__all__ = ["SUFFIXES", "State", "convert", "read"]

State = dict[str, Tensor]

SUFFIXES = (".h5", ".hdf5", ".keras")
_INSIDE = "model.weights.h5"  # the weights in a .keras archive


def read(path: Path) -> State:
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


# ------------------------------------------------------------------ Keras's layouts to PyTorch's


def convert(
    state: State,
    *,
    name_of: Callable[[str], str],
    prefix: str = "net.",
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    bgr_stem: str = "",
) -> State:
    """Keras's tensors, "LAYER/0", "LAYER/1" ..., as ours.

    name_of: a Keras layer's name to our module's, KeyError for a stranger, which keeps its name and
    is reported as such; "" leaves a layer out. A separable convolution's name holds a *, which
    "depthwise" and "pointwise" replace. shapes: layers whose kernel is laid out anew first.
    bgr_stem: the convolution that sees blue, green, red in Keras.
    """
    layers: dict[str, list[Tensor]] = {}
    for key, value in state.items():
        layers.setdefault(key.rpartition("/")[0], []).append(value)
    _move_biases(layers)
    ours: State = {}
    for layer, (first, *rest) in layers.items():
        if shapes and layer in shapes:
            first = first.reshape(shapes[layer])
        try:
            name = name_of(layer)
        except KeyError:
            name = layer
        if name:
            found = _translate(layer, first, rest)
            ours |= {f"{prefix}{name}".replace("*", kind) + end: t for kind, end, t in found}
    stem = f"{prefix}{bgr_stem}.weight"
    if stem in ours and bgr_stem:
        ours[stem] = ours[stem].flip(1)
    return ours


def _translate(layer: str, first: Tensor, rest: Sequence[Tensor]) -> list[tuple[str, str, Tensor]]:
    """(what stands for the * in our name, ending, tensor) of one layer's arrays."""
    if first.ndim == 1:  # batch norm: gamma unless it has no scale, beta, moving mean and variance
        ends = (".weight", ".bias", ".running_mean", ".running_var")
        values = (first, *rest)
        return [("", end, value) for end, value in zip(ends[-len(values) :], values)]
    if rest and rest[0].ndim == 4:  # separable convolution: two kernels
        return [
            ("depthwise", ".weight", _depthwise(first)),
            ("pointwise", ".weight", _dense(rest[0])),
        ]
    depthwise = "dw" in layer or "depthwise" in layer
    found = [("", ".weight", _depthwise(first) if depthwise else _dense(first))]
    if rest:
        found.append(("", ".bias", rest[0]))
    return found


def _dense(kernel: Tensor) -> Tensor:
    """(H, W, in, out) -> (out, in, H, W), or (in, out) -> (out, in)."""
    return kernel.permute(3, 2, 0, 1) if kernel.ndim == 4 else kernel.T


def _depthwise(kernel: Tensor) -> Tensor:
    """(H, W, channels, 1) -> (channels, 1, H, W)."""
    return kernel.permute(2, 3, 0, 1)


def _move_biases(layers: dict[str, list[Tensor]]) -> None:
    """Take the bias of each convolution X_conv off the mean of the batch norm X_bn behind it."""
    for layer, arrays in layers.items():
        norm = layer.removesuffix("_conv") + "_bn"
        if layer.endswith("_conv") and len(arrays) == 2 and norm in layers:
            *affine, mean, variance = layers[norm]
            layers[norm] = [*affine, mean - arrays.pop(), variance]
