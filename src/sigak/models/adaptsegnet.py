"""DeepLab-v2: "DeepLab: Semantic Image Segmentation with Deep Convolutional Nets, Atrous
Convolution, and Fully Connected CRFs", Chen et al. 2016, https://arxiv.org/abs/1606.00915, and
AdaptSegNet: "Learning to Adapt Structured Output Space for Semantic Segmentation", Tsai et al.
2018, https://arxiv.org/abs/1802.10349.

DeepLab-v2 is a ResNet whose last maps are an eighth of the picture (atrous convolutions in place of
strides) and a classifier of four atrous 3x3 convolutions that are added up (ASPP). AdaptSegNet
learns with it from labelled pictures of one domain, the source, and from pictures alone of another,
the target: scenes of both are laid out alike, so the class probabilities of the target's pictures
shall look like those of the source's. Fully convolutional discriminators learn to tell them apart,
and the segmenter learns to have its answers for the target taken for answers for the source. The
second level is an auxiliary classifier on the maps before the last stage, with a discriminator of
its own.

What differs here: both domains go through the network in one batch, so that batch norm, where it
learns, sees what it will see later (the paper keeps it as ImageNet left it, and so does a batch of
one picture here); discriminators judge each of their cells, which the paper enlarges to the picture
first; momentum is not Nesterov's; there is no CRF.

Input (B, C, H, W) in [0, 1]; output (B, classes, H, W) logits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sigak.layers.normalize import Normalize
from sigak.models._entry import Entry, Input, Weights
from sigak.models._held import held
from sigak.models._segmenter import Segmenter
from sigak.structures import SigakError

__all__ = ["ASPP", "MODELS", "AdaptSegNet", "DeepLabV2", "Discriminator"]

_RATES = (6, 12, 18, 24)  # of the atrous convolutions in a classifier
_LEAST = 32  # pixels a side that five halvings leave something of
# The loss of a discriminator's logits that should all be `target`, 1 (source) or 0 (target).
_ADVERSARIAL: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "bce": F.binary_cross_entropy_with_logits,  # Goodfellow et al. 2014
    "lsgan": F.mse_loss,  # least squares, on the logits themselves: Mao et al. 2016, 1611.04076
}


class ASPP(nn.ModuleList):
    """(B, channels, H, W) -> (B, classes, H, W): the sum of 3x3 convolutions of several rates."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__(
            nn.Conv2d(channels, classes, 3, padding=rate, dilation=rate) for rate in _RATES
        )
        for branch in self:
            nn.init.normal_(branch.weight, 0.0, 0.01)  # type: ignore[arg-type]

    def forward(self, maps: Tensor) -> Tensor:
        return torch.stack([branch(maps) for branch in self]).sum(0)


class DeepLabV2(Segmenter):
    """backbone: a ResNet of timm, widths the channels of its stages where they are not its own;
    pool: without it maps are a quarter of the picture, for small ones.

    An AdaptSegNet of two levels has an `auxiliary` classifier too.
    """

    head = ("classifier", "auxiliary")
    stride = 8

    def __init__(
        self,
        *,
        classes: int,
        channels: int,
        size: tuple[int, int],
        mean: Sequence[float],
        std: Sequence[float],
        backbone: str = "resnet101",
        widths: Sequence[int] = (),
        pool: bool = True,
        auxiliary: bool = False,
    ) -> None:
        super().__init__()
        self.normalize = Normalize(mean, std)
        own = {"channels": tuple(widths)} if widths else {}
        self.backbone = timm.create_model(
            backbone, features_only=True, output_stride=8, out_indices=(3, 4), in_chans=channels,
            **own,
        )  # fmt: skip
        if not pool:
            self.backbone.maxpool = nn.Identity()
        before, last = self.backbone.feature_info.channels()
        self.classifier = ASPP(last, classes)
        self.auxiliary = ASPP(before, classes) if auxiliary else None

    def forward(self, images: Tensor) -> Tensor:
        return _enlarged(self.classifier(self.backbone(self.normalize(images))[1]), images)

    def levels(self, images: Tensor) -> list[Tensor]:
        """Logits (B, classes, H, W) of the classifier and, where there is one, of the auxiliary."""
        before, last = self.backbone(self.normalize(images))
        found = [self.classifier(last)]
        if self.auxiliary is not None:
            found.append(self.auxiliary(before))
        return [_enlarged(maps, images) for maps in found]


def _enlarged(maps: Tensor, images: Tensor) -> Tensor:
    return F.interpolate(maps, images.shape[2:], mode="bilinear", align_corners=False)


class Discriminator(nn.Sequential):
    """Class probabilities (B, classes, H, W) -> logits (B, 1, H / 32, W / 32), positive where they
    look like those of the source.
    """

    def __init__(self, classes: int, width: int = 64) -> None:
        widths = [classes, *(width * 2**i for i in range(4)), 1]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 4, 2, 1), nn.LeakyReLU(0.2)]
        super().__init__(*layers[:-1])


def _convert(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """torchvision's classifiers -> the backbone of a DeepLab-v2 alone."""
    return {f"backbone.{k}": v for k, v in state.items() if not k.startswith("fc.")}


def _convert_within(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """torchvision's classifiers, or a trained DeepLab-v2 -> the segmenter of an AdaptSegNet."""
    own = state if "classifier.0.weight" in state else _convert(state)
    return {f"segmenter.{k}": v for k, v in own.items()}


class AdaptSegNet(Segmenter):
    """levels: 1, the classifier's answer alone is adapted, or 2, the auxiliary one's too;
    segmentation and adversarial: the weight of each level's loss in what the segmenter minimises;
    gan: "bce" or "lsgan"; judge_lr: the learning rate of the discriminators' Adam; width: of their
    first layer. Further arguments build the `DeepLabV2`.
    """

    head = ("segmenter.classifier", "segmenter.auxiliary", "discriminators")
    parts = {"main": "segmenter", "discriminators": "discriminators"}  # noqa: RUF012 - data
    betas = (0.9, 0.99)  # of the discriminators' Adam
    stride = 8
    adapts = True
    convert = staticmethod(_convert_within)

    def __init__(
        self,
        *,
        classes: int,
        levels: int = 2,
        segmentation: Sequence[float] = (1.0, 0.1),
        adversarial: Sequence[float] = (0.001, 0.0002),
        gan: str = "bce",
        judge_lr: float = 1e-4,
        width: int = 64,
        **args: Any,
    ) -> None:
        super().__init__()
        if min(args["size"]) < _LEAST:
            height, side = args["size"]
            raise SigakError(
                f"the discriminators of an adaptsegnet halve a picture five times and need sides "
                f"of at least {_LEAST} pixels, received {height}x{side}; give a larger --size"
            )
        self.segmentation = tuple(segmentation[:levels])
        self.adversarial = tuple(adversarial[:levels])
        self.gan = _ADVERSARIAL[gan]
        self.recipes = {
            "discriminators": {"optimizer": "adam", "lr": judge_lr, "weight_decay": 0.0}
        }
        self.segmenter = DeepLabV2(classes=classes, auxiliary=levels > 1, **args)
        self.discriminators = nn.ModuleList(Discriminator(classes, width) for _ in range(levels))

    def forward(self, images: Any, targets: Any = None, *, part: str = "") -> Any:
        """Images (B, C, H, W) in [0, 1] -> logits (B, classes, H, W).

        In training `part` names the optimiser that shall move, and one call computes all that its
        loss needs, with gradients for that part alone: processes that train together exchange the
        gradients of one forward per step. "main": for images of the source and of the target the
        source's logits with the weight of their loss, level by level, the weighted adversarial
        loss, and both domains' class probabilities, level by level and without gradients. These
        are what "discriminators" takes in the places of the images; it gives their loss.
        """
        if part == "main":
            return self._segmented(images, targets)
        if part == "discriminators":
            both = zip(self._judged(images), self._judged(targets), strict=True)
            losses = [self._against(own, 1.0) + self._against(other, 0.0) for own, other in both]
            return torch.stack(losses).sum()
        return self.segmenter(images)

    def _segmented(self, images: Tensor, targets: Tensor) -> Any:
        levels = self.segmenter.levels(torch.cat([images, targets]))
        cut = len(images)
        chances = [maps.float().softmax(1) for maps in levels]
        with held(self.discriminators):
            fooled = self._judged([maps[cut:] for maps in chances])
        losses = [
            weight * self._against(logits, 1.0)
            for weight, logits in zip(self.adversarial, fooled, strict=True)
        ]
        known = [maps.detach() for maps in chances]
        answers = list(zip(self.segmentation, [maps[:cut] for maps in levels], strict=True))
        own, other = [maps[:cut] for maps in known], [maps[cut:] for maps in known]
        return answers, torch.stack(losses).sum(), (own, other)

    def _judged(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """What each level's discriminator says of its class probabilities."""
        return [judge(maps) for judge, maps in zip(self.discriminators, levels, strict=True)]

    def _against(self, logits: Tensor, target: float) -> Tensor:
        logits = logits.float()
        return self.gan(logits, torch.full_like(logits, target))


def _weights(file: str, tag: str) -> Weights:
    return Weights(
        tag=tag,
        url=f"https://download.pytorch.org/models/{file}.pth",
        sha256=file.rpartition("-")[2],
        licence="BSD-3-Clause",
        trained_on="ImageNet-1k, the backbone alone",
        classes=1000,
        convert=_convert,
    )


_IMAGENET = {
    "resnet101": (_weights("resnet101-cd907fc2", "tv2_in1k"),),
    "resnet18": (_weights("resnet18-f37072fd", "tv_in1k"),),
}
_LSGAN: dict[str, Any] = {"gan": "lsgan", "adversarial": (0.01, 0.002)}
# A few hundred steps (`benchmarks/adaptation.py`) must do what the paper gives 250,000.
_FEW_STEPS: dict[str, Any] = {"width": 16, "adversarial": (0.1, 0.02), "judge_lr": 5e-4}
_FEW_STEPS_LSGAN = _FEW_STEPS | {"gan": "lsgan", "adversarial": (0.05, 0.01)}
_SMALL: dict[str, Any] = {"backbone": "resnet18", "widths": (16, 32, 64, 128), "pool": False}
_PAPER = {
    "optimizer": "sgd",
    "lr": 2.5e-4,
    "backbone_lr": 1.0,
    "weight_decay": 5e-4,
    "schedule": "poly",
    "batch": 1,
    "epochs": 10,  # 250,000 steps with the 24,966 pictures of GTA5
}
_QUICK = {"lr": 4e-3, "schedule": "onecycle", "batch": 8, "epochs": 16, "loss": "ce+dice"}
_RECIPES = {
    "resnet101": _PAPER,
    "resnet18": {"lr": 1e-3, "weight_decay": 1e-4, "batch": 8, "epochs": 50, "augment": "flip=h"},
}
_JUDGES = "of these {:,} are discriminators, which learn and do not answer"


def _row(
    side: int | tuple[int, int], parameters: tuple[int, int], judges: int = 0, **args: Any
) -> Entry:
    """side: of the default input; judges: how many parameters are the discriminators'."""
    published = () if "widths" in args else _IMAGENET[args["backbone"]]
    convert = _convert_within if judges else _convert
    tiny = _SMALL | {"widths": (4, 8, 8, 8), "size": (32, 32)}
    return Entry(
        build=AdaptSegNet if judges else DeepLabV2,
        task="segment",
        input=Input(
            side if isinstance(side, tuple) else (side, side),
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
        ),
        parameters=parameters,
        classes=19,
        args=args,
        weights=tuple(replace(weights, convert=convert) for weights in published),
        tiny=tiny | ({"width": 2} if judges else {}),
        paper=f"https://arxiv.org/abs/{'1802.10349' if judges else '1606.00915'}",
        recipe=_QUICK if "widths" in args else _RECIPES[args["backbone"]],
        note=_JUDGES.format(judges) if judges else "",
    )


_WIDE = (512, 1024)
_PAIR, _LONE = 2 * 2_781_121, 2_781_121
MODELS = {
    "deeplabv2-resnet101": _row(_WIDE, (44_006_412, 43_901_068), backbone="resnet101"),
    "deeplabv2-resnet18": _row(256, (11_536_396, 11_526_796), backbone="resnet18"),
    "deeplabv2-small": _row(64, (807_372, 804_844), **_SMALL),
    "adaptsegnet": _row(_WIDE, (50_269_146, 50_163_802), _PAIR, backbone="resnet101"),
    "adaptsegnet-lsgan": _row(
        _WIDE, (50_269_146, 50_163_802), _PAIR, backbone="resnet101", **_LSGAN
    ),
    "adaptsegnet-single": _row(
        _WIDE, (46_787_533, 46_682_189), _LONE, backbone="resnet101", levels=1
    ),
    "adaptsegnet-resnet18": _row(256, (17_273_818, 17_264_218), _PAIR, backbone="resnet18"),
    "adaptsegnet-small": _row(64, (1_209_594, 1_207_066), 2 * 179_185, **_SMALL, **_FEW_STEPS),
    "adaptsegnet-small-lsgan": _row(
        64, (1_209_594, 1_207_066), 2 * 179_185, **_SMALL, **_FEW_STEPS_LSGAN
    ),
}
