"""Keras Applications as Keras computes them, so that weights trained there give the same answers.

Rows end in -keras: the networks of `classics` with Keras's epsilons, strides, paddings and picture
normalisation, and the conversion of its weights files (https://keras.io/api/applications). Names
and layouts are translated layer by layer; a convolution's bias that batch norm follows becomes part
of its mean. mobilenet-keras answers as Keras does at multiples of 32 pixels: elsewhere Keras's
padding is off the centre. The EfficientNets always normalise pictures by ImageNet's statistics, as
Keras's released weights do; a normalisation layer adapted to other pictures is not taken over.
ResNetV2, the Inceptions and Xception are in `keras_resnet_v2` and `keras_inception`.

Input (B, C, H, W) in [0, 1], output (B, classes) logits, where Keras gives their softmax.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from sigak.io.keras_weights import State, convert
from sigak.models import nasnet, timm_nets
from sigak.models._entry import Entry, Input, Weights
from sigak.models.timm_nets import TimmClassifier

__all__ = ["HALF", "MODELS", "STORE", "StrideFirstResNet", "weights_of"]


class StrideFirstResNet(TimmClassifier):
    """timm's bottleneck ResNet with the stride in each block's first 1x1 convolution, as the paper
    and Keras have it, instead of the 3x3 one.
    """

    def __init__(self, name: str, **arguments: Any) -> None:
        super().__init__(name, **arguments)
        for module in self.net.modules():
            if hasattr(module, "conv3"):  # a bottleneck block
                module.conv1.stride, module.conv2.stride = module.conv2.stride, module.conv1.stride


# ------------------------------------------------------------------ names


def _match(layer: str, pattern: str) -> re.Match[str] | None:
    return re.fullmatch(pattern, layer)


def _vgg_name(layer: str, convolutions: Sequence[int]) -> str:
    """convolutions: how many each block has; a max-pool follows every block."""
    top = {"fc1": "pre_logits.fc1", "fc2": "pre_logits.fc2", "predictions": "head.fc"}
    if found := _match(layer, r"block(\d)_conv(\d)"):
        block, number = int(found[1]) - 1, int(found[2]) - 1
        return f"features.{sum(2 * n + 1 for n in convolutions[:block]) + 2 * number}"
    return top[layer]


def _resnet_name(layer: str) -> str:
    top = {"conv1_conv": "conv1", "conv1_bn": "bn1", "predictions": "fc"}
    if found := _match(layer, r"conv(\d)_block(\d+)_(\d)_(conv|bn)"):
        stage, block, number, kind = found.groups()
        part = f"downsample.{int(kind == 'bn')}" if number == "0" else f"{kind}{number}"
        return f"layer{int(stage) - 1}.{int(block) - 1}.{part}"
    return top[layer]


def _densenet_name(layer: str) -> str:
    top = {
        "conv1_conv": "features.conv0",
        "conv1_bn": "features.norm0",
        "bn": "features.norm5",
        "predictions": "classifier",
    }
    parts = {"0_bn": "norm1", "1_conv": "conv1", "1_bn": "norm2", "2_conv": "conv2"}
    if found := _match(layer, r"conv(\d)_block(\d+)_(\d_(?:conv|bn))"):
        block = f"denseblock{int(found[1]) - 1}.denselayer{found[2]}"
        return f"features.{block}.{parts[found[3]]}"
    if found := _match(layer, r"pool(\d)_(conv|bn)"):
        part = "norm" if found[2] == "bn" else "conv"
        return f"features.transition{int(found[1]) - 1}.{part}"
    return top[layer]


def _mobilenet_name(layer: str) -> str:
    top = {"conv1": "conv_stem", "conv1_bn": "bn1", "conv_preds": "classifier"}
    if found := _match(layer, r"conv_(dw|pw)_(\d+)(_bn)?"):
        part = f"conv_{found[1]}"
        if found[3]:
            part = "bn1" if found[1] == "dw" else "bn2"
        return f"blocks.{_place(int(found[2]) - 1, (1, 2, 2, 6, 2))}.{part}"
    return top[layer]


def _place(index: int, repeats: Sequence[int]) -> str:
    """ "STAGE.BLOCK" of the block `index` where the stages have `repeats` blocks."""
    for stage, count in enumerate(repeats):
        if index < count:
            return f"{stage}.{index}"
        index -= count
    raise KeyError(index)


# The layers of a block with an expansion, and of one without.
_EXPANDED = {"expand": ("conv_pw", "bn1"), "depthwise": ("conv_dw", "bn2"),
             "project": ("conv_pwl", "bn3")}  # fmt: skip
_PLAIN = {"depthwise": ("conv_dw", "bn1"), "project": ("conv_pw", "bn2")}


def _mobilenet_v2_name(layer: str) -> str:
    top = {
        "Conv1": "conv_stem",
        "bn_Conv1": "bn1",
        "Conv_1": "conv_head",
        "Conv_1_bn": "bn2",
        "predictions": "classifier",
    }
    kinds = "expand|depthwise|project"
    if found := _match(layer, rf"(?:block_(\d+)|expanded_conv)_({kinds})(_BN)?"):
        parts = _EXPANDED if found[1] else _PLAIN
        part = parts[found[2]][bool(found[3])]
        return f"blocks.{_place(int(found[1] or 0), (1, 2, 3, 4, 3, 3, 1))}.{part}"
    return top[layer]


def _efficientnet_name(layer: str) -> str:
    top = {
        "stem_conv": "conv_stem",
        "stem_bn": "bn1",
        "top_conv": "conv_head",
        "top_bn": "bn2",
        "predictions": "classifier",
    }
    if layer.startswith("normalization"):
        return ""  # ours stands in front of the network
    if found := _match(layer, r"block(\d)([a-z])_(\w+)"):
        parts = _PLAIN if found[1] == "1" else _EXPANDED
        kinds = {
            "expand_conv": parts.get("expand", ("",))[0],
            "expand_bn": parts.get("expand", ("", ""))[1],
            "dwconv": parts["depthwise"][0],
            "bn": parts["depthwise"][1],
            "se_reduce": "se.conv_reduce",
            "se_expand": "se.conv_expand",
            "project_conv": parts["project"][0],
            "project_bn": parts["project"][1],
        }
        return f"blocks.{int(found[1]) - 1}.{ord(found[2]) - ord('a')}.{kinds[found[3]]}"
    return top[layer]


def _nasnet_cells(repeats: int) -> list[str]:
    """Keras's endings of NASNet's cells, in order: 0, 1 ... but reduce_N instead of N."""
    cells = [str(i) for i in range(3 * repeats + 1)]
    cells[repeats] = f"reduce_{repeats}"
    cells.insert(2 * repeats + 1, f"reduce_{2 * repeats}")
    return ["stem_1", "stem_2", *cells]


def _nasnet_name(layer: str, repeats: int) -> str:
    """repeats: normal cells in each of the three rows."""
    cells = _nasnet_cells(repeats)
    top = {"stem_conv1": "stem.0", "stem_bn1": "stem.1", "predictions": "classifier"}
    if layer in top:
        return top[layer]
    found = _match(layer, rf"(\w+?)_({'|'.join(cells)})")
    if not found:
        raise KeyError(layer)
    cell = f"cells.{cells.index(found[2])}"
    if sep := _match(found[1], r"separable_conv_(\d)_(bn_)?(?:normal|reduction)_(\w+)"):
        return f"{cell}.{sep[3]}.{'norm' if sep[2] else '*'}{sep[1]}"
    parts = {
        "normal_conv_1": "squeeze_now.conv1",
        "reduction_conv_1": "squeeze_now.conv1",
        "normal_bn_1": "squeeze_now.norm",
        "reduction_bn_1": "squeeze_now.norm",
        "adjust_conv_projection": "squeeze_before.conv1",
        "adjust_conv_1": "squeeze_before.conv1",
        "adjust_conv_2": "squeeze_before.conv2",
        "adjust_bn": "squeeze_before.norm",
    }
    return f"{cell}.{parts[found[1]]}"


# ------------------------------------------------------------------ rows

STORE = "https://storage.googleapis.com/tensorflow/keras-applications"
_TF = "weights_tf_dim_ordering_tf_kernels"
# Keras subtracts the mean of its training pictures in 0..255 and scales nothing (Caffe's way).
_CAFFE = ((123.68 / 255, 116.779 / 255, 103.939 / 255), (1 / 255,) * 3)
_TORCH = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5,) * 3, (0.5,) * 3)
Look = tuple[tuple[float, ...], tuple[float, ...]]


def _row(
    library: str,
    url: str,
    licence: str,
    look: Look,
    conversion: Callable[[State], State],
    **args: Any,
) -> Entry:
    """timm's row of `library` as Keras has it. look: mean and std; args: of the build."""
    row = timm_nets.MODELS[library]
    first = library.startswith("resnet")
    return Entry(
        build=partial(StrideFirstResNet if first else TimmClassifier, library),
        task="classify",
        input=Input(row.input.size, "rgb", *look),
        parameters=row.parameters,
        args=args,
        weights=(weights_of(url, licence, conversion),),
        tiny={"size": (32, 32)},
        paper="https://keras.io/api/applications",
        licence=row.licence,
        note="the layers, paddings and picture normalisation of Keras, for its weights",
    )


def weights_of(url: str, licence: str, conversion: Callable[[State], State]) -> Weights:
    """The row of Keras's published weights at `url`."""
    # Keras publishes MD5 sums only, and none for some.
    return Weights("keras", url, "", licence, "ImageNet-1k", 1000, convert=conversion)


def _vgg(layers: int, convolutions: tuple[int, ...]) -> Entry:
    conversion = partial(
        convert,
        name_of=partial(_vgg_name, convolutions=convolutions),
        # timm's dense layers are convolutions; the first sees 7x7 pixels of 512 channels.
        shapes={"fc1": (7, 7, 512, -1), "fc2": (1, 1, 4096, -1)},
        bgr_stem="features.0",
    )
    url = f"{STORE}/vgg{layers}/vgg{layers}_{_TF}.h5"
    return _row(f"vgg{layers}", url, "CC-BY-4.0", _CAFFE, conversion)


def _resnet(layers: int) -> Entry:
    conversion = partial(convert, name_of=_resnet_name, bgr_stem="conv1")
    url = f"{STORE}/resnet/resnet{layers}_{_TF}.h5"
    return _row(f"resnet{layers}", url, "MIT", _CAFFE, conversion)


def _densenet(layers: int) -> Entry:
    conversion = partial(convert, name_of=_densenet_name)
    url = f"{STORE}/densenet/densenet{layers}_{_TF}.h5"
    return _row(f"densenet{layers}", url, "BSD-3-Clause", _TORCH, conversion)


def _efficientnet(number: int) -> Entry:
    conversion = partial(convert, name_of=_efficientnet_name)
    url = f"https://storage.googleapis.com/keras-applications/efficientnetb{number}.h5"
    return _row(f"tf_efficientnet_b{number}", url, "Apache-2.0", _TORCH, conversion)


def _nasnet(kind: str, repeats: int) -> Entry:
    name_of = partial(_nasnet_name, repeats=repeats)
    conversion = partial(convert, name_of=name_of, prefix="")
    weights = weights_of(f"{STORE}/nasnet/NASNet-{kind}.h5", "Apache-2.0", conversion)
    return replace(nasnet.MODELS["nasnetmobile"], weights=(weights,))


# What timm calls TensorFlow's: zeros added on the right and below first, and its epsilon.
_TENSORFLOW = {"pad_type": "same", "bn_eps": 1e-3}

MODELS = {
    "vgg16-keras": _vgg(16, (2, 2, 3, 3, 3)),
    "vgg19-keras": _vgg(19, (2, 2, 4, 4, 4)),
    **{f"resnet{n}-keras": _resnet(n) for n in (50, 101, 152)},
    **{f"densenet{n}-keras": _densenet(n) for n in (121, 169, 201)},
    "mobilenet-keras": _row(
        "mobilenetv1_100",
        f"{STORE}/mobilenet/mobilenet_1_0_224_tf.h5",
        "Apache-2.0",
        HALF,
        partial(convert, name_of=_mobilenet_name, shapes={"conv_preds": (1024, -1)}),
        **_TENSORFLOW,
    ),
    "mobilenetv2-keras": _row(
        "mobilenetv2_100",
        f"{STORE}/mobilenet_v2/mobilenet_v2_{_TF}_1.0_224.h5",
        "Apache-2.0",
        HALF,
        partial(convert, name_of=_mobilenet_v2_name),
        **_TENSORFLOW,
    ),
    **{f"efficientnetb{n}-keras": _efficientnet(n) for n in range(8)},
    "nasnetmobile-keras": _nasnet("mobile", repeats=4),
    "nasnetlarge-keras": replace(
        _nasnet("large", repeats=6),
        input=Input((331, 331), "rgb", *HALF),
        parameters=(88_949_818, 88_753_150),
        args={"repeats": 6, "filters": 168, "stem": 96, "skip_reduction": True},
        note="NASNet-A (6 @ 4032)",
    ),
}
