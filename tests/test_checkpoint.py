"""Checkpoints: everything in one file, whole or not at all, nothing executed."""

import json
import os

import pytest
import torch
from safetensors import safe_open

import sigak
from sigak.io import weights as files
from sigak.prediction import load
from sigak.structures import Failure, SigakError


def test_the_header_says_everything(digits_run):
    with safe_open(digits_run.checkpoint, framework="pt") as file:
        header = json.loads(file.metadata()["sigak"])
    assert header["version"] == sigak.__version__
    assert (header["name"], header["task"]) == ("mlp", "classify")
    assert header["classes"] == [str(i) for i in range(10)]
    assert header["arguments"]["classes"] == 10
    assert header["arguments"]["size"] == header["preparation"]["size"] == [8, 8]
    assert header["preparation"]["color"] == "gray"
    assert header["recipe"]["epochs"] == 2
    assert header["scores"]["val_loss"] == digits_run.history["val_loss"].min()
    assert header["data"]["name"] == "digits"
    assert len(header["data"]["digest"]) == 16


def test_the_file_alone_is_enough(digits_run, tmp_path):
    moved = tmp_path / "elsewhere.safetensors"
    moved.write_bytes(digits_run.checkpoint.read_bytes())
    here, there = load(digits_run.folder), load(moved)
    images = torch.rand(3, 1, 8, 8)
    assert torch.equal(here.engine(images), there.engine(images))
    assert sigak.evaluate(moved, "digits")["accuracy"] == digits_run.evaluation["accuracy"]


def test_tensors_and_header_come_back(tmp_path):
    tensors = {
        "a": torch.rand(2, 3),
        "half": torch.rand(3).half(),
        "count": torch.tensor(7),
        "last": torch.rand(1, 4, 2, 2).to(memory_format=torch.channels_last),
        "none": torch.zeros(0, 3),
    }
    header = {"text": '소 " \\ \n', "number": 1e-300, "list": [1, None, True]}
    files.write(tmp_path / "deep" / "x.safetensors", tensors, header)
    back, said = files.read(tmp_path / "deep" / "x.safetensors")
    assert said == header
    assert set(back) == set(tensors)
    for name, value in tensors.items():
        assert back[name].dtype == value.dtype
        assert torch.equal(back[name], value)
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["x.safetensors"]


@pytest.mark.skipif(os.name == "nt", reason="permissions are POSIX's")
def test_others_may_read_it_as_they_may_other_files(tmp_path):
    (tmp_path / "plain").touch()
    files.write(tmp_path / "x.safetensors", {"a": torch.zeros(1)}, {})
    modes = [(tmp_path / name).stat().st_mode & 0o777 for name in ("plain", "x.safetensors")]
    assert modes[0] == modes[1]


def test_a_failed_save_leaves_the_old_file(tmp_path):
    target = tmp_path / "x.safetensors"
    files.write(target, {"a": torch.zeros(1)}, {})
    old = target.read_bytes()
    (tmp_path / "x.safetensors.part").mkdir()  # in the way of the new file
    with pytest.raises((Failure, OSError)):
        files.write(target, {"a": torch.ones(1)}, {})
    assert target.read_bytes() == old


def test_states_of_any_shape_are_packed():
    state = {
        "optimizer": {0: {"step": torch.tensor(3.0), "buffers": [torch.ones(2), None]}},
        "names": ["a", "b"],
        "pairs": [(1, 2.5)],
        "flag": False,
        "nested": {"x": {"y": torch.zeros(1)}},
    }
    tensors: dict[str, torch.Tensor] = {}
    packed = json.loads(json.dumps(files.pack(state, tensors)))
    back = files.unpack(packed, tensors)
    assert back["optimizer"][0]["step"] == 3
    assert torch.equal(back["optimizer"][0]["buffers"][0], torch.ones(2))
    assert back["optimizer"][0]["buffers"][1] is None
    assert back["pairs"] == [[1, 2.5]]
    assert (back["names"], back["flag"]) == (["a", "b"], False)
    assert torch.equal(back["nested"]["x"]["y"], torch.zeros(1))


def test_a_run_folder_stands_for_its_best(digits_run, tmp_path):
    assert files.find_checkpoint(digits_run.folder) == digits_run.checkpoint
    with pytest.raises(SigakError, match=r"a run folder that holds best\.safetensors"):
        files.find_checkpoint(tmp_path)
