"""torch files that hold objects of foreign classes, read without executing anything.

A `.pt` file is a zip archive: `data.pkl`, a pickle, says what the objects are, and the files under
`data/` hold the numbers of the tensors. Unpickling would import and call whatever the pickle names.
Here the pickle is only read as a text: a small stack machine follows its opcodes, and where a
pickle machine would import, call or build something, it notes down the name and the arguments as an
inert `Record`. No import and no call is there to be abused. Tensors are then made from
the records that describe one, within the bytes the archive really has.
"""

from __future__ import annotations

import io
import math
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sigak.structures import SigakError

__all__ = ["Global", "Record", "parse", "read_inert"]

_LONGEST_PICKLE = 16 * 2**20  # bytes; that of a large detector has less than one million
_PARTS = 200_000  # modules and tensors; no network has so many
_LONGEST_NAME = 1000  # letters of a dotted name

_DTYPES = {
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.DoubleStorage": torch.float64,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}
_TENSORS = ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor")
_PARAMETERS = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")


# What reading a damaged archive can raise.
_DAMAGE = (
    *(zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError),
    *(KeyError, ValueError, OverflowError, RuntimeError, MemoryError),
)


class _ReadError(Exception):
    """Why a file cannot be read; `read_inert` adds which file."""


# ------------------------------------------------------------------ the pickle, as a text


@dataclass(frozen=True)
class Global:
    """A class or function that the pickle names, such as "torch.nn.modules.conv.Conv2d"."""

    name: str


@dataclass(eq=False)
class Record:
    """An object that was not made: the name of what would have made it, and what the pickle has
    for it. items: what is appended to it; entries: what is set by a key; state: its attributes.
    """

    name: str
    args: tuple[Any, ...] = ()
    state: dict[Any, Any] = field(default_factory=dict)
    items: list[Any] = field(default_factory=list)
    entries: dict[Any, Any] = field(default_factory=dict)


def parse(pickle: bytes) -> Any:
    """What a pickle says: plain values, lists, tuples and dicts as they are, sets as lists, named
    classes and functions as `Global`, all other objects as `Record`.

    Entries whose key is no number or text are left out. ValueError for a damaged pickle, and for
    opcodes that no torch file has.
    """
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(pickle):
            if opcode.name == "STOP":
                return machine.stack.pop()
            _OPCODES[opcode.name](machine, argument)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"not a pickle that can be read ({error!r:.100})") from error
    raise ValueError("the pickle has no end")


class _Machine:
    """The stack, the places of its marks, and the memo of a pickle being read."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def take(self, count: int) -> list[Any]:
        """The `count` top values, in the order they were pushed."""
        if count > len(self.stack):
            raise IndexError("an empty stack")
        taken = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return taken

    def take_marked(self) -> list[Any]:
        return self.take(len(self.stack) - self.marks.pop())


def _append(machine: _Machine, values: list[Any]) -> None:
    target = machine.stack[-1]
    (target.items if isinstance(target, Record) else target).extend(values)


def _set(machine: _Machine, values: list[Any]) -> None:
    target = machine.stack[-1]
    (target.entries if isinstance(target, Record) else target).update(_pairs(values))


def _pairs(values: list[Any]) -> dict[Any, Any]:
    """Keys and values in turn -> a dict. Other keys are left out unhashed: nested ones can take
    forever.
    """
    plain = (str, bytes, int, float, type(None))
    return {k: v for k, v in zip(values[::2], values[1::2]) if isinstance(k, plain)}


def _build(machine: _Machine) -> None:
    state = machine.stack.pop()
    target = machine.stack[-1]
    if isinstance(state, tuple) and state:  # (__dict__, __slots__)
        state = state[0]
    if isinstance(target, Record) and isinstance(state, dict):
        target.state = state


def _reduce(machine: _Machine) -> None:
    function, args = machine.take(2)
    name = function.name if isinstance(function, Global) else ""
    if name == "collections.OrderedDict" and args == ():
        machine.push({})
    elif name in ("builtins.set", "__builtin__.set") and len(args) == 1:
        machine.push(args[0])
    else:
        _make(machine, function, args)


def _make(machine: _Machine, maker: Any, args: Any) -> None:
    if not isinstance(args, tuple):
        raise TypeError("arguments that are no tuple")
    machine.push(Record(maker.name if isinstance(maker, Global) else "", args))


def _instance(machine: _Machine, named: str) -> None:
    _make(machine, Global(named.replace(" ", ".")), tuple(machine.take_marked()))


def _object(machine: _Machine) -> None:
    kind, *args = machine.take_marked()
    _make(machine, kind, tuple(args))


def _stack_global(machine: _Machine) -> None:
    module, name = machine.take(2)
    machine.push(Global(f"{module:s}.{name:s}"))  # TypeError, and so refused, where they are no str


def _persistent(machine: _Machine, told: Any) -> None:
    machine.push(Record("persistent", told if isinstance(told, tuple) else (told,)))


Action = Callable[[_Machine, Any], object]


def _new(kind: type) -> Action:
    return lambda machine, _: machine.push(kind())


def _tuple(count: int) -> Action:
    return lambda machine, _: machine.push(tuple(machine.take(count)))


def _marked(kind: Callable[[list[Any]], Any]) -> Action:
    return lambda machine, _: machine.push(kind(machine.take_marked()))


def _constant(value: bool | None) -> Action:
    return lambda machine, _: machine.push(value)


_VALUES = (
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING "
    "BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8 UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8"
)
_OPCODES: dict[str, Action] = {
    **dict.fromkeys(_VALUES.split(), _Machine.push),
    **dict.fromkeys(("PROTO", "FRAME"), lambda machine, _: None),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda m, place: m.push(m.memo[place])),
    **dict.fromkeys(
        ("PUT", "BINPUT", "LONG_BINPUT"), lambda m, place: m.memo.update({place: m.stack[-1]})
    ),
    "MEMOIZE": lambda m, _: m.memo.update({len(m.memo): m.stack[-1]}),
    "NONE": _constant(None),
    "NEWTRUE": _constant(True),
    "NEWFALSE": _constant(False),
    "EMPTY_LIST": _new(list),
    "EMPTY_SET": _new(list),
    "EMPTY_TUPLE": _new(tuple),
    "EMPTY_DICT": _new(dict),
    "TUPLE1": _tuple(1),
    "TUPLE2": _tuple(2),
    "TUPLE3": _tuple(3),
    "MARK": lambda m, _: m.marks.append(len(m.stack)),
    "POP": lambda m, _: m.take(1),
    "POP_MARK": lambda m, _: m.take_marked(),
    "DUP": lambda m, _: m.push(m.stack[-1]),
    "TUPLE": _marked(tuple),
    "LIST": _marked(list),
    "FROZENSET": _marked(list),
    "DICT": _marked(_pairs),
    "APPEND": lambda m, _: _append(m, m.take(1)),
    "APPENDS": lambda m, _: _append(m, m.take_marked()),
    "ADDITEMS": lambda m, _: _append(m, m.take_marked()),
    "SETITEM": lambda m, _: _set(m, m.take(2)),
    "SETITEMS": lambda m, _: _set(m, m.take_marked()),
    "GLOBAL": lambda m, named: m.push(Global(named.replace(" ", "."))),
    "STACK_GLOBAL": lambda m, _: _stack_global(m),
    "REDUCE": lambda m, _: _reduce(m),
    "BUILD": lambda m, _: _build(m),
    "INST": _instance,
    "OBJ": lambda m, _: _object(m),
    "NEWOBJ": lambda m, _: _make(m, *m.take(2)),
    "NEWOBJ_EX": lambda m, _: _make(m, *m.take(3)[:2]),
    "PERSID": _persistent,
    "BINPERSID": lambda m, _: _persistent(m, m.stack.pop()),
}


# ------------------------------------------------------------------ the archive


class _Archive:
    """The zip archive of a torch file; storages are read when a tensor asks for them."""

    def __init__(self, file: io.BufferedIOBase) -> None:
        self.zip = zipfile.ZipFile(file)  # type: ignore[arg-type]
        pickles = [n for n in self.zip.namelist() if n.count("/") == 1 and n.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise _ReadError("it is a zip archive, but not one that torch wrote")
        self.root = pickles[0].removesuffix("data.pkl")
        self.left = file.seek(0, io.SEEK_END)  # bytes all storages together can have
        self.storages: dict[str, Tensor] = {}

    def entry(self, name: str, longest: int) -> bytes:
        """The bytes of a file in the archive, which torch never compresses."""
        info = self.zip.getinfo(self.root + name)
        if info.compress_type != zipfile.ZIP_STORED:
            raise _ReadError(f"its part {name} is compressed, as torch never does")
        if info.file_size > longest:
            raise _ReadError(f"its part {name} has {info.file_size:,} bytes, too many to be true")
        return self.zip.read(info)

    def content(self) -> Any:
        if (
            self.root + "byteorder" in self.zip.namelist()
            and self.entry("byteorder", 9) != b"little"
        ):
            raise _ReadError("it was written by a big-endian machine")
        return parse(self.entry("data.pkl", _LONGEST_PICKLE))

    def storage(self, record: Any) -> Tensor:
        """The numbers (N,) of a storage the pickle refers to."""
        if not (isinstance(record, Record) and record.name == "persistent"):
            raise _ReadError("a tensor has no storage")
        match record.args:
            case ("storage", Global(kind), str(key), _, int(count)) if kind in _DTYPES:
                if key not in self.storages:
                    self.storages[key] = self._read_storage(key, _DTYPES[kind], count)
                return self.storages[key]
        raise _ReadError("a storage of an unknown kind is named")

    def _read_storage(self, key: str, dtype: torch.dtype, count: int) -> Tensor:
        data = bytearray(self.entry(f"data/{key}", self.left))
        self.left -= len(data)
        if len(data) != count * dtype.itemsize:
            raise _ReadError(
                f"storage {key} should hold {count:,} numbers of {dtype}, but it has "
                f"{len(data):,} bytes"
            )
        return torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)

    def tensor(self, record: Record) -> Tensor:
        """The tensor that a record describes: a view of its storage, and never more than that."""
        if record.name in _PARAMETERS and record.args and isinstance(record.args[0], Record):
            record = record.args[0]
        if record.name not in _TENSORS or len(record.args) < 4:
            raise _ReadError("a parameter is described in an unknown way")
        kept, offset, size, stride = record.args[:4]
        storage = self.storage(kept)
        if not _within(len(storage), offset, size, stride):
            raise _ReadError("a tensor reaches beyond its storage")
        return storage.as_strided(size, stride, offset)


def _within(length: int, offset: Any, size: Any, stride: Any) -> bool:
    """Whether a view of a storage of `length` stays inside and shows nothing twice as much."""
    if not (isinstance(size, tuple) and isinstance(stride, tuple) and len(size) == len(stride)):
        return False
    if not all(type(value) is int and value >= 0 for value in (offset, *size, *stride)):
        return False
    last = offset + sum((n - 1) * step for n, step in zip(size, stride))
    return len(size) <= 8 and math.prod(size) <= length and (0 in size or last < length)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Record) and value.name in (*_TENSORS, *_PARAMETERS)


# ------------------------------------------------------------------ what is in it


def read_inert(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state dict {dotted name: tensor on the CPU} of a torch file, and what else it tells.

    The file may hold a network (a pickled module), a dict with one under "ema" or "model" (the
    average is taken where there is one), or a dict of named tensors there or under "state_dict".
    The second value has, where the file knows them: "names", the class names in label order;
    "class", the name of the network's class; "stride", pixels per cell of each level. Tensors keep
    the file's precision.

    SigakError for files that are not torch's zip archives, damaged ones, and such as lie about
    their sizes.
    """
    path = Path(path)
    if not path.is_file():
        raise SigakError(f"expected a torch file, but {path} does not exist")
    try:
        with open(path, "rb") as file:
            if not zipfile.is_zipfile(file):
                raise _ReadError(
                    "it is no zip archive: torch wrote others before version 1.6, save it anew "
                    "with a later one if it is whole"
                )
            archive = _Archive(file)
            return _content(archive)
    except _ReadError as error:
        raise SigakError(f"{path} was refused: {error}") from error
    except _DAMAGE as error:
        raise SigakError(
            f"{path} was refused: it is damaged, or not what torch writes ({error!s:.200}); copy "
            "it again or ask its author for safetensors"
        ) from error


def _content(archive: _Archive) -> tuple[dict[str, Tensor], dict[str, Any]]:
    root = archive.content()
    network = root
    if isinstance(root, dict):
        keys = ("ema", "model", "state_dict", "model_state_dict")
        found = [root[key] for key in keys if isinstance(root.get(key), (Record, dict))]
        network = found[0] if found else root
    if isinstance(network, dict):
        named = {str(name): value for name, value in network.items() if _is_tensor(value)}
    else:
        named = dict(_walk(network))
    if not named:
        raise _ReadError("it holds no named tensors")
    state = {name: archive.tensor(record) for name, record in named.items()}
    return state, _facts(archive, root, network)


def _walk(network: Any) -> Iterator[tuple[str, Record]]:
    """(dotted name, record) of the parameters and saved buffers of a module and all within it."""
    waiting = [("", network)]
    left = _PARTS
    while waiting:
        prefix, module = waiting.pop()
        state = module.state if isinstance(module, Record) else {}
        told = state.get("_non_persistent_buffers_set")
        unsaved = {n for n in told if isinstance(n, str)} if isinstance(told, list) else set()
        groups = [_named(state, group) for group in ("_parameters", "_buffers", "_modules")]
        parameters, buffers, modules = groups
        # A small file can hold one module a million times over, or a module within itself.
        left -= 1 + len(unsaved) + sum(map(len, groups))
        if left < 0 or len(prefix) > _LONGEST_NAME:
            raise _ReadError("its modules have no end")
        for name, value in (parameters | buffers).items():
            if _is_tensor(value) and name not in unsaved:
                yield prefix + name, value
        waiting += [(f"{prefix}{name}.", part) for name, part in reversed(modules.items())]


def _named(state: dict[Any, Any], group: str) -> dict[str, Any]:
    found = state.get(group)
    found = found if isinstance(found, dict) else {}
    return {k: v for k, v in found.items() if isinstance(k, str) and len(k) <= _LONGEST_NAME}


def _facts(archive: _Archive, root: Any, network: Any) -> dict[str, Any]:
    """Class names, class and strides, from the network or from beside it."""
    beside = root if isinstance(root, dict) else {}
    state = network.state if isinstance(network, Record) else {}
    facts: dict[str, Any] = {}
    names = state.get("names", beside.get("names"))
    if isinstance(names, dict) and all(isinstance(key, int) for key in names):
        names = [names[key] for key in sorted(names)]
    if isinstance(names, list) and names and all(isinstance(name, str) for name in names):
        facts["names"] = names
    if isinstance(network, Record):
        facts["class"] = network.name
    stride = state.get("stride")
    if isinstance(stride, Record) and _is_tensor(stride):
        facts["stride"] = [float(value) for value in archive.tensor(stride).flatten()[:16]]
    return facts
