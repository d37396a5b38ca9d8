"""Weights made elsewhere: fetch published ones, fit their names to ours, say clearly what does not
fit.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sigak import models
from sigak.io import weights as files
from sigak.io.download import cache_folder, download
from sigak.io.image import Preparation
from sigak.io.volumes import INTENSITY
from sigak.models._entry import Entry, Weights
from sigak.structures import SigakError

__all__ = ["adopt", "built_with", "fetch", "load_into", "start_from"]


def fetch(name: str, tag: str = "", *, allow_download: bool = False) -> tuple[Path, Weights]:
    """The file of published weights `tag` of the network `name`, from the cache or downloaded if
    allowed.
    """
    row = models.entry(name)
    if not row.weights:
        absent = f" and there is no file {tag}" if tag else ""
        raise SigakError(
            f"{name} has no published weights{absent}; give --pretrained a file of your own"
        )
    found = [w for w in row.weights if w.tag == tag or not tag]
    if not found:
        known = ", ".join(w.tag for w in row.weights)
        raise SigakError(
            f"{name} has no weights called {tag!r} and no such file exists; it has {known}"
        )
    chosen = found[0]
    path = cache_folder() / "weights" / f"{name}.{chosen.tag}{Path(chosen.url).suffix}"
    if not path.exists():
        if not allow_download:
            raise SigakError(
                f"the weights {name}:{chosen.tag} are not on this machine (looked for {path}); "
                f"add --download to fetch them from {chosen.url}, or give --pretrained a file"
            )
        download(chosen.url, path, sha256=chosen.sha256 or None)
    return path, chosen


def start_from(network: nn.Module, name: str, source: str, *, allow_download: bool) -> str:
    """Load a file, a tag of `name`'s published weights, or "default", all but a head of another
    shape; returns a sentence that says what was loaded.
    """
    path = Path(source)
    if not path.is_file():
        tag = "" if source == "default" else source
        path, _ = fetch(name, tag, allow_download=allow_download)
    fresh = load_into(network, models.entry(name), path, head=network.head)  # type: ignore[arg-type]
    return f"weights from {path}; {len(fresh)} tensors of the head start fresh"


def built_with(name: str, *sources: str | Path) -> dict[str, Any]:
    """What builds the network in the first of `sources` that is a checkpoint of ours of `name`,
    such as its anchors, but for what other data decides; nothing where none is.
    """
    for path in map(Path, sources):
        if path.suffix != ".safetensors" or not path.is_file():
            continue
        try:
            header = files.read(path)[1]
        except SigakError:  # weights from elsewhere, which say nothing
            continue
        if header["name"] == name:
            decided = ("classes", "channels", "size", "mean", "std")
            return {k: v for k, v in header["arguments"].items() if k not in decided}
    return {}


def load_into(
    network: nn.Module, row: Entry, path: Path, *, head: tuple[str, ...] = ()
) -> list[str]:
    """Load the file's tensors into `network`, strictly but for the layers named in `head`.

    Returns the names of head tensors left fresh (another number of classes). Names are tried as
    they are and through every conversion that the entry or the network declares; the reading that
    fits most tensors is taken.
    """
    state, _ = files.read_foreign(path)
    wanted = {
        k: v for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked")
    }
    conversions = {w.convert for w in row.weights if w.convert}
    if hasattr(network, "convert"):
        conversions.add(network.convert)  # type: ignore[arg-type]
    readings = [state, *(convert(state) for convert in conversions)]
    best = max(readings, key=lambda s: _fitting(s, wanted))
    best = {k: v for k, v in best.items() if not k.endswith("num_batches_tracked")}
    prefixes = tuple(f"{part}." for part in head)
    fresh = [k for k in wanted if k.startswith(prefixes) and not _fits(best.get(k), wanted[k])]
    _refuse_misfits(best, {k: v for k, v in wanted.items() if k not in fresh}, path, prefixes)
    network.load_state_dict(
        {k: v for k, v in best.items() if k in wanted and k not in fresh}, strict=False
    )
    return fresh


def _fits(value: Tensor | None, wanted: Tensor) -> bool:
    return value is not None and value.shape == wanted.shape


def _fitting(state: dict[str, Tensor], wanted: dict[str, Tensor]) -> int:
    return sum(_fits(state.get(name), value) for name, value in wanted.items())


def _refuse_misfits(
    state: dict[str, Tensor], wanted: dict[str, Tensor], path: Path, spare: tuple[str, ...]
) -> None:
    """SigakError with the first missing, unexpected and mis-shaped tensors, if there are any."""
    missing = [k for k in wanted if k not in state]
    shapes = [
        f"{k} {tuple(state[k].shape)} instead of {tuple(v.shape)}"
        for k, v in wanted.items()
        if k in state and state[k].shape != v.shape
    ]
    extra = [k for k in state if k not in wanted and not k.startswith(spare or ("\0",))]
    if not (missing or shapes or extra):
        return
    parts = [
        f"{len(found)} {what} ({', '.join(found[:3])}{', ...' if len(found) > 3 else ''})"
        for what, found in (
            ("missing", missing),
            ("unexpected", extra),
            ("of another shape", shapes),
        )
        if found
    ]
    raise SigakError(
        f"the weights in {path} do not fit the network: {'; '.join(parts)}; "
        "name the network they were made for"
    )


def adopt(
    path: str | Path, name: str, *, classes: list[str] | None, out: str | Path, **arguments: Any
) -> Path:
    """Turn foreign weights into a checkpoint of ours at `out`. name: the network they belong to, or
    a darknet .cfg file that describes it. classes: names in label order, else those in the file or
    of the published file that this is, else 0, 1, 2, ...
    """
    if name.endswith(".cfg"):
        from sigak.models.darknet_detect import adopt as build

        network: nn.Module
        network, built = build(name, path)
        name, names = "darknet", list(classes or [])
    else:
        models.entry(name)  # a mistyped name is told before the file is read
        names = classes or files.read_foreign(path)[1]
        built = models.arguments(name, classes=len(names) or None, **arguments)
        network = models.entry(name).build(**built)
        models.try_out(name, network, built)
        load_into(network, models.entry(name), Path(path))
    row = models.entry(name)
    color = {1: "gray", 3: "rgb", 4: "rgba"}[built["channels"]]
    fit, resample, depth = row.input.fit, row.input.resample, row.input.depth
    preparation = Preparation(tuple(built["size"]), color, fit, resample=resample)
    if depth:
        preparation = replace(preparation, fit="native", depth=depth, intensity=INTENSITY)
    header = files.header(
        name,
        row.task,
        built,
        _labels(names or _published_names(row, Path(path)), row, built["classes"]),
        preparation=preparation.asdict(),
        recipe={},
        scores={},
        data={},
    )
    files.write(Path(out), network.state_dict(), header)
    return Path(out)


def _labels(names: list[str], row: Entry, count: int) -> list[str]:
    """`count` class names: these, or those the entry knows, or else numbers."""
    for known in (names, list(row.names)):
        if len(known) == count:
            return known
    if names:
        raise SigakError(f"expected {count} class names, received {len(names)}")
    return [str(i) for i in range(count)]


def _published_names(row: Entry, path: Path) -> list[str]:
    """The class names of the published weights that the file is, byte for byte; else none."""
    named = [w for w in row.weights if w.names]
    if not named:
        return []
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return next((list(w.names) for w in named if digest.startswith(w.sha256)), [])
