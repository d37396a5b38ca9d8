"""The CIFAR-10 lab: ten small VGG-style networks that show what each regulariser does.

Blocks of two 3x3 same convolutions and a 2x2 max-pool with 32, 64, 128 filters (VGG: Simonyan and
Zisserman 2014, https://arxiv.org/abs/1409.1556), dense 128, one logit per class; He-uniform
kernels. The variants add dropout, an L2 penalty, augmentation and batch norm (after each ReLU);
what is not architecture (penalty, augmentation, optimiser) stands in the row's recipe.

Input (B, C, H, W) in [0, 1], output (B, classes) logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from sigak.layers.dropout import Dropout
from sigak.layers.normalize import Normalize
from sigak.models._entry import Entry, Input
from sigak.structures import SigakError

__all__ = ["MODELS", "VggLab"]


class VggLab(nn.Module):
    """`len(widths)` VGG blocks, then a dense layer.

    dropout: rates after each block and after the dense layer (empty: none); norm: batch norm after
    each ReLU (momentum .01 is Keras's .99, eps 1e-3 is Keras's).
    """

    head = ("classifier",)

    def __init__(
        self,
        *,
        classes: int,
        channels: int,
        size: tuple[int, int],
        mean: Sequence[float],
        std: Sequence[float],
        widths: Sequence[int] = (32, 64, 128),
        dense: int = 128,
        dropout: Sequence[float] = (),
        norm: bool = False,
    ) -> None:
        super().__init__()
        least = 2 ** len(widths)
        if min(size) < least:
            raise SigakError(
                f"a network of {len(widths)} blocks needs pictures of at least {least}x{least}, "
                f"received {size[0]}x{size[1]}; give a larger --size, such as 32"
            )
        self.normalize = Normalize(mean, std)
        self.blocks = nn.Sequential()
        last = channels
        for i, width in enumerate(widths):
            rate = dropout[i] if dropout else 0.0
            self.blocks.append(_block(last, width, norm, rate))
            last = width
        pooled = (size[0] // least) * (size[1] // least)
        layers: list[nn.Module] = [nn.Flatten(), nn.Linear(last * pooled, dense), nn.ReLU()]
        if norm:
            layers.append(nn.BatchNorm1d(dense, eps=1e-3, momentum=0.01))
        if dropout:
            layers.append(Dropout(dropout[-1]))
        self.dense = nn.Sequential(*layers)
        self.classifier = nn.Linear(dense, classes)
        _init(self)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.dense(self.blocks(self.normalize(images))))  # type: ignore[no-any-return]


def _block(channels: int, width: int, norm: bool, dropout: float) -> nn.Sequential:
    """conv, ReLU (, norm), conv, ReLU (, norm), max-pool (, dropout): (B, C, H, W) -> (B, width,
    H/2, W/2).
    """
    layers: list[nn.Module] = []
    for last in (channels, width):
        layers += [nn.Conv2d(last, width, 3, padding=1), nn.ReLU()]
        if norm:
            layers.append(nn.BatchNorm2d(width, eps=1e-3, momentum=0.01))
    layers.append(nn.MaxPool2d(2))
    if dropout:
        layers.append(Dropout(dropout))
    return nn.Sequential(*layers)


def _init(network: VggLab) -> None:
    """He-uniform kernels (He et al. 2015), Glorot-uniform in the last layer, zero biases."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_uniform_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    nn.init.xavier_uniform_(network.classifier.weight)


_SGD = {
    "optimizer": "sgd",
    "lr": 1e-3,
    "momentum": 0.9,
    "batch": 64,
    "epochs": 100,
    "schedule": "constant",
}
_L2 = {"l2": 1e-3}
_AUG = {"augment": "flip=h,shift=0.1,fill=nearest"}
_DROP = {"dropout": (0.2, 0.2, 0.2, 0.2)}
_DROP_BN = {"dropout": (0.2, 0.3, 0.4, 0.5), "norm": True}


def _row(parameters: tuple[int, int], args: dict[str, Any], recipe: dict[str, Any]) -> Entry:
    return Entry(
        build=VggLab,
        task="classify",
        input=Input((32, 32), "rgb"),
        parameters=parameters,
        classes=10,
        args=args,
        tiny={"widths": (4,) * len(args.get("widths", (1, 2, 3))), "dense": 8},
        paper="https://arxiv.org/abs/1409.1556",
        recipe=_SGD | recipe,
    )


_PLAIN = (550_570, 550_570)
_NORM = (552_874, 551_722)

MODELS = {
    "vgg1": _row((1_060_138, 1_060_138), {"widths": (32,)}, {}),
    "vgg2": _row((591_274, 591_274), {"widths": (32, 64)}, {}),
    "vgg3": _row(_PLAIN, {}, {}),
    "vgg3-dropout": _row(_PLAIN, _DROP, {}),
    "vgg3-l2": _row(_PLAIN, {}, _L2),
    "vgg3-aug": _row(_PLAIN, {}, _AUG),
    "vgg3-dropout-l2": _row(_PLAIN, _DROP, _L2),
    "vgg3-dropout-l2-aug": _row(_PLAIN, _DROP, _L2 | _AUG),
    "vgg3-dropout-bn": _row(_NORM, _DROP_BN, {}),
    "vgg3-dropout-l2-bn": _row(_NORM, _DROP_BN, _L2),
}
