"""Weights in ONNX files: names, order, and what is refused."""

import numpy as np
import pytest
import torch

from sigak.io import onnx_weights
from sigak.structures import SigakError

onnx = pytest.importorskip("onnx")


def graph(tmp_path, **external):
    """A file whose layers use their constants in another order than that of the list."""
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    arrays = {
        "last.weight": np.arange(6, dtype=np.float16).reshape(2, 3),
        "onnx::Conv_1": np.ones((3, 3, 1, 1), np.float32),
        "bias": np.zeros(3, np.float32),
        "shape": np.array([1, 3]),
    }
    nodes = [
        helper.make_node("Conv", ["x", "onnx::Conv_1", "bias"], ["y"]),
        helper.make_node("Reshape", ["y", "shape"], ["z"]),
        helper.make_node("Gemm", ["z", "last.weight"], ["out"], transB=1),
    ]
    floats = onnx.TensorProto.FLOAT
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", floats, [1, 3, 1, 1])],
            [helper.make_tensor_value_info("out", floats, [1, 2])],
            [numpy_helper.from_array(array, name) for name, array in arrays.items()],
        )
    )
    onnx.save(model, tmp_path / "net.onnx", **external)
    return tmp_path / "net.onnx"


def test_constants_come_in_the_order_of_use_as_float32(tmp_path):
    found = onnx_weights.read(graph(tmp_path))
    assert list(found) == ["onnx::Conv_1", "bias", "last.weight"]
    assert {value.dtype for value in found.values()} == {torch.float32}
    assert found["last.weight"].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_damaged_files_are_refused(tmp_path):
    path = graph(tmp_path)
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"no such thing at all"):
        path.write_bytes(damaged)
        with pytest.raises(SigakError, match="not a whole ONNX file"):
            onnx_weights.read(path)
    path.write_bytes(b"")
    with pytest.raises(SigakError, match="holds no layers"):
        onnx_weights.read(path)
    with pytest.raises(SigakError, match="does not exist"):
        onnx_weights.read(tmp_path / "none.onnx")


def test_weights_in_other_files_are_refused(tmp_path):
    path = graph(tmp_path, save_as_external_data=True, location="elsewhere.bin", size_threshold=0)
    with pytest.raises(SigakError, match="other files beside it"):
        onnx_weights.read(path)
