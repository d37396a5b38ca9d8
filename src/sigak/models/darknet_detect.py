"""YOLOv2, YOLOv3, YOLOv4, and any other detector that a .cfg of Darknet describes.

"YOLO9000: better, faster, stronger", Redmon and Farhadi 2016, https://arxiv.org/abs/1612.08242;
"YOLOv3: an incremental improvement", Redmon and Farhadi 2018, https://arxiv.org/abs/1804.02767;
"YOLOv4: optimal speed and accuracy of object detection", Bochkovskiy, Wang and Liao 2020,
https://arxiv.org/abs/2004.10934.

Every cell of a map predicts a box for each of its anchors: the centre through a sigmoid within the
cell, the sides as factors of the anchor's. The object whose centre lies in a cell is learnt there
by the anchor nearest to its shape; a box that overlaps an object well is no background either.

What differs here, so that training is stable with any optimiser: the loss is divided by the number
of boxes that learn an object, objectness starts at 1 %, and all heads learn the anchor that is best
of those that some head has. Its parts keep the weights of the .cfg against each other, but for
CIoU's, whose gradient is Darknet's own.

Input (B, 3, H, W) RGB in [0, 1]. Raw output: one map (B, anchors (5 + classes), H/s, W/s) per head,
for each anchor x, y, w, h, objectness, classes, all before their sigmoids.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sigak.io.darknet import (
    Section,
    format_cfg,
    parse_cfg,
    read_cfg,
    read_weights,
    write_weights,
)
from sigak.layers.normalize import Normalize
from sigak.models._anchors import cluster, fitted, mean_overlap, sides_of
from sigak.models._coco_names import COCO80
from sigak.models._darknet_cfgs import LAYOUTS, layout
from sigak.models._darknet_heads import Head, learn
from sigak.models._darknet_layers import Plan, Route, Shortcut, build_layer
from sigak.models._detector import Detector, candidates
from sigak.models._entry import Entry, Input, Weights
from sigak.structures import Instances, SigakError

__all__ = ["MODELS", "Darknet", "adopt", "load_weights", "save_weights"]

_PRIOR = 0.01  # what objectness and classes say before they have learnt


class Darknet(Detector):
    """cfg: the text of a .cfg, or the name of a published one; classes, channels and size win over
    the text's. width: share of its channels, those of the heads apart.
    """

    nms_iou = 0.45

    def __init__(
        self,
        *,
        classes: int,
        channels: int,
        size: tuple[int, int],
        mean: Sequence[float],
        std: Sequence[float],
        cfg: str = "yolov3",
        width: float = 1.0,
    ) -> None:
        super().__init__()
        self.sections = _adapted(_sections(cfg), classes, channels, width)
        self.sections[0].options.update(height=str(size[0]), width=str(size[1]))
        self.normalize = Normalize(mean, std)
        self.layers = nn.ModuleList()
        self.heads: dict[int, Head] = {}
        plan = Plan(channels)
        for place, section in enumerate(self.sections[1:]):
            if section.kind in ("yolo", "region"):
                self.heads[place] = Head.of(section, plan.channels[-1])
                plan.add(plan.channels[-1], plan.strides[-1])
                self.layers.append(nn.Identity())
            else:
                self.layers.append(build_layer(section, plan))
        if not self.heads:
            raise SigakError("expected a .cfg with a [yolo] or [region] head, received none")
        self.kept = frozenset(plan.asked)  # layers whose output a later one takes
        self.head = tuple(f"layers.{place - 1}" for place in self.heads)
        self.stride = max(plan.strides)  # type: ignore[misc]
        _init(self)

    @property
    def cfg(self) -> str:
        """The text of a .cfg that builds this network."""
        return format_cfg(self.sections)

    def raw(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images (B, C, H, W) in [0, 1] -> the map before each head."""
        x = self.normalize(images)
        outputs: dict[int, Tensor] = {}
        found = []
        for place, layer in enumerate(self.layers):
            if place in self.heads:
                found.append(x)
            elif isinstance(layer, Route | Shortcut):
                x = layer([outputs[source] for source in layer.sources])
            else:
                x = layer(x)
            if place in self.kept:
                outputs[place] = x
        return tuple(found)

    def fit_anchors(self, boxes: Sequence[Tensor]) -> tuple[dict[str, Any], str]:
        """Take anchors that fit the `boxes` (N, 4) xyxy of training pictures on the canvas, as many
        as the heads use. Returns the arguments that build the network so, and what was done.
        """
        sides, heads = sides_of(boxes), list(self.heads.values())
        used = sorted({number for head in heads for number in head.mask})
        if len(sides) < len(used):
            return {}, f"anchors stay: {len(sides)} objects are too few to fit them to"
        if len({head.anchors for head in heads}) > 1:
            return {}, "anchors stay: the heads have lists of their own"
        cells = self.stride if heads[0].in_cells else 1
        anchors = np.array(heads[0].anchors) * cells
        before = mean_overlap(sides, anchors[used])
        anchors[used] = cluster(sides, len(used))
        text = ",".join(f"{side:.2f}" for side in (anchors / cells).ravel())
        for place, head in self.heads.items():
            section = self.sections[1 + place]
            section.options["anchors"] = text
            self.heads[place] = replace(head, anchors=Head.anchors_of(section)[0])
        return {"cfg": self.cfg, "width": 1.0}, fitted(before, mean_overlap(sides, anchors[used]))

    def loss(
        self, raw: Any, truth: Sequence[Instances], size: tuple[int, int]
    ) -> dict[str, Tensor]:
        """Means over the boxes that learn an object; what is compared is the head's own choice."""
        return learn(list(self.heads.values()), raw, truth, size)

    def decode(self, raw: Any, size: tuple[int, int], conf: float) -> list[Instances]:
        """Candidates whose objectness times class probability is above `conf`, before NMS."""
        boxes, scores = [], []
        for head, level in zip(self.heads.values(), raw, strict=True):
            values = head.split(level)
            boxes.append(head.boxes(values, size).flatten(1, 3))
            scores.append(head.scores(values).flatten(1, 3))
        return candidates(torch.cat(boxes, 1), torch.cat(scores, 1), conf)


def _sections(cfg: str) -> list[Section]:
    if cfg in LAYOUTS:
        return layout(cfg)
    if "[" in cfg:
        return parse_cfg(cfg)
    raise SigakError(
        f"expected the text of a .cfg, or one of {', '.join(LAYOUTS)}, received {cfg!r}"
    )


def _adapted(sections: list[Section], classes: int, channels: int, width: float) -> list[Section]:
    """A copy for other classes, channels and widths."""
    adapted = [Section(s.kind, dict(s.options), s.where) for s in sections]
    adapted[0].options["channels"] = str(channels)
    for before, section in pairwise(adapted):
        if section.kind == "convolutional" and width != 1.0:
            section.options["filters"] = str(max(8, int(section.whole("filters", 1) * width)))
        if section.kind in ("yolo", "region"):
            if before.kind != "convolutional":
                raise SigakError(
                    f"[{section.kind}]{section.where}: expected [convolutional] before it, "
                    f"received [{before.kind}]"
                )
            section.options["classes"] = str(classes)
            boxes = len(Head.anchors_of(section)[1])
            before.options["filters"] = str(boxes * (5 + classes))
    return adapted


def _init(network: Darknet) -> None:
    """He-normal kernels (He et al. 2015, https://arxiv.org/abs/1502.01852); heads that find
    nothing yet.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, a=0.1)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for place, head in network.heads.items():
        output: Any = network.layers[place - 1]
        nn.init.normal_(output[0].weight, std=0.01)
        if output[0].bias is not None:
            bias = output[0].bias.data.view(len(head.mask), -1)
            bias[:, 4 if head.softmax else slice(4, None)] = -math.log((1 - _PRIOR) / _PRIOR)


# ------------------------------------------------------------------ files


def _stored(network: Darknet) -> dict[str, Tensor]:
    """The tensors of the network by name, in the order of a .weights file."""
    order: dict[str, Tensor] = {}
    for place, layer in enumerate(network.layers):
        if not isinstance(layer, nn.Sequential):
            continue
        names = ("0.bias", "1.bias", "1.weight", "1.running_mean", "1.running_var", "0.weight")
        state = layer.state_dict(keep_vars=True)
        order |= {f"layers.{place}.{name}": state[name] for name in names if name in state}
    return order


def _split(numbers: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """(N,) numbers in the shapes of `tensors`, which have N together."""
    parts: Sequence[Tensor] = torch.split(numbers, [t.numel() for t in tensors.values()])
    return {name: part.view_as(tensors[name]) for name, part in zip(tensors, parts, strict=True)}


@torch.no_grad()
def load_weights(network: Darknet, path: str | Path) -> int:
    """Fill `network` from a .weights file; returns how many pictures were seen in training.

    SigakError where the file has fewer or more numbers than the network.
    """
    numbers, _, seen = read_weights(path)
    tensors = _stored(network)
    wanted = sum(tensor.numel() for tensor in tensors.values())
    if len(numbers) != wanted:
        what = "cut, or of another network" if len(numbers) < wanted else "of another network"
        raise SigakError(
            f"{path} holds {len(numbers):,} numbers where the .cfg has {wanted:,}: it is {what}; "
            "give the .cfg it was trained with, and its number of classes"
        )
    parts = _split(torch.from_numpy(numbers), tensors)
    for name, part in parts.items():
        tensors[name].copy_(part)
    return seen


def save_weights(network: Darknet, path: str | Path, seen: int = 0) -> None:
    """Write the network as a .weights file; `network.cfg` is the text of the .cfg beside it."""
    parts = [tensor.detach().cpu().float().flatten() for tensor in _stored(network).values()]
    write_weights(path, torch.cat(parts).numpy(), seen)


def adopt(cfg: str | Path, weights: str | Path) -> tuple[Darknet, dict[str, Any]]:
    """A network from a .cfg and a .weights file, and the arguments that build it again: they hold
    the text, so that the files are not needed any more.
    """
    text = read_cfg(cfg)
    sections = parse_cfg(text)
    net, heads = sections[0], [s for s in sections if s.kind in ("yolo", "region")]
    channels = net.whole("channels", 3)
    arguments: dict[str, Any] = {
        "classes": heads[0].whole("classes", 20) if heads else 1,
        "channels": channels,
        "size": (net.whole("height", 416), net.whole("width", 416)),
        "mean": (0.0,) * channels,
        "std": (1.0,) * channels,
        "cfg": text,
    }
    network = Darknet(**arguments)
    load_weights(network, weights)
    return network, arguments


def _from_numbers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """{"numbers": (N,)} of a .weights file -> our names, if a published network has so many."""
    numbers = state.get("numbers", torch.empty(0))
    for name in LAYOUTS:
        row = MODELS[name]
        if row.parameters[0] == len(numbers):
            with torch.device("meta"):
                network = Darknet(
                    classes=80, channels=3, size=row.input.size, mean=(0.0,), std=(1.0,), **row.args
                )
            return _split(numbers, _stored(network))
    return state


# ------------------------------------------------------------------ table

_RECIPE = {
    "optimizer": "sgd",
    "lr": 1e-3,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "batch": 16,
    "warmup": 3.0,
    "clip": 10.0,
    "ema": 0.9998,
    "epochs": 100,
    "augment": "mosaic=1,zoom=.5,shift=.1,flip=h,hue=.015,saturation=.7,brightness=.4,close=10",
}
_PAPERS = {
    "yolov2": "https://arxiv.org/abs/1612.08242",
    "yolov3": "https://arxiv.org/abs/1804.02767",
    "yolov4": "https://arxiv.org/abs/2004.10934",
}


_REDMON = "https://pjreddie.com/media/files/"
_BOCHKOVSKIY = "https://github.com/AlexeyAB/darknet/releases/download/"
_URLS = {
    "yolov2": _REDMON + "yolov2.weights",
    "yolov2-tiny": _REDMON + "yolov2-tiny.weights",
    "yolov3": _REDMON + "yolov3.weights",
    "yolov3-tiny": _REDMON + "yolov3-tiny.weights",
    "yolov3-spp": _REDMON + "yolov3-spp.weights",
    "yolov4": _BOCHKOVSKIY + "darknet_yolo_v3_optimal/yolov4.weights",
    "yolov4-tiny": _BOCHKOVSKIY + "yolov4/yolov4-tiny.weights",
}


def _weights(cfg: str) -> Weights:
    return Weights(
        tag="coco",
        url=_URLS[cfg],
        sha256="",  # their publishers give none
        licence="public domain (Darknet's YOLO licence)",
        trained_on="COCO",
        classes=80,
        convert=_from_numbers,
    )


def _row(cfg: str, parameters: tuple[int, int], fit: str = "letterbox", note: str = "") -> Entry:
    side = LAYOUTS[cfg][2]
    return Entry(
        build=Darknet,
        task="detect",
        input=Input((side, side), mean=(0.0,) * 3, std=(1.0,) * 3, fit=fit, resample="bilinear"),
        parameters=parameters,
        classes=80,
        args={"cfg": cfg},
        weights=() if note else (_weights(cfg),),
        tiny={"width": 1 / 16, "size": (64, 64)},
        paper=_PAPERS[cfg[:6]],
        recipe=_RECIPE,
        names=COCO80,
        note=note,
    )


# The total is the count of numbers in the published .weights file.
MODELS = {
    "yolov2": _row("yolov2", (50_983_561, 50_962_889)),
    "yolov2-tiny": _row("yolov2-tiny", (11_237_145, 11_232_057)),
    "yolov3": _row("yolov3", (62_001_757, 61_949_149)),
    "yolov3-tiny": _row("yolov3-tiny", (8_858_734, 8_852_366)),
    "yolov3-spp": _row("yolov3-spp", (63_052_381, 62_998_749)),
    "yolov4": _row("yolov4", (64_429_405, 64_363_101), "squash"),
    "yolov4-tiny": _row("yolov4-tiny", (6_062_814, 6_056_606), "squash"),
    "darknet": _row(
        "yolov3-tiny",
        (8_858_734, 8_852_366),
        "squash",
        "any .cfg, whose text is the argument cfg; yolov3-tiny's where none is given",
    ),
}
