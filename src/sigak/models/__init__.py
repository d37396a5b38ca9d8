"""The zoo's table of contents: `names()`, `entry(name)`, `create(name)`.

One family is one file that ends with a literal table MODELS; this file only looks names up in them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from importlib import import_module
from typing import Any

import torch
from torch import nn

from sigak.models._entry import Entry
from sigak.structures import SigakError

__all__ = [
    "FAMILIES",
    "arguments",
    "create",
    "entry",
    "input_shape",
    "matching",
    "names",
    "nearest",
    "try_out",
]

# In the order of the table of contents; a name is taken from the first family that has it.
FAMILIES = (
    # classification
    "mlp",
    "lstm_rows",
    "lenet",
    "lab",
    "sprint",
    "torchvision_nets",
    "resnet_cifar",
    "darknet",
    "shufflenet",
    "mobilenet",
    "nasnet",
    "classics",
    "keras_nets",
    "keras_inception",
    "keras_resnet_v2",
    "timm_nets",
    # detection
    "yolov8",
    "yolov5",
    "yolox",
    "efficientdet",
    "torchvision_detectors",
    "localizer",
    "darknet_detect",
    # segmentation
    "unet",
    "smp_nets",
    "adaptsegnet",
    "unet3d",
    "sam",
    # generation
    "dcgan",
)

CHANNELS = {"gray": 1, "rgb": 3, "rgba": 4}


def _tables() -> Iterator[dict[str, Entry]]:
    for family in FAMILIES:
        yield import_module(f"sigak.models.{family}").MODELS


def names(pattern: str = "*") -> list[str]:
    """All names that match a pattern such as "vgg3*"; a word without wildcards matches anywhere in
    a name, and that of a task, such as "detect", all networks made for it.
    """
    found: dict[str, str] = {}  # name -> task
    for table in _tables():
        for name, row in table.items():
            found.setdefault(name, row.task)
    if pattern in found.values():
        return [name for name, task in found.items() if task == pattern]
    if not any(sign in pattern for sign in "*?["):
        pattern = f"*{pattern}*"
    return [name for name in found if fnmatchcase(name.lower(), pattern.lower())]


def matching(patterns: Iterable[str]) -> list[str]:
    """`names` of several patterns; SigakError with the nearest names where one finds nothing."""
    found: dict[str, None] = {}
    for pattern in patterns:
        matched = names(pattern)
        if not matched:
            near = nearest(pattern, names())
            hint = f"did you mean {near}?" if near else "`sigak models` lists all."
            raise SigakError(f"no network is called like {pattern!r}; {hint}")
        found |= dict.fromkeys(matched)
    return list(found)


def nearest(name: str, known: list[str]) -> str:
    """ "a, b, c": the known names that look most like `name`, for an error message."""
    close = get_close_matches(name.lower(), [k.lower() for k in known], 3, cutoff=0.5)
    return ", ".join(k for k in known if k.lower() in close)


def entry(name: str) -> Entry:
    """The row of `name`; SigakError with the nearest names if there is none."""
    for table in _tables():
        if name in table:
            return table[name]
    found: Entry | None = import_module("sigak.models.smp_nets").variant(name)
    if found is not None:
        return found
    near = nearest(name, names())
    hint = f"did you mean {near}?" if near else "`sigak models` lists them."
    raise SigakError(f"there is no network called {name!r}; {hint}")


def arguments(
    name: str,
    *,
    classes: int | None = None,
    size: tuple[int, int] | None = None,
    color: str | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """Every argument that builds `name`, as plain values fit for a checkpoint's header.

    classes, size (H, W) and color ("gray", "rgb", "rgba") default to the entry's own ("any" color:
    gray).
    """
    row = entry(name)
    color = color or ("gray" if row.input.color == "any" else row.input.color)
    channels = CHANNELS[color]
    return {
        "classes": row.classes if classes is None else classes,
        "channels": channels,
        "size": tuple(size or row.input.size),
        "mean": _per_channel(row.input.mean, channels),
        "std": _per_channel(row.input.std, channels),
        **row.args,
        **changes,
    }


def _per_channel(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """One value a channel; where the counts differ every channel takes the average."""
    return values if len(values) == channels else (sum(values) / len(values),) * channels


def input_shape(network: nn.Module, built: dict[str, Any]) -> tuple[int, ...]:
    """The shape of one input of `network`, built with `built`: (C, H, W), but where the network
    says that it is no picture.
    """
    shape: tuple[int, ...] = getattr(network, "input_shape", (built["channels"], *built["size"]))
    return shape


def try_out(name: str, network: nn.Module, built: dict[str, Any]) -> None:
    """SigakError if `network`, made by `name` with the arguments `built`, cannot take a picture of
    its size: many networks only find out when they run.
    """
    shape = input_shape(network, built)
    training = network.training
    network.eval()
    try:
        with torch.no_grad():
            network(torch.zeros(1, *shape))
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, AssertionError, ValueError) as error:
        own = entry(name).input
        kind = "volumes" if own.depth else "pictures"
        given = replace(own, size=tuple(built["size"]), depth=built.get("depth", 0))
        raise SigakError(
            f"{name} cannot take {kind} of {given.sides()} ({str(error).splitlines()[0]}); "
            f"give another --size, its own is {own.sides()}"
        ) from error
    finally:
        network.train(training)


def create(name: str, **changes: Any) -> nn.Module:
    """Build the network `name` with random weights.

    Any of `arguments` may be changed: `create("vgg3", classes=5, size=(64, 64))`.
    The network eats images (B, C, H, W), RGB (or gray) in [0, 1].
    """
    return entry(name).build(**arguments(name, **changes))
