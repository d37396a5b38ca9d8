"""InceptionV3, InceptionResNetV2 and Xception as Keras has them, so that weights trained there give
the same answers. timm's networks with what Keras does otherwise:

- InceptionV3 (https://arxiv.org/abs/1512.00567) and InceptionResNetV2
  (https://arxiv.org/abs/1602.07261): batch norm has no scale, and an average at the border is over
  the pixels there are.
- Xception (https://arxiv.org/abs/1610.02357): batch norm's epsilon is 1e-3, and where a picture has
  an even side its max-pools begin at the first pixel.

Most of their layers have no name of their own in Keras, but a number: they are told by the order in
which they were made.

Input (B, C, H, W) in [0, 1], sides of at least 75 pixels (Xception: 71); output (B, classes)
logits.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sigak.io.keras_weights import State, convert
from sigak.models._entry import Entry, Input
from sigak.models.keras_nets import HALF, STORE, weights_of
from sigak.models.timm_nets import TimmClassifier

__all__ = ["MODELS", "Inception", "OfThePixels", "SamePool", "Xception"]


class OfThePixels(nn.Module):
    """A 3x3 average (B, C, H, W) that took zeros around its maps for pixels -> of the pixels there
    are.
    """

    def forward(self, average: Tensor) -> Tensor:
        ones = average.new_ones(1, 1, *average.shape[2:])
        return average / F.avg_pool2d(ones, 3, 1, padding=1)


class Inception(TimmClassifier):
    """timm's inception_v3 or inception_resnet_v2 with the batch norm and averages of Keras."""

    def __init__(self, name: str, **arguments: Any) -> None:
        super().__init__(name, **arguments)
        for module in list(self.net.modules()):
            if isinstance(module, nn.BatchNorm2d):
                scale = torch.ones_like(module.weight.detach())
                del module.weight  # from now on a constant, which is neither learnt nor saved
                module.register_buffer("weight", scale, persistent=False)
            if hasattr(module, "branch_pool"):  # timm averages with the zeros in front of it
                module.branch_pool = nn.Sequential(OfThePixels(), module.branch_pool)


class SamePool(nn.Module):
    """3x3 max-pool with stride 2: (B, C, H, W) -> (B, C, ceil(H/2), ceil(W/2)). An odd side is
    padded at both ends, an even one at its right or lower only.
    """

    def forward(self, x: Tensor) -> Tensor:
        top, left = (side % 2 for side in x.shape[2:])
        return F.max_pool2d(F.pad(x, (left, 1, top, 1), value=float("-inf")), 3, 2)


class Xception(TimmClassifier):
    """timm's `name`, a legacy_xception, with the epsilon and max-pools of Keras."""

    def __init__(self, name: str, **arguments: Any) -> None:
        super().__init__(name, **arguments)
        for module in self.net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = 1e-3
            if isinstance(module, nn.Sequential) and isinstance(module[-1], nn.MaxPool2d):
                module[-1] = SamePool()


# ------------------------------------------------------------------ names


def _made(state: State, kind: str) -> list[str]:
    """The layers of `kind` (a pattern) without a name of their own, in the order in which they
    were made: Keras numbers them conv2d, conv2d_1 ... and goes on in the next network.
    """
    layers = {key.rpartition("/")[0] for key in state}
    found = [match for layer in layers if (match := re.fullmatch(rf"{kind}(?:_(\d+))?", layer))]
    return [match[0] for match in sorted(found, key=lambda match: int(match[1] or 0))]


# Keras 1 wrote convolution2d_1 and batchnormalization_1.
_CONVOLUTION, _NORM = "conv(?:olution)?2d", "batch_?normalization"


@cache
def _convolutions(name: str) -> tuple[str, ...]:
    """The parts of an `Inception` that are a convolution and batch norm, in order: Keras's too."""
    with torch.device("meta"):
        network = Inception(name, classes=1, channels=3, size=(75, 75), mean=(0,), std=(1,)).net
    return tuple(part for part, module in network.named_modules() if hasattr(module, "bn"))


def _convert_inception(state: State, name: str, named: dict[str, str]) -> State:
    """named: the layers that have a name in Keras."""
    parts = _convolutions(name)
    convolutions = zip(_made(state, _CONVOLUTION), (f"{part}.conv" for part in parts))
    norms = zip(_made(state, _NORM), (f"{part}.bn" for part in parts))
    return convert(state, name_of=(named | dict(convolutions) | dict(norms)).__getitem__)


_V3 = {"predictions": "fc"}
_RESNET_V2 = {
    **{f"block35_{i}_conv": f"repeat.{i - 1}.conv2d" for i in range(1, 11)},
    **{f"block17_{i}_conv": f"repeat_1.{i - 1}.conv2d" for i in range(1, 21)},
    **{f"block8_{i}_conv": f"repeat_2.{i - 1}.conv2d" for i in range(1, 10)},
    "block8_10_conv": "block8.conv2d",
    "conv_7b": "conv2d_7b.conv",
    "conv_7b_bn": "conv2d_7b.bn",
    "predictions": "classif",
}


def _xception_name(layer: str) -> str:
    """Keras counts the two convolutions at the beginning as a block, and those at the end."""
    found = re.fullmatch(r"block(\d+)_(sep)?conv(\d)(_bn)?", layer)
    if not found:
        return {"predictions": "fc"}[layer]
    block, place, norm = int(found[1]), int(found[3]), bool(found[4])
    end = ".*" if found[2] and not norm else ""
    if block in (1, 14):
        number = place if block == 1 else place + 2
        return f"{'bn' if norm else 'conv'}{number}{end}"
    # A block is ReLU, convolution, batch norm and so on; the first has no ReLU to begin with.
    index = 3 * place - 2 + norm - (block == 2)
    return f"block{block - 1}.rep.{index}{end}"


def _convert_xception(state: State) -> State:
    blocks = (1, 2, 3, 12)  # those that halve; their shortcuts have no names
    shortcuts = dict(zip(_made(state, _CONVOLUTION), (f"block{i}.skip" for i in blocks)))
    shortcuts |= zip(_made(state, _NORM), (f"block{i}.skipbn" for i in blocks))
    ours = convert(state, name_of=lambda layer: shortcuts.get(layer) or _xception_name(layer))
    return {name.replace(".depthwise.", ".conv1."): value for name, value in ours.items()}


# ------------------------------------------------------------------ rows


def _row(
    build: Callable[..., nn.Module],
    parameters: tuple[int, int],
    folder: str,
    licence: str,
    conversion: Callable[[State], State],
) -> Entry:
    """folder: of the published weights."""
    url = f"{STORE}/{folder}/{folder}_weights_tf_dim_ordering_tf_kernels.h5"
    return Entry(
        build=build,
        task="classify",
        input=Input((299, 299), "rgb", *HALF),
        parameters=parameters,
        weights=(weights_of(url, licence, conversion),),
        tiny={"size": (75, 75)},
        paper="https://keras.io/api/applications",
        note="the batch norm and poolings of Keras, for its weights; its count exactly",
    )


def _inception(name: str, named: dict[str, str], parameters: tuple[int, int]) -> Entry:
    conversion = partial(_convert_inception, name=name, named=named)
    return _row(partial(Inception, name), parameters, name, "Apache-2.0", conversion)


MODELS = {
    "inceptionv3-keras": _inception("inception_v3", _V3, (23_851_784, 23_817_352)),
    "inceptionresnetv2-keras": _inception(
        "inception_resnet_v2", _RESNET_V2, (55_873_736, 55_813_192)
    ),
    "xception-keras": _row(
        partial(Xception, "legacy_xception"),
        (22_910_480, 22_855_952),
        "xception",
        "MIT",
        _convert_xception,
    ),
}
