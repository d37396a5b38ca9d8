"""What publishers say their weights reach on ImageNet, read from `published.json`.

A network's first row belongs to the weights that `--pretrained` takes by default, where their
publisher gives a figure; the others are of other weights of the same network.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

__all__ = ["CLASSICS", "SOURCES", "Score", "scores"]

# The networks that a course on classification goes through, oldest ideas first.
CLASSICS = (
    "lenet5", "alexnet", "vgg16", "vgg19", "googlenet",
    "resnet18", "resnet50", "resnet101", "resnet152", "resnet50v2", "resnet101v2", "resnet152v2",
    "inceptionv3", "inceptionresnetv2", "xception", "mobilenet", "mobilenetv2",
    "densenet121", "densenet169", "densenet201", "nasnetmobile", "nasnetlarge",
    "efficientnetb0", "efficientnetb1", "efficientnetb2", "efficientnetb3",
    "efficientnetb4", "efficientnetb5", "efficientnetb6", "efficientnetb7",
    "squeezenet", "shufflenet", "darknet19", "darknet53", "convmixer",
    "vit-tiny-16", "vit-small-16", "vit-base-16", "vit-large-16",
)  # fmt: skip

# Where each publisher gives its figures; the key is the first word of a score's source.
SOURCES = {
    "timm": "https://github.com/huggingface/pytorch-image-models/tree/main/results",
    "torchvision": "https://docs.pytorch.org/vision/stable/models.html",
    "keras.io": "https://keras.io/api/applications",
    "MathWorks": "https://github.com/matlab-deep-learning/MATLAB-Deep-Learning-Model-Hub",
}


@dataclass(frozen=True)
class Score:
    """One published figure: top-1 and top-5 accuracy in per cent on ImageNet-1k's validation
    pictures.

    source: the publisher, and its name of the weights; side: of the pictures, in pixels. None:
    not said.
    """

    source: str
    top1: float
    top5: float | None
    side: int | None


def scores(name: str) -> tuple[Score, ...]:
    """The published figures of the network `name`, those of its default weights first; empty where
    none are known.
    """
    return _table().get(name, ())


@cache
def _table() -> dict[str, tuple[Score, ...]]:
    text = Path(__file__).with_name("published.json").read_text(encoding="utf-8")
    return {name: tuple(Score(**row) for row in rows) for name, rows in json.loads(text).items()}
