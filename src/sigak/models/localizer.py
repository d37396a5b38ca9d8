"""Localisation: which object is on the picture, and where, as one class and one box; the step from
classification to detection.

The last map of a network made to classify is read twice: averaged over the picture for the class,
and as a coarse map, which still knows places, for the box. "OverFeat", Sermanet et al. 2013,
https://arxiv.org/abs/1312.6229, introduced this; the box is learnt by the overlap with the object,
"Generalized intersection over union", Rezatofighi et al. 2019, https://arxiv.org/abs/1902.09630.

Of several objects the largest is learnt. A picture without objects has no box to learn; its classes
are taught to be equally likely, so that the box found there scores low.

Input (B, C, H, W) in [0, 1]. Raw output: logits (B, classes), and boxes (B, 4) as shares of the
picture's sides: centre x, y, width, height.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sigak.layers.conv import ConvNorm
from sigak.layers.normalize import Normalize
from sigak.models._detector import Detector
from sigak.models._entry import Entry, Input, Weights
from sigak.ops.boxes import (
    aligned_iou,
    area,
    cxcywh_to_xyxy,
    denormalized,
    normalized,
    xyxy_to_cxcywh,
)
from sigak.structures import Instances

__all__ = ["MODELS", "Localizer"]

_GRID = 4  # places a side at which the box is read
_REDUCED = 64  # channels there
_HIDDEN = 128
_BETA = 0.1  # share of a side from which the smooth L1 loss is linear


class Localizer(Detector):
    """backbone: a network of timm of which the last map is read, or "" for five convolutions of
    `widths` that halve the picture each.
    """

    head = ("classifier", "reduce", "box")
    finished = True
    stride = 0  # one size is learnt, as in classification

    def __init__(
        self,
        *,
        classes: int,
        channels: int,
        size: tuple[int, int],
        mean: Sequence[float],
        std: Sequence[float],
        backbone: str = "",
        widths: Sequence[int] = (16, 32, 64, 128, 128),
    ) -> None:
        super().__init__()
        self.normalize = Normalize(mean, std)
        self.backbone: Any
        if backbone:
            import timm

            self.backbone = timm.create_model(
                backbone, features_only=True, out_indices=(-1,), in_chans=channels
            )
            last = self.backbone.feature_info.channels()[-1]
        else:
            steps = pairwise([channels, *widths])
            self.backbone = nn.Sequential(
                *(ConvNorm(a, b, 3, 2, activation=nn.ReLU) for a, b in steps)
            )
            last = widths[-1]
        self.reduce = ConvNorm(last, _REDUCED, activation=nn.ReLU)
        self.box = nn.Sequential(
            nn.Linear(_REDUCED * _GRID**2, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, 4)
        )
        self.classifier = nn.Linear(last, classes)

    def raw(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) in [0, 1] -> logits (B, classes), boxes (B, 4) in [0, 1]."""
        maps = self.backbone(self.normalize(images))
        last = maps[-1] if isinstance(maps, list) else maps
        coarse = F.adaptive_avg_pool2d(self.reduce(last), _GRID)
        return self.classifier(last.mean((2, 3))), self.box(coarse.flatten(1)).sigmoid()

    def loss(
        self, raw: Any, truth: Sequence[Instances], size: tuple[int, int]
    ) -> dict[str, Tensor]:
        """Means: "cls", the cross-entropy, over all pictures; "box", 1 - GIoU plus the smooth L1 of
        the four shares, over those with an object.
        """
        logits, boxes = raw
        wanted, shares, known = _targets(truth, logits, size)
        cls = F.cross_entropy(logits, shares)
        corners = cxcywh_to_xyxy(boxes)
        overlap = 1 - aligned_iou(corners, wanted, "giou")
        distance = F.smooth_l1_loss(boxes, xyxy_to_cxcywh(wanted), reduction="none", beta=_BETA)
        box = ((overlap + distance.sum(1)) * known).sum() / known.sum().clamp(min=1)
        return {"loss": cls + box, "box": box, "cls": cls}

    def decode(self, raw: Any, size: tuple[int, int], conf: float) -> list[Instances]:
        """The box of each picture, with its likeliest class, where that scores above `conf`."""
        logits, boxes = raw
        scores, labels = logits.softmax(1).max(1)
        corners = denormalized(cxcywh_to_xyxy(boxes), size)
        return [
            Instances(corners[i : i + 1], labels[i : i + 1], scores[i : i + 1])[score > conf]
            for i, score in enumerate(scores[:, None])
        ]


def _targets(
    truth: Sequence[Instances], logits: Tensor, size: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """What B pictures are to say: boxes (B, 4) xyxy as shares of the sides, classes (B, K) summing
    to 1, and (B,) whether there is an object.
    """
    classes = logits.shape[1]
    boxes = logits.new_tensor([0.0, 0.0, 1.0, 1.0]).repeat(len(truth), 1)
    shares = torch.full_like(logits, 1 / classes)
    known = logits.new_zeros(len(truth))
    for picture, objects in enumerate(truth):
        if len(objects):
            largest = area(objects.boxes).argmax()
            boxes[picture] = normalized(objects.boxes[largest], size)
            shares[picture] = F.one_hot(objects.labels[largest], classes)
            known[picture] = 1.0
    return boxes, shares, known


# ------------------------------------------------------------------ table


def _of_timm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """timm's classifiers -> our backbone; what stands behind the last map is left out."""
    behind = ("fc.", "classifier.", "conv_head.", "bn2.")
    return {f"backbone.{k}": v for k, v in state.items() if not k.startswith(behind)}


def _row(side: int, backbone: str, parameters: tuple[int, int], tag: str = "") -> Entry:
    published = Weights(
        tag=tag,
        url=f"https://huggingface.co/timm/{backbone}.{tag}/resolve/main/model.safetensors",
        sha256="",  # the hub publishes none beside its files
        licence="apache-2.0",
        trained_on="ImageNet-1k, the backbone alone",
        classes=1000,
        convert=_of_timm,
    )
    return Entry(
        build=Localizer,
        task="detect",
        input=Input((side, side), "rgb", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        parameters=parameters,
        classes=20,
        args={"backbone": backbone},
        weights=(published,) if tag else (),
        tiny={"backbone": "", "widths": (8, 16, 32), "size": (64, 64)},
        paper="https://arxiv.org/abs/1312.6229",
        recipe={
            "lr": 1e-3, "batch": 32, "weight_decay": 0.05, "epochs": 50, "warmup": 1.0,
            "augment": "flip=h,zoom=.2,shift=.1,brightness=.2,contrast=.2",
        },
    )  # fmt: skip


MODELS = {
    "localizer": _row(128, "", (388_872, 388_008)),
    "localizer-resnet18": _row(224, "resnet18", (11_361_112, 11_351_384), "a1_in1k"),
    "localizer-mobilenetv2": _row(224, "mobilenetv2_100", (2_002_136, 1_970_456), "ra_in1k"),
}
