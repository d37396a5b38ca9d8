"""Checkpoints: one safetensors file whose JSON header says everything needed to use it.

Loading never executes anything. Foreign files are read by `read_foreign`: safetensors, or torch
files through torch's weights-only reader, which admits tensors and plain containers and nothing
else.
"""

from __future__ import annotations

import json
import os
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sigak.io import darknet, keras_weights, onnx_weights
from sigak.io.inert_pickle import read_inert
from sigak.structures import Failure, SigakError

__all__ = ["find_checkpoint", "header", "pack", "read", "read_foreign", "unpack", "write"]

KEY = "sigak"
BEST = "best.safetensors"


def write(path: Path, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
    """Write tensors and header so that at any moment either the old file or the whole new one
    exists.
    """
    path = Path(path)
    part = path.with_name(path.name + ".part")
    plain = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
        mode = part.stat().st_mode  # save_file makes files only their owner can read
        save_file(plain, part, {KEY: json.dumps(header, default=str)})
        part.chmod(mode)
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except (OSError, SafetensorError) as error:
        part.unlink(missing_ok=True)
        raise Failure(
            f"{path} could not be written ({error}); free some space or give another --out. "
            "What was saved there before is untouched."
        ) from error


def header(
    name: str, task: str, arguments: dict[str, Any], classes: list[str], **more: Any
) -> dict[str, Any]:
    """What a checkpoint says of itself. `more`: preparation, recipe, scores, data."""
    return {
        "version": metadata.version("sigak"),
        "name": name,
        "task": task,
        "arguments": arguments,
        "classes": classes,
        **more,
    }


def find_checkpoint(path: str | Path) -> Path:
    """A checkpoint file from a file or a run folder."""
    path = Path(path)
    if path.is_dir():
        path = path / BEST
    if not path.is_file():
        raise SigakError(
            f"expected a checkpoint or a run folder that holds {BEST}, but {path} does not exist; "
            "train one with `sigak train`, or turn foreign weights into one with `sigak import`"
        )
    return path


def read(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors on the CPU, header) of one of our files; SigakError for cut, foreign or executable
    files.
    """
    path = find_checkpoint(path)
    _refuse_pickle(path)
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(KEY)
            if text is None:
                raise SigakError(
                    f"{path} holds weights but not what network they belong to; "
                    f"say so with `sigak import {path.name} --as MODEL --out FILE`"
                )
            return {name: file.get_tensor(name) for name in list(file.keys())}, json.loads(text)
    except json.JSONDecodeError as error:
        raise SigakError(f"{path} has a damaged header ({error}); copy it again") from error
    except SafetensorError as error:
        raise SigakError(
            f"{path} is not a whole safetensors file ({error}); it is cut or foreign, copy it again"
        ) from error


def _refuse_pickle(path: Path) -> None:
    with open(path, "rb") as file:
        start = file.read(9)
    # A safetensors file begins with 8 bytes of length and a brace; torch's are zip archives or
    # pickles, which begin with 0x80 and the number of their protocol.
    pickled = start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05"
    if start[8:] != b"{" and (start[:4] == b"PK\x03\x04" or (pickled and len(start) > 1)):
        raise SigakError(
            f"{path} is a torch/pickle file, which could execute code, and is not opened as a "
            f"checkpoint; "
            f"`sigak import {path.name} --as MODEL --out FILE` reads its tensors without "
            f"executing it"
        )


def read_foreign(path: str | Path) -> tuple[dict[str, Tensor], list[str]]:
    """The named tensors of a safetensors, .pt, .pth, .th, .bin, .h5, .keras, .onnx or darknet
    .weights file, and the class names where the file has them, without executing anything.
    """
    path = Path(path)
    if not path.is_file():
        raise SigakError(f"expected a weights file, but {path} does not exist")
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}, []  # noqa: SIM118
        except SafetensorError as error:
            raise SigakError(f"{path} is not a whole safetensors file ({error})") from error
    if path.suffix in keras_weights.SUFFIXES:
        return keras_weights.read(path), []
    if path.suffix == ".onnx":
        return onnx_weights.read(path), []
    if path.suffix == ".weights":  # numbers without names: the network tells what they are
        return {"numbers": torch.from_numpy(darknet.read_weights(path).numbers)}, []
    try:
        return _tensors(torch.load(path, map_location="cpu", weights_only=True), path), []
    except SigakError:
        raise
    except Exception:  # objects of its authors' classes, or damage: the careful reader tells
        state, facts = read_inert(path)
        return state, facts.get("names", [])


def _tensors(loaded: Any, path: Path) -> dict[str, Tensor]:
    """The state dict within whatever training scripts wrap around it, without `module.`
    prefixes.
    """
    for key in ("state_dict", "model_state_dict", "model", "ema", "params"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
            break
    if not isinstance(loaded, dict):
        raise SigakError(
            f"{path} holds a {type(loaded).__name__}, expected a dict of named tensors"
        )
    state = {k: v for k, v in loaded.items() if isinstance(v, Tensor)}
    if not state:
        raise SigakError(f"{path} holds no named tensors")
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return state


def pack(value: Any, tensors: dict[str, Tensor], name: str = "") -> Any:
    """Nested dicts, lists and plain values with tensors -> the same as JSON; tensors go into
    `tensors`.
    """
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"$tensor": name}
    if isinstance(value, dict):  # pairs, because optimisers use integer keys
        return {"$dict": [[k, pack(v, tensors, f"{name}/{k}")] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        return [pack(v, tensors, f"{name}/{i}") for i, v in enumerate(value)]
    return value


def unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The reverse of `pack`; tuples come back as lists."""
    if isinstance(value, dict):
        if "$tensor" in value:
            return tensors[value["$tensor"]]
        return {k: unpack(v, tensors) for k, v in value["$dict"]}
    if isinstance(value, list):
        return [unpack(v, tensors) for v in value]
    return value
