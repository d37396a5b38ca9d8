"""Volumes: NIfTI files and arrays as stacks of gray slices, and masks written beside them.

A volume is (D, H, W). NIfTI files keep x first and z last; here the order is turned round, D = z,
H = y, W = x, and nothing else: slices stay as they are stored. https://nifti.nimh.nih.gov/nifti-1
Arrays (.npy, .npz) are taken as (D, H, W).
"""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sigak.io.image import Preparation
from sigak.structures import SigakError

__all__ = [
    "INTENSITY", "SUFFIXES", "Header", "describe", "is_volume", "load", "read", "read_labels",
    "save", "scaled", "stem",
]  # fmt: skip

SUFFIXES = (".nii", ".nii.gz", ".npy", ".npz")
"""File endings, in lower case, that folders and patterns are searched for."""

INTENSITY = "percentile"
"""The rule of `scaled`, as checkpoints name it."""

_SHARES = (0.5, 99.5)  # per cent of the voxels that lie below black and below white
_DAMAGE = (OSError, EOFError, ValueError, zlib.error, zipfile.BadZipFile)


@dataclass(frozen=True)
class Header:
    """shape (D, H, W); spacing: millimetres from voxel to voxel along D, H and W, and orientation:
    where x, y and z lead, such as "RAS" for right, anterior and superior. None and "" of an array.
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float] | None = None
    orientation: str = ""


def is_volume(path: str | Path) -> bool:
    """Whether a file has the ending of a volume."""
    return str(path).lower().endswith(SUFFIXES)


def stem(path: str | Path) -> str:
    """A path without the ending of a volume."""
    text = str(path)
    ending = next((end for end in (".nii.gz", *SUFFIXES) if text.lower().endswith(end)), "")
    return text[: len(text) - len(ending)]


def describe(source: str | Path | np.ndarray) -> Header:
    """What a volume is, from its header. Raises SigakError where it is damaged or none."""
    if isinstance(source, np.ndarray) or not _is_nifti(source):
        return Header(_array(source).shape)  # type: ignore[arg-type]
    image = _nifti(source)
    spacing = tuple(float(step) for step in image.header.get_zooms()[2::-1])
    orientation = "".join(code or "?" for code in _nibabel().aff2axcodes(image.affine))
    return Header(_three_sides(image.shape, str(source))[::-1], spacing, orientation)  # type: ignore[arg-type]


def read(source: str | Path | np.ndarray) -> np.ndarray:
    """The values (D, H, W) of a file or an array, of its own number type.

    Raises SigakError for missing and damaged files, for more than three dimensions (a series in
    time, several channels), and for what holds no numbers.
    """
    if isinstance(source, np.ndarray) or not _is_nifti(source):
        return _array(source)
    image = _nifti(source)
    shape = _three_sides(image.shape, str(source))
    values = _undamaged(source, lambda: np.asanyarray(image.dataobj))
    return np.asarray(values).reshape(shape).T


def read_labels(source: str | Path) -> np.ndarray:
    """The mask (D, H, W) uint8 of a file. Raises SigakError for values that do not fit: they are
    whole numbers from 0 to 254, and 255 (IGNORE) where the class is not known.
    """
    values = read(source)
    labels = np.zeros(values.shape, np.uint8)
    fits = (values >= 0) & (values <= 255)
    labels[fits] = values[fits]
    wrong = labels != values  # also where there is no number
    if wrong.any():
        raise SigakError(
            f"{source} holds the value {values[wrong][0]:g}; the classes of a mask are whole "
            f"numbers from 0 to 254, and 255 is no class: number them anew"
        )
    return labels


def load(
    source: str | Path | np.ndarray, preparation: Preparation
) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """`read` and `scaled` in one, as `sigak.io.image.load` has it: voxels (D, H, W, 1) float32 in
    [0, 1], the matrix of the slices, which stay as they are, and their (H, W).
    """
    if preparation.intensity != INTENSITY:
        raise SigakError(
            f"volumes are scaled by {INTENSITY}, received {preparation.intensity!r}; this "
            f"checkpoint was made by another version"
        )
    if preparation.steps:
        raise SigakError("--prepare is for pictures, volumes are taken as they are; leave it out")
    name = "the volume" if isinstance(source, np.ndarray) else str(source)
    voxels = scaled(read(source), name)[..., None]
    return voxels, np.eye(3), (voxels.shape[1], voxels.shape[2])


def scaled(values: np.ndarray, name: str = "the volume") -> np.ndarray:
    """Values of any range (D, H, W) -> float32 in [0, 1], by percentiles of the volume itself.

    0.5 % of the voxels become 0 and 0.5 % become 1, what lies between is linear. Where that leaves
    no range the lowest and highest value take their place; of one value alone all becomes 0. Voxels
    that are no number or infinite do not count, and become 0; SigakError where no other is left.
    """
    with np.errstate(over="ignore"):  # what is too large for float32 is infinite, and told so below
        values = values.astype(np.float32)
    finite = np.isfinite(values)
    whole = bool(finite.all())
    known = values if whole else values[finite]
    if not known.size:
        raise SigakError(f"{name}: none of its {values.size} voxels is a finite number")
    low, high = (float(limit) for limit in np.percentile(known, _SHARES))
    if low == high:
        low, high = float(known.min()), float(known.max())
    if low == high:
        return np.zeros_like(values)
    values = (values - np.float32(low)) / np.float32(high - low)
    if not whole:
        values[~finite] = 0
    return np.clip(values, 0, 1, out=values)


def save(path: Path, labels: np.ndarray, like: str | Path | None = None) -> None:
    """Write a mask (D, H, W) uint8 as .nii.gz or .npy; the file appears whole or not at all.

    like: the NIfTI file it belongs to, whose place in space (affine, its codes and units) it takes
    over, so that a viewer lays the one over the other.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        if not _is_nifti(path):
            np.save(part, labels)
        else:
            _as_nifti(labels, like).to_filename(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _as_nifti(labels: np.ndarray, like: str | Path | None) -> Any:
    nibabel = _nibabel()
    if like is None:
        return nibabel.Nifti1Image(labels.T, np.eye(4))
    image = _nifti(like)
    header = image.header.copy()
    header.set_data_dtype(np.uint8)
    header["cal_min"], header["cal_max"] = 0, 0  # the range that the volume itself is shown in
    return type(image)(labels.T, image.affine, header)


# ------------------------------------------------------------------ files


def _nibabel() -> Any:
    try:
        import nibabel
    except ImportError as error:
        raise SigakError(
            "NIfTI files are read and written by nibabel: pip install 'sigak[volumes]'"
        ) from error
    return nibabel


def _is_nifti(path: str | Path) -> bool:
    return str(path).lower().endswith((".nii", ".nii.gz"))


def _nifti(path: str | Path) -> Any:
    """The file with its header read, its values not yet."""
    nibabel = _nibabel()
    _refuse_missing(path)
    damage = (
        *_DAMAGE,
        nibabel.filebasedimages.ImageFileError,
        nibabel.spatialimages.HeaderDataError,
    )
    try:
        image = nibabel.load(path)
    except damage as error:
        raise SigakError(f"{path} is no NIfTI file, or damaged ({error})") from error
    if image.get_data_dtype().kind not in "buif":
        raise SigakError(f"{path} holds {image.get_data_dtype()}; expected one number a voxel")
    return image


def _array(source: str | Path | np.ndarray) -> np.ndarray:
    """An array, or that of a .npy or .npz file, as (D, H, W)."""
    if isinstance(source, np.ndarray):
        values, name = source, "the given array"
    else:
        _refuse_missing(source)
        values, name = _undamaged(source, lambda: _from_numpy(source)), str(source)
    if values.dtype.kind not in "buif":
        raise SigakError(f"{name} holds {values.dtype}; expected one number a voxel")
    return values.reshape(_three_sides(values.shape, name))


def _from_numpy(path: str | Path) -> np.ndarray:
    if not str(path).lower().endswith(".npz"):
        return np.load(path, mmap_mode="r", allow_pickle=False)  # type: ignore[no-any-return]
    with np.load(path, allow_pickle=False) as arrays:
        names = list(arrays)
        if len(names) != 1:
            raise ValueError(f"it holds {len(names)} arrays, one is expected")
        return arrays[names[0]]  # type: ignore[no-any-return]


def _undamaged(path: str | Path, reader: Callable[[], np.ndarray]) -> np.ndarray:
    try:
        return reader()
    except _DAMAGE as error:
        raise SigakError(f"{path} is damaged or cut short ({error})") from error


def _refuse_missing(path: str | Path) -> None:
    if not Path(path).is_file():
        what = "is a folder" if Path(path).is_dir() else f"does not exist (looked in {Path.cwd()})"
        raise SigakError(f"expected a volume ({', '.join(SUFFIXES)}), but {path} {what}")


def _three_sides(shape: tuple[int, ...], name: str) -> tuple[int, int, int]:
    """The three sides of a shape, whose further ones must be 1."""
    if len(shape) < 3 or any(side != 1 for side in shape[3:]) or 0 in shape:
        kind = "a volume has three sides"
        if len(shape) > 3:
            kind += "; of a series in time or of several channels give one volume at a time"
        raise SigakError(f"{name} has the shape {' x '.join(map(str, shape))}; {kind}")
    return shape[0], shape[1], shape[2]
