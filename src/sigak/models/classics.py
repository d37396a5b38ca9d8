"""The classics by the names Keras and MATLAB know them by, each the right network of a library.

This is the one family that stands on others: a row here is a row of `timm_nets` or
`torchvision_nets` with the familiar name, its paper, and a note where it differs from its namesake.
Names the libraries use themselves (vgg16, densenet121, alexnet ...) need no row; resnet50,
resnet101 and resnet152 have one for their notes.

Input (B, C, H, W) in [0, 1], output (B, classes) logits.
"""

from __future__ import annotations

from dataclasses import replace

from sigak.models import timm_nets, torchvision_nets
from sigak.models._entry import Entry

__all__ = ["MODELS"]

_LIBRARY = timm_nets.MODELS | torchvision_nets.MODELS

_RESNET = "https://arxiv.org/abs/1512.03385"
_RESNET_V2 = "https://arxiv.org/abs/1603.05027"
_EFFICIENTNET = "https://arxiv.org/abs/1905.11946"
_VIT = "https://arxiv.org/abs/2010.11929"


def _resnet_note(fewer: int, total: int) -> str:
    return (
        f"{fewer:,} fewer than Keras's {total:,}: no convolution biases, which the batch norm "
        "behind them cancels; the 3x3 convolution has the stride (v1.5), in Keras the first 1x1"
    )


def _resnet_v2_note(fewer: int, total: int, biased: int) -> str:
    return (
        f"{fewer:,} fewer than Keras's {total:,}: {biased} convolutions have a bias there and none "
        "here; the first block of a stage has the stride, in Keras the last"
    )


def _inception_note(more: int, total: int) -> str:
    return f"{more:,} more than Keras's {total:,}: batch norm has a scale here and none there"


_NORMALISED = (
    "7 fewer than Keras's total, which counts the mean, variance and count of its normalisation "
    "layer"
)

# name: (the library's name, paper, note)
_ROWS = {
    "resnet50": ("resnet50", _RESNET, _resnet_note(26_560, 25_636_712)),
    "resnet101": ("resnet101", _RESNET, _resnet_note(52_672, 44_707_176)),
    "resnet152": ("resnet152", _RESNET, _resnet_note(75_712, 60_419_944)),
    "resnet50v2": ("resnetv2_50", _RESNET_V2, _resnet_v2_note(19_008, 25_613_800, 21)),
    "resnet101v2": ("resnetv2_101", _RESNET_V2, _resnet_v2_note(36_416, 44_675_560, 38)),
    "resnet152v2": ("resnetv2_152", _RESNET_V2, _resnet_v2_note(51_776, 60_380_648, 55)),
    "inceptionv3": (
        "inception_v3",
        "https://arxiv.org/abs/1512.00567",
        _inception_note(17_216, 23_851_784),
    ),
    "inceptionresnetv2": (
        "inception_resnet_v2",
        "https://arxiv.org/abs/1602.07261",
        _inception_note(30_272, 55_873_736),
    ),
    "xception": ("legacy_xception", "https://arxiv.org/abs/1610.02357", ""),
    "mobilenetv2": ("mobilenetv2_100", "https://arxiv.org/abs/1801.04381", ""),
    "nasnetlarge": ("nasnetalarge", "https://arxiv.org/abs/1707.07012", ""),
    **{
        f"efficientnetb{i}": (f"tf_efficientnet_b{i}", _EFFICIENTNET, _NORMALISED) for i in range(8)
    },
    "squeezenet": (
        "squeezenet1_1",
        "https://arxiv.org/abs/1602.07360",
        "version 1.1: the accuracy of 1.0 for 2.4 times less arithmetic",
    ),
    "convmixer": (
        "convmixer_768_32",
        "https://arxiv.org/abs/2201.09792",
        "768 channels, 32 blocks; convmixer_1536_20 is the paper's larger one",
    ),
    "vit-tiny-16": ("vit_tiny_patch16_224", _VIT, ""),
    "vit-small-16": ("vit_small_patch16_224", _VIT, ""),
    "vit-base-16": ("vit_base_patch16_224", _VIT, ""),
    "vit-large-16": ("vit_large_patch16_224", _VIT, ""),
}


def _row(name: str, library: str, paper: str, note: str) -> Entry:
    side = 96 if name.startswith("inception") else 32  # the smallest it takes
    return replace(_LIBRARY[library], paper=paper, note=note, tiny={"size": (side, side)})


MODELS = {name: _row(name, *row) for name, row in _ROWS.items()}
