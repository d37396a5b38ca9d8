"""The engines a checkpoint can run on, and the choice of the fastest that gives the same answers.

What a choice was made from is measured once for a checkpoint, a machine and a size, and kept with
the exported files in the folder for caches.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sigak import models
from sigak.io import image
from sigak.io.download import cache_folder
from sigak.runtime import agreement, files
from sigak.runtime.devices import cpu_has_bfloat16, cpu_name
from sigak.runtime.openvino_engine import OpenVINOEngine
from sigak.runtime.torch_engine import Engine, FusedEngine, TorchEngine
from sigak.structures import Batch, SigakError
from sigak.tasks import Task

__all__ = ["AUTO", "ENGINES", "Candidate", "build", "pick"]

AUTO = "auto"
_PICTURES = 16  # that answers are compared on
_TOGETHER = 8
_ROUNDS = 5
_SECONDS = 10.0  # after which no other round of timing begins


@dataclass
class Candidate:
    """A checkpoint that looks for an engine; digest: the checkpoint's SHA-256."""

    network: nn.Module
    task: Task
    preparation: image.Preparation
    header: dict[str, Any]
    digest: str
    device: torch.device
    built: dict[str, Engine] = field(default_factory=dict)


def _openvino_bf16(path: Path) -> OpenVINOEngine:
    return OpenVINOEngine(path, "bf16")


_Maker = Callable[[Candidate], Engine]
ENGINES: dict[str, _Maker] = {
    "torch": lambda one: TorchEngine(one.network, one.device),
    "torch-fused": lambda one: FusedEngine(one.network, one.device),
    "torch-bf16": lambda one: FusedEngine(one.network, one.device, torch.bfloat16),
    "onnx": lambda one: _from_file(one, "onnx", files.FORMATS["onnx"].open),
    "openvino": lambda one: _from_file(one, "openvino", files.FORMATS["openvino"].open),
    "openvino-bf16": lambda one: _from_file(one, "openvino", _openvino_bf16),
}


def build(name: str, one: Candidate) -> Engine:
    """The engine called `name` for a checkpoint; what it needs is exported first and kept."""
    if name not in ENGINES:
        raise SigakError(f"--engine must be auto or one of {', '.join(ENGINES)}, received {name!r}")
    if not name.startswith("torch") and one.device.type != "cpu":
        raise SigakError(
            f"--engine {name} runs on the CPU, received --device {one.device}; leave one of them "
            f"out"
        )
    if name not in one.built:
        one.built[name] = ENGINES[name](one)
    return one.built[name]


# ------------------------------------------------------------------ files kept


def _from_file(one: Candidate, kind: str, open_as: Callable[[Path], files.FileEngine]) -> Engine:
    path = _folder(one) / f"network{files.FORMATS[kind].suffix}"
    if path.exists():
        try:
            engine = open_as(path)
        except SigakError:  # damaged since; written anew below
            pass
        else:
            engine.network = one.network
            return engine
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as part:
        for file in files.write(kind, Path(part) / path.name, one.network, one.header):
            os.replace(file, path.parent / file.name)
    engine = open_as(path)
    engine.network = one.network
    return engine


def _folder(one: Candidate) -> Path:
    """Of a checkpoint's exported files, one for each version of what writes them."""
    written_by = [one.digest, *(f"{name} {_version(name)}" for name in ("sigak", "torch"))]
    return cache_folder() / "engines" / _hash(written_by)


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"


# ------------------------------------------------------------------ the choice


def pick(one: Candidate) -> Engine:
    """The fastest engine whose answers are those of PyTorch in float32; PyTorch on other devices
    than the CPU.
    """
    if one.device.type != "cpu":
        return build("torch", one)
    machine = {
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "size": list(one.preparation.size),
        **{name: _version(name) for name in ("onnxruntime", "openvino")},
    }
    note = _folder(one) / f"choice-{_hash(machine)}.json"
    known = _remembered(note, machine)
    if known:
        return build(known, one)
    found = _measure(one)
    name = min(found["milliseconds"], key=found["milliseconds"].get)
    _remember(note, {"engine": name, "machine": machine, **found})
    return build(name, one)


def _remembered(note: Path, machine: dict[str, Any]) -> str:
    """The engine a note names; empty where there is none, or it cannot be read."""
    try:
        said = json.loads(note.read_text(encoding="utf-8"))
        name = said["engine"] if said["machine"] == machine else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return name if name in ENGINES else ""


def _remember(note: Path, said: dict[str, Any]) -> None:
    """Written beside and moved, so that others never read half of it."""
    note.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=note.parent)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump(said, file, indent=1)
    os.replace(part, note)


def _measure(one: Candidate) -> dict[str, Any]:
    """{"milliseconds": {engine: a picture's, alone and in a batch together}, "refused": {engine:
    why}}.
    """
    batches = _probes(one)
    refused: dict[str, str] = {}
    for name in ENGINES:
        if name.endswith("bf16") and not cpu_has_bfloat16():
            refused[name] = "the processor has no units for bfloat16"
            continue
        try:
            engine = build(name, one)
            if not _agrees(one, engine, batches):
                refused[name] = "its answers differ"
        except (SigakError, RuntimeError) as error:  # Failure too, and what a kernel lacks
            refused[name] = str(error).splitlines()[0]
    fit = [name for name in ENGINES if name not in refused]
    return {"milliseconds": _time(one, fit, batches[0]), "refused": refused}


def _probes(one: Candidate) -> list[Batch]:
    shape = models.input_shape(one.network, one.header["arguments"])
    if one.task.generative or len(shape) != 3:
        return [agreement.noise(shape, _TOGETHER)]
    return agreement.together(agreement.drawn(one.preparation, _PICTURES), _TOGETHER)


def _agrees(one: Candidate, engine: Engine, batches: list[Batch]) -> bool:
    """Raw output is the same to rounding; or else all answers are, and there are some."""
    reference, task = build("torch", one), one.task.answering()
    worst, verdicts = 0.0, []
    for batch in batches:
        apart = agreement.differences(reference(batch.images), engine(batch.images), batch.sources)
        worst = max([worst, *(found.share for found in apart)])
        if worst > agreement.TOLERANCE:
            answers = [task.predict(runner, batch) for runner in (reference, engine)]
            verdicts.append(agreement.same_answers(task, *answers))
    return worst <= agreement.TOLERANCE or (False not in verdicts and True in verdicts)


def _time(one: Candidate, names: list[str], batch: Batch) -> dict[str, float]:
    """The best of rounds in turn: other work makes a round slower, never faster."""
    alone = batch.images[:1]
    seconds: dict[str, list[float]] = {name: [] for name in names}
    begun = time.perf_counter()
    for _ in range(_ROUNDS):
        for name in names:
            engine = one.built[name]
            start = time.perf_counter()
            engine(alone)
            middle = time.perf_counter()
            engine(batch.images)
            end = time.perf_counter()
            seconds[name].append(middle - start + (end - middle) / len(batch))
        if time.perf_counter() - begun > _SECONDS:
            break
    return {name: round(1000 * min(times), 3) for name, times in seconds.items()}
