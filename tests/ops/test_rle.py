"""Run-length codes are those of pycocotools."""

import json

import numpy as np
import pytest
from pycocotools import mask as reference

from sigak.ops.rle import mask_of, run_lengths

# pycocotools is older than NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def test_codes_are_pycocotools():
    rng = np.random.default_rng(0)
    for size in ((1, 1), (7, 5), (40, 60)):
        for share in (0.0, 0.3, 1.0):
            mask = rng.random(size) < share
            code = json.loads(json.dumps(run_lengths(mask)))
            theirs = reference.encode(np.asfortranarray(mask.astype(np.uint8)))
            assert code["counts"] == theirs["counts"].decode()
            np.testing.assert_array_equal(mask_of(code, size), mask)


def test_nothing_is_nothing():
    assert not mask_of([], (4, 5)).any()
    assert not mask_of([np.array([[1.0, 1.0], [3.0, 3.0]])], (4, 5)).any()
