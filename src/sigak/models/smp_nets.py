"""U-Net, DeepLabv3+ and their kin on any backbone, built by segmentation_models.pytorch (MIT,
https://github.com/qubvel-org/segmentation_models.pytorch).

U-Net: Ronneberger et al. 2015, https://arxiv.org/abs/1505.04597; U-Net++: Zhou et al. 2018,
https://arxiv.org/abs/1807.10165; FPN: Kirillov et al. 2019, https://arxiv.org/abs/1901.02446;
DeepLabv3+: Chen et al. 2018, https://arxiv.org/abs/1802.02611.

ARCHITECTURE-BACKBONE names a network: the rows below, and with `variant` every backbone that the
package or timm builds, such as "unet-convnext_tiny". Its layers are used as they are;
normalisation is ours and inside. `--pretrained` loads a backbone's weights of ImageNet, and what
is behind the backbone starts fresh.

Input (B, C, H, W) in [0, 1], sides multiples of 32 (DeepLabv3+: 16); output (B, classes, H, W)
logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from sigak.layers.normalize import Normalize
from sigak.models._entry import Entry, Input, Weights, count_parameters
from sigak.models._segmenter import Segmenter
from sigak.structures import SigakError

__all__ = ["MODELS", "SmpNet", "variant"]

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class SmpNet(Segmenter):
    """architecture: one of unet, unetplusplus, fpn and deeplabv3plus; backbone: the package's name
    of the encoder, "tu-NAME" for timm's; further arguments go to the package's class.
    """

    head = ("net.decoder", "net.segmentation_head")

    def __init__(
        self,
        *,
        classes: int,
        channels: int,
        size: tuple[int, int],
        mean: Sequence[float],
        std: Sequence[float],
        architecture: str = "unet",
        backbone: str = "resnet34",
        **args: Any,
    ) -> None:
        import segmentation_models_pytorch as smp

        super().__init__()
        self.normalize = Normalize(mean, std)
        kind = _ARCHITECTURES[architecture]
        build = getattr(smp, kind.build)
        self.net = build(
            backbone, encoder_weights=None, in_channels=channels, classes=classes, **args
        )
        self.stride = kind.stride  # type: ignore[misc]

    def forward(self, images: Tensor) -> Tensor:
        return self.net(self.normalize(images))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class _Architecture:
    """The package's class, what its sides are multiples of, the default side and the paper."""

    build: str
    stride: int
    side: int
    paper: str


_ARCHITECTURES = {
    "unet": _Architecture("Unet", 32, 256, "https://arxiv.org/abs/1505.04597"),
    "unetplusplus": _Architecture("UnetPlusPlus", 32, 256, "https://arxiv.org/abs/1807.10165"),
    "fpn": _Architecture("FPN", 32, 256, "https://arxiv.org/abs/1901.02446"),
    "deeplabv3plus": _Architecture("DeepLabV3Plus", 16, 512, "https://arxiv.org/abs/1802.02611"),
}
# Short name of a backbone: (the package's name, torchvision's file of its weights and tag).
_BACKBONES = {
    "resnet18": ("resnet18", "resnet18-f37072fd", "tv_in1k"),
    "resnet34": ("resnet34", "resnet34-b627a593", "tv_in1k"),
    "resnet50": ("resnet50", "resnet50-11ad3fa6", "tv2_in1k"),
    "resnet101": ("resnet101", "resnet101-cd907fc2", "tv2_in1k"),
    "mobilenetv2": ("mobilenet_v2", "mobilenet_v2-7ebf99e0", "tv2_in1k"),
}
_RATES = (
    "separable convolutions, atrous rates 12, 24, 36 at stride 16; implementations with plain "
    "convolutions and rates 6, 12, 18 count {} at 21 classes"
)
# (architecture, backbone): parameters (total, trainable) at 21 classes, note
_ROWS: dict[tuple[str, str], tuple[tuple[int, int], str]] = {
    ("unet", "resnet18"): ((14_342_693, 14_331_109), ""),
    ("unet", "resnet34"): ((24_458_277, 24_439_269), ""),
    ("unet", "resnet50"): ((32_579_109, 32_524_005), ""),
    ("unet", "mobilenetv2"): ((6_667_941, 6_631_845), ""),
    ("unetplusplus", "resnet34"): ((26_102_309, 26_081_509), ""),
    ("fpn", "resnet34"): ((23_174_997, 23_157_973), ""),
    ("deeplabv3plus", "resnet34"): ((22_463_813, 22_442_597), ""),
    ("deeplabv3plus", "resnet50"): ((26_740_037, 26_682_725), _RATES.format("39,761,845")),
    ("deeplabv3plus", "resnet101"): ((45_784_389, 45_674_853), _RATES.format("58,753,973")),
    ("deeplabv3plus", "mobilenetv2"): ((4_421_957, 4_383_653), _RATES.format("5,225,717")),
}


def _convert(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """torchvision's classifiers -> the backbone alone."""
    return {
        f"net.encoder.{name}": value
        for name, value in state.items()
        if not name.startswith(("fc.", "classifier."))
    }


def _entry(
    architecture: str, backbone: str, parameters: tuple[int, int], weights: tuple[Weights, ...]
) -> Entry:
    kind = _ARCHITECTURES[architecture]
    return Entry(
        build=SmpNet,
        task="segment",
        input=Input((kind.side, kind.side), "rgb", MEAN, STD, fit="letterbox"),
        parameters=parameters,
        classes=21,
        args={"architecture": architecture, "backbone": backbone},
        weights=weights,
        tiny={"size": (64, 64)},
        paper=kind.paper,
        licence="MIT",
        recipe={
            "lr": 1e-3,
            "batch": 8,
            "epochs": 50,
            "weight_decay": 1e-4,
            "augment": "flip=h,zoom=0.25,rotate=10,shift=0.1,brightness=0.2,contrast=0.2",
        },
    )


def _row(architecture: str, backbone: str, parameters: tuple[int, int], note: str) -> Entry:
    theirs, file, tag = _BACKBONES[backbone]
    weights = Weights(
        tag=tag,
        url=f"https://download.pytorch.org/models/{file}.pth",
        sha256=file.rpartition("-")[2],
        licence="BSD-3-Clause",
        trained_on="ImageNet-1k, the backbone alone",
        classes=1000,
        convert=_convert,
    )
    return replace(_entry(architecture, theirs, parameters, (weights,)), note=note)


@cache
def variant(name: str) -> Entry | None:
    """The row of ARCHITECTURE-BACKBONE where the backbone is any of the package's or timm's by its
    own name; None for other names. Raises SigakError for one that cannot be a backbone.
    """
    architecture, _, backbone = name.partition("-")
    if architecture not in _ARCHITECTURES or not backbone:
        return None
    import timm
    from segmentation_models_pytorch.encoders import encoders

    if backbone not in encoders:
        if not timm.is_model(backbone):
            return None
        backbone = f"tu-{backbone}"
    row = _entry(architecture, backbone, (0, 0), ())
    try:
        with torch.device("meta"):
            network = SmpNet(classes=21, channels=3, size=(64, 64), mean=MEAN, std=STD, **row.args)
        return replace(row, parameters=count_parameters(network))
    except Exception as error:  # the package and timm raise whatever they like
        reason = str(error).splitlines()[0]
        raise SigakError(
            f"{backbone.removeprefix('tu-')} cannot be a backbone of {architecture} ({reason}); "
            "take one that gives maps at several strides, such as resnet50 or convnext_tiny"
        ) from None


MODELS = {
    f"{architecture}-{backbone}": _row(architecture, backbone, *facts)
    for (architecture, backbone), facts in _ROWS.items()
}
