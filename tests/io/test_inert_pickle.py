"""Torch files are read as texts: whatever they name is neither imported nor called."""

import copyreg
import functools
import io
import os
import pickle
import random
import struct
import subprocess
import sys
import tarfile
import types
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

from sigak.io.inert_pickle import Global, Record, parse, read_inert
from sigak.structures import SigakError


class Calls:
    """Pickles as a call of `function` with `args`."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3)
        self.norm = nn.BatchNorm2d(3)
        self.register_buffer("grid", torch.arange(4.0))
        self.register_buffer("scratch", torch.zeros(2), persistent=False)


@pytest.fixture
def network(monkeypatch):
    """A network of a class that the reader could not import."""
    foreign = types.ModuleType("foreign_detector")
    monkeypatch.setitem(sys.modules, "foreign_detector", foreign)
    block = type("Detector", (Block,), {"__module__": "foreign_detector"})
    foreign.Detector = block
    torch.manual_seed(0)
    made = nn.Sequential(block(), nn.Linear(4, 2, bias=False))
    made.names = {0: "cat", 1: "dog"}
    made.stride = torch.tensor([8.0, 16.0])
    return made


def save(path, value, monkeypatch):
    torch.save(value, path)
    monkeypatch.delitem(sys.modules, "foreign_detector", raising=False)
    return path


def archive(path, content, storages=None, compression=zipfile.ZIP_STORED):
    """A torch file with the given bytes as its pickle."""
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("x/data.pkl", content)
        for key, data in (storages or {}).items():
            file.writestr(f"x/data/{key}", data)
    return path


def tensor_pickle(size=(2,), stride=(1,), offset=0, count=2, kind="FloatStorage", key="0"):
    """A pickle of {"w": tensor}, whose storage and view are as said."""

    class Named(pickle.Pickler):
        def persistent_id(self, value):
            return ("storage", getattr(torch, kind), key, "cpu", count) if value == "S" else None

    rebuilt = Calls(torch._utils._rebuild_tensor_v2, "S", offset, size, stride, False, {})
    stream = io.BytesIO()
    Named(stream, 2).dump({"w": rebuilt})
    return stream.getvalue()


# ------------------------------------------------------------------ what people have


@pytest.mark.parametrize("wrap", [lambda n: n, lambda n: {"ema": None, "model": n, "epoch": -1}])
def test_a_pickled_network_of_a_foreign_class(network, wrap, tmp_path, monkeypatch):
    expected = network.half().state_dict()
    path = save(tmp_path / "x.pt", wrap(network), monkeypatch)
    state, facts = read_inert(path)
    assert list(state) == list(expected)
    assert "0.grid" in state
    assert "0.scratch" not in state
    for name, value in expected.items():
        assert state[name].dtype == value.dtype
        assert torch.equal(state[name], value)
    assert facts == {
        "names": ["cat", "dog"],
        "class": "torch.nn.modules.container.Sequential",
        "stride": [8.0, 16.0],
    }
    assert "foreign_detector" not in sys.modules


def test_the_average_is_preferred(tmp_path):
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    torch.save({"model": first, "ema": second, "names": ["a", "b"]}, tmp_path / "x.pt")
    state, facts = read_inert(tmp_path / "x.pt")
    assert torch.equal(state["weight"], second.weight)
    assert facts["names"] == ["a", "b"]


def test_state_dicts_in_all_precisions(tmp_path):
    kinds = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32]
    kinds += [torch.int16, torch.int8, torch.uint8, torch.bool]
    state = OrderedDict((str(kind), torch.ones(2, 3).to(kind)) for kind in kinds)
    state["view"] = torch.arange(24.0).view(4, 6)[1:3, ::2].t()
    state["none"] = torch.zeros(0, 4)
    state["scalar"] = torch.tensor(7)
    torch.save({"state_dict": state, "best": 0.5, "seen": {1, 2}}, tmp_path / "x.pt")
    found, facts = read_inert(tmp_path / "x.pt")
    assert facts == {}
    for name, value in state.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_of_every_protocol(protocol):
    value = {
        "a": [1, -2, 2**40, 2**200, 1.5, True, False, None],
        "b": ("text \u00e9", b"bytes", (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)),
        3: {"deeper": [[], {}]},
        "again": "text \u00e9",
    }
    assert pickle.loads(pickle.dumps(value, protocol)) == value
    if protocol < 3:  # bytes are a call there
        value["b"] = value["b"][:1] + value["b"][2:]
    assert parse(pickle.dumps(value, protocol)) == value


# ------------------------------------------------------------------ hostile files


def hostile(sentinel):
    """Ways to have code run by unpickling."""
    touch = f"import pathlib; pathlib.Path({str(sentinel)!r}).touch()"
    command = f'"{sys.executable}" -c "{touch}"'
    yield Calls(os.system, command)
    yield Calls(eval, f"__import__('pathlib').Path({str(sentinel)!r}).touch()")
    yield Calls(exec, touch)
    yield Calls(subprocess.check_call, [sys.executable, "-c", touch])
    yield Calls(Path.touch, Path(sentinel))
    yield Calls(functools.partial(exec, touch))
    yield Calls(getattr, Calls(__import__, "os"), "system")
    yield Calls(copyreg._reconstructor, Calls(exec, touch), object, None)
    yield Calls(map, exec, [touch])
    yield Calls(torch.load, str(sentinel))
    yield {"model": [Calls(exec, touch), {"ema": Calls(exec, touch)}]}


def test_hostile_pickles_are_inert(tmp_path):
    sentinel = tmp_path / "sentinel"
    for number, value in enumerate(hostile(sentinel)):
        for protocol in (0, 2, 4):
            content = pickle.dumps(value, protocol)
            path = archive(tmp_path / f"{number}-{protocol}.pt", content)
            with pytest.raises(SigakError, match="holds no named tensors"):
                read_inert(path)
    assert not sentinel.exists()
    # The sentinel does appear where such a file is unpickled.
    pickle.loads(pickle.dumps(list(hostile(sentinel))[2]))
    assert sentinel.exists()


def test_hostile_parts_of_a_network_do_not_run(network, tmp_path, monkeypatch):
    sentinel = tmp_path / "sentinel"
    touch = f"import pathlib; pathlib.Path({str(sentinel)!r}).touch()"
    network.trap = Calls(exec, touch)
    network[1].names = Calls(os.system, "exit 1")
    network.names = Calls(exec, touch)
    state, facts = read_inert(save(tmp_path / "x.pt", network, monkeypatch))
    assert "1.weight" in state
    assert "names" not in facts
    assert not sentinel.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"cos\nsystem\n(S'exit 1'\ntR.",  # GLOBAL, REDUCE
        b"(S'exit 1'\nios\nsystem\n.",  # INST
        b"(cos\nsystem\nS'exit 1'\no.",  # OBJ
        b"\x80\x02cos\nsystem\nX\x01\x00\x00\x00x\x85\x81.",  # NEWOBJ
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x01x\x85}\x92.",  # STACK_GLOBAL, NEWOBJ_EX
        b"cos\nsystem\np0\n0g0\n(S'exit 1'\ntR.",  # through the memo
        b"cbuiltins\ngetattr\n(cos\nsystem\nS'__call__'\ntR(S'exit 1'\ntR.",  # a call's result
        b"cos\nsystem\n(S'exit 1'\ntR}S'__setstate__'\ncos\nsystem\nsb.",  # BUILD
    ],
)
def test_every_opcode_that_calls_only_notes_it_down(content):
    found = parse(content)
    assert isinstance(found, Record)


def test_what_a_record_says():
    content = pickle.dumps(Calls(os.system, "exit 1"), 2)
    found = parse(content)
    assert (found.name.rpartition(".")[2], found.args) == ("system", ("exit 1",))
    assert parse(pickle.dumps(nn.Conv2d, 2)) == Global("torch.nn.modules.conv.Conv2d")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b".",
        b"N",
        b"garbage",
        b"\x80\x02g0\n.",  # nothing under that number
        b"t.",  # no mark
        b"NNb0",  # no end
        b"\x82\x01.",  # an extension registered in this process
        b"\x80\x05\x97.",  # a buffer from outside
        b"\x80\x02\x8a\xff1.",
        b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"x.",  # 4 EiB of bytes
        b"\x80\x02cos\nsystem\nNR.",  # arguments that are none
        b"NNs.",
    ],
)
def test_broken_pickles_are_refused(content, tmp_path):
    with pytest.raises(ValueError):  # noqa: PT011
        parse(content)
    with pytest.raises(SigakError, match="was refused"):
        read_inert(archive(tmp_path / "x.pt", content))


def test_memo_numbers_and_nesting_take_no_memory():
    content = b"\x80\x02]r" + struct.pack("<I", 2**32 - 1) + b"."  # the memo is no array
    assert parse(content) == []
    nested = b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."
    assert isinstance(parse(nested), list)
    # A key that doubles forty times would take years to hash.
    doubled = b"\x80\x02}N\x85" + b"2\x86" * 40 + b"Ns."
    assert parse(doubled) == {}


# ------------------------------------------------------------------ lies about sizes


def test_the_crafted_tensor_is_read(tmp_path):
    path = archive(tmp_path / "x.pt", tensor_pickle(), {"0": struct.pack("<2f", 1, 2)})
    assert read_inert(path)[0]["w"].tolist() == [1, 2]


@pytest.mark.parametrize(
    "lie",
    [
        {"count": 3},
        {"count": 10**15},
        {"kind": "HalfStorage"},
        {"kind": "Tensor"},
        {"key": "1"},
        {"key": "../../x"},
        {"offset": 1},
        {"offset": -1},
        {"offset": True},
        {"size": (3,)},
        {"size": (-1,)},
        {"size": (2, 2)},
        {"size": (10**12,), "stride": (0,)},
        {"size": (2**62, 2**62), "stride": (1, 1)},
        {"stride": (2,)},
        {"stride": (-1,)},
        {"stride": ("1",)},
        {"size": [2]},
        {"size": (1,) * 9, "stride": (1,) * 9},
    ],
)
def test_lies_about_sizes_are_refused(lie, tmp_path):
    content = tensor_pickle(**lie)
    path = archive(tmp_path / "x.pt", content, {"0": struct.pack("<2f", 1, 2)})
    with pytest.raises(SigakError, match="was refused"):
        read_inert(path)


def test_compressed_parts_are_refused(tmp_path):
    path = archive(
        tmp_path / "x.pt", tensor_pickle(), {"0": bytes(8)}, compression=zipfile.ZIP_DEFLATED
    )
    with pytest.raises(SigakError, match="compressed"):
        read_inert(path)


def test_modules_without_end_are_refused(tmp_path):
    ring, doubled = nn.Module(), nn.Linear(1, 1)
    ring._modules["again"] = ring
    for _ in range(40):  # each holds the one before twice
        outer = nn.Module()
        outer._modules = {"a": doubled, "b": doubled}
        doubled = outer
    for name, module in (("ring", ring), ("doubled", doubled)):
        torch.save(module, tmp_path / f"{name}.pt")
        with pytest.raises(SigakError, match="modules have no end"):
            read_inert(tmp_path / f"{name}.pt")


# ------------------------------------------------------------------ other files


def test_older_and_other_files(tmp_path):
    legacy = tmp_path / "legacy.pt"
    torch.save(nn.Linear(1, 1), legacy, _use_new_zipfile_serialization=False)
    with tarfile.open(tmp_path / "old.pt", "w") as tar:
        tar.add(legacy, "storages")
    for name in ("legacy.pt", "old.pt"):
        with pytest.raises(SigakError, match=r"no zip archive.*1\.6"):
            read_inert(tmp_path / name)
    with zipfile.ZipFile(tmp_path / "other.pt", "w") as file:
        file.writestr("readme.txt", "hello")
    with pytest.raises(SigakError, match="not one that torch wrote"):
        read_inert(tmp_path / "other.pt")
    with pytest.raises(SigakError, match="does not exist"):
        read_inert(tmp_path / "none.pt")
    torch.save({"epoch": 3}, tmp_path / "empty.pt")
    with pytest.raises(SigakError, match="no named tensors"):
        read_inert(tmp_path / "empty.pt")


def test_damage_is_always_said_in_a_sentence(tmp_path):
    torch.save(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), tmp_path / "x.pt")
    whole = (tmp_path / "x.pt").read_bytes()
    chance = random.Random(0)
    refused = 0
    for trial in range(300):
        data = bytearray(whole)
        if trial % 3 == 0:
            data = data[: chance.randrange(len(data))]
        else:
            for _ in range(chance.randrange(1, 8)):
                data[chance.randrange(len(data))] = chance.randrange(256)
        (tmp_path / "y.pt").write_bytes(data)
        try:
            read_inert(tmp_path / "y.pt")
        except SigakError:
            refused += 1
    assert refused > 150


def test_damaged_pickles_raise_value_errors():
    content = pickle.dumps({"a": [1, (2.5, "x")], "b": Calls(os.system, "exit 1")}, 4)
    chance = random.Random(0)
    for _ in range(2000):
        data = bytearray(content)
        for _ in range(chance.randrange(1, 4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        try:
            parse(bytes(data))
        except ValueError:
            continue
