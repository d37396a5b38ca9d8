"""Export: a checkpoint in, a file for another engine out that was seen to give the same answers."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sigak import data, models
from sigak.io import image
from sigak.prediction import Predictor, load
from sigak.runtime import agreement, files
from sigak.runtime.agreement import TOLERANCE, Difference
from sigak.runtime.torch_engine import Engine, TorchEngine
from sigak.structures import Batch, Failure, Sample, SigakError

__all__ = ["Exported", "export"]

_PICTURES = 12  # real ones that are compared
_BATCHES = (1, 2, 5)  # how many go through the network at a time
_PRECISIONS = {"float32": TOLERANCE, "float16": 0.03}  # and how far raw output may be apart


@dataclass(frozen=True)
class Exported:
    """A file that was written and compared.

    files: all that belong together; format, precision, size (H, W): what was asked for; compared:
    pictures that went through both engines; difference: the largest, as a share of the largest
    number of raw output, and `worst`, the picture it was seen on; answers: how many of the real
    pictures have the same answer, None where the task has none to compare.
    """

    files: tuple[Path, ...]
    format: str
    precision: str
    size: tuple[int, int]
    compared: int
    difference: float
    worst: str
    answers: tuple[int, int] | None

    @property
    def file(self) -> Path:
        """The one to give to `sigak predict`."""
        return self.files[-1]

    def __str__(self) -> str:
        told = (
            f"; the same answer for {self.answers[0]} of {self.answers[1]}" if self.answers else ""
        )
        megabytes = sum(path.stat().st_size for path in self.files) / 1e6
        return (
            f"{self.file}: {self.format} {self.precision}, {megabytes:.1f} MB; compared with "
            f"PyTorch on {self.compared} pictures, largest difference {self.difference:.1e}{told}"
        )

    def asdict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {"files": [str(path) for path in self.files]}


def export(
    checkpoint: str | Path | Predictor,
    to: str,
    *,
    out: str | Path = "",
    precision: str = "float32",
    size: int = 0,
    data: str = "",
    download: bool = False,
) -> Exported:
    """Write `checkpoint` as a file of format `to`, "onnx" or "openvino" (NAME.xml and NAME.bin).

    The file takes the place of the checkpoint in predict and evaluate: it holds all that the
    checkpoint says of itself. It is run and compared with PyTorch on pictures of `data` (or drawn
    ones) and on noise, in batches of several sizes, and for detectors on several canvases.
    precision: "float16" keeps weights in half the bytes; computed is in float32. size: another
    canvas for detectors. Raises Failure where the answers differ, and leaves no file then.
    """
    for name, value, known in (
        ("--to", to, files.FORMATS),
        ("--precision", precision, _PRECISIONS),
    ):
        if value not in known:
            raise SigakError(f"{name} must be one of {', '.join(known)}, received {value!r}")
    predictor = load(checkpoint, device="cpu")
    predictor.refuse_volumes("export")
    path = predictor.path
    if path is None or not isinstance(predictor.engine, TorchEngine):
        raise SigakError(f"export needs a checkpoint, received {path}, an exported file")
    predictor = replace(predictor, preparation=predictor.preparation_at(size))
    target = _target(path, to, str(out))
    header = predictor.header | {"preparation": predictor.preparation.asdict()}
    real = _pictures(predictor, data, download)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as part:
        half = precision == "float16"
        made = files.write(to, Path(part) / target.name, predictor.network, header, half=half)
        found, answers = _compare(predictor, files.FORMATS[to].open(made[-1]), real)
        worst = max(found, key=lambda one: one.share)
        if not worst.share <= _PRECISIONS[precision]:
            raise Failure(
                f"the {to} file answers otherwise than PyTorch: {worst.source} differs by "
                f"{worst.share:.2g} of the largest number, {_PRECISIONS[precision]:g} is allowed; "
                f"nothing was kept"
            )
        for file in made:
            os.replace(file, target.parent / file.name)
    return Exported(
        tuple(target.parent / file.name for file in made),
        to,
        precision,
        predictor.preparation.size,
        len(found),
        worst.share,
        worst.source,
        answers,
    )


def _target(checkpoint: Path, to: str, out: str) -> Path:
    suffix = files.FORMATS[to].suffix
    target = Path(out) if out else checkpoint.with_suffix(suffix)
    if target.suffix != suffix or target.is_dir():
        raise SigakError(f"--out of {to} must be a file that ends in {suffix}, received {out}")
    return target


# ------------------------------------------------------------------ what is compared


def _pictures(predictor: Predictor, name: str, download: bool) -> list[Sample]:
    """Real pictures, prepared: evenly from the test split (else the last) of a data set."""
    if predictor.task.generative:
        return []
    if not name:
        return agreement.drawn(predictor.preparation, _PICTURES)
    splits = data.load(name, download=download).splits
    split = splits.get("test", list(splits.values())[-1])
    places = np.linspace(0, len(split) - 1, min(_PICTURES, len(split))).astype(int)
    samples = []
    for place in places.tolist():
        source = split.records[place].source
        thing = source if split.pixels is None else split.pixels[place]
        ready, matrix, size = image.load(thing, predictor.preparation)
        samples.append(Sample(ready, source, place, matrix=matrix, size=size))
    return samples


def _noise(predictor: Predictor) -> list[Batch]:
    """Random inputs: for detectors, whose canvas may have any sides, of several shapes."""
    network = predictor.network
    shape = models.input_shape(network, predictor.header["arguments"])
    stride = getattr(network, "stride", 0)
    if not stride:
        return [agreement.noise(shape, count) for count in _BATCHES]
    height, width = predictor.preparation.size
    half = [max(stride, side // 2 // stride * stride) for side in (height, width)]
    canvases = [(height, width), (half[0], width), (height, half[1]), (height + stride, half[1])]
    return [
        agreement.noise((shape[0], *canvas), count)
        for canvas, count in zip(canvases, (*_BATCHES, 1), strict=True)
    ]


def _compare(
    predictor: Predictor, other: Engine, real: Sequence[Sample]
) -> tuple[list[Difference], tuple[int, int] | None]:
    """Every picture's difference, and how many real ones have the same answer, of how many."""
    other.network = predictor.network
    found: list[Difference] = []
    task = predictor.task.answering()
    verdicts = []
    for batch in agreement.together(real, max(_BATCHES)):
        found += _apart(predictor.engine, other, batch)
        if task.agnostic:  # a picture alone has no answer
            continue
        ours, theirs = task.predict(predictor.engine, batch), task.predict(other, batch)
        verdicts += [agreement.same_answers(task, [a], [b]) for a, b in zip(ours, theirs)]
    for batch in _noise(predictor):
        found += _apart(predictor.engine, other, batch)
    told = [verdict for verdict in verdicts if verdict is not None]
    return found, (sum(told), len(told)) if told else None


def _apart(ours: Engine, theirs: Engine, batch: Batch) -> list[Difference]:
    return agreement.differences(ours(batch.images), theirs(batch.images), batch.sources)
