"""digits: 1,797 handwritten digits of 8 x 8 pixels, which come with scikit-learn.

Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
Repository, 1998 (its test part), as scikit-learn packs it.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from sigak.data import Dataset, decoded_split
from sigak.data.splits import carve, group_pixels
from sigak.structures import SigakError

__all__ = ["read"]

_SHAPE = (1797, 65)  # 64 pixels from 0 to 16, row by row, then the digit
_TEST_SHARE = 0.2


def read() -> Dataset:
    """The set with a "train" and a "test" split of about four fifths and one fifth.

    The set has no test split of its own. Ours is stratified and always the same, whatever seed a
    run has, so that scores can be compared.
    """
    table = _table()
    pixels = np.rint(table[:, :64] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    whole = decoded_split("digits", "", pixels, table[:, 64])
    keys = [record.source for record in whole.records]
    test = carve(whole.labels, group_pixels(pixels), keys, _TEST_SHARE, seed=0)
    splits = {
        "train": whole.subset(np.flatnonzero(~test), "train"),
        "test": whole.subset(np.flatnonzero(test), "test"),
    }
    return Dataset("digits", [str(digit) for digit in range(10)], splits, "gray")


def _table() -> np.ndarray:
    # The file is read where it lies: importing scikit-learn to do the same takes seconds.
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise SigakError(
            "digits comes with scikit-learn, which is not installed: pip install scikit-learn"
        )
    path = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    try:
        table = np.loadtxt(path, delimiter=",")
    except (OSError, ValueError, EOFError) as error:
        raise SigakError(
            f"{path}: expected scikit-learn's digits, received {error}; reinstall it"
        ) from error
    if table.shape != _SHAPE:
        raise SigakError(
            f"{path}: expected a table of {_SHAPE}, received {table.shape}; reinstall scikit-learn"
        )
    return table
