"""AlexNet, GoogLeNet, SqueezeNet and ShuffleNet V2, built by torchvision (BSD-3-Clause).

AlexNet: https://arxiv.org/abs/1404.5997 (the one-column form); GoogLeNet:
https://arxiv.org/abs/1409.4842 (with batch norm, without the auxiliary classifiers); SqueezeNet:
https://arxiv.org/abs/1602.07360; ShuffleNet V2: https://arxiv.org/abs/1807.11164. Normalisation is
inside.

Input (B, C, H, W) in [0, 1], output (B, classes) logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from sigak.layers.normalize import Normalize
from sigak.models._entry import Entry, Input, Weights

__all__ = ["MODELS", "TorchvisionClassifier"]

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class TorchvisionClassifier(nn.Module):
    """A torchvision classifier `name` behind the house's normalisation; `head` names its last
    layer.
    """

    def __init__(
        self,
        name: str,
        head: str,
        *,
        classes: int,
        channels: int,
        size: tuple[int, int],
        mean: Sequence[float],
        std: Sequence[float],
        **args: Any,
    ) -> None:
        from torchvision.models import get_model

        super().__init__()
        self.normalize = Normalize(mean, std)
        self.net = get_model(name, weights=None, num_classes=classes, **args)
        self.head = (f"net.{head}",)
        if channels != 3:
            _replace_stem(self.net, channels)

    def forward(self, images: Tensor) -> Tensor:
        return self.net(self.normalize(images))  # type: ignore[no-any-return]


def _replace_stem(net: nn.Module, channels: int) -> None:
    """Make the first convolution accept another number of channels."""
    name, conv = next((n, m) for n, m in net.named_modules() if isinstance(m, nn.Conv2d))
    fresh = nn.Conv2d(
        channels,
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type]
        conv.stride,  # type: ignore[arg-type]
        conv.padding,  # type: ignore[arg-type]
        bias=conv.bias is not None,
    )
    net.set_submodule(name, fresh)


def _convert(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """torchvision's names -> ours; GoogLeNet's auxiliary classifiers are left out."""
    return {f"net.{k}": v for k, v in state.items() if not k.startswith(("aux1.", "aux2."))}


# name: (last layer, parameters (total, trainable), file with the leading digits of its sha256,
# top-1 in %)
_ROWS = {
    "alexnet": ("classifier.6", (61_100_840, 61_100_840), "alexnet-owt-7be5be79", 56.522),
    "googlenet": ("fc", (6_639_464, 6_624_904), "googlenet-1378be20", 69.778),
    "squeezenet1_0": ("classifier.1", (1_248_424, 1_248_424), "squeezenet1_0-b66bff10", 58.092),
    "squeezenet1_1": ("classifier.1", (1_235_496, 1_235_496), "squeezenet1_1-b8a52dc0", 58.178),
    "shufflenet_v2_x0_5": ("fc", (1_374_744, 1_366_792), "shufflenetv2_x0.5-f707e7126e", 60.552),
    "shufflenet_v2_x1_0": ("fc", (2_294_784, 2_278_604), "shufflenetv2_x1-5666bf0f80", 69.362),
    "shufflenet_v2_x1_5": ("fc", (3_527_064, 3_503_624), "shufflenetv2_x1_5-3c479a10", 72.996),
    "shufflenet_v2_x2_0": ("fc", (7_427_712, 7_393_996), "shufflenetv2_x2_0-8be3c8ee", 76.23),
}
_PAPERS = {
    "alexnet": "https://arxiv.org/abs/1404.5997",
    "googlenet": "https://arxiv.org/abs/1409.4842",
    "squeezenet": "https://arxiv.org/abs/1602.07360",
    "shufflenet": "https://arxiv.org/abs/1807.11164",
}


def _entry(name: str, head: str, parameters: tuple[int, int], file: str, top1: float) -> Entry:
    google = name == "googlenet"  # its published weights expect (x - .5) / .5
    return Entry(
        build=partial(TorchvisionClassifier, name, head),
        task="classify",
        input=Input(
            (224, 224), "rgb", (0.5,) * 3 if google else MEAN, (0.5,) * 3 if google else STD, "crop"
        ),
        parameters=parameters,
        args={"aux_logits": False, "init_weights": True} if google else {},
        weights=(
            Weights(
                tag="tv_in1k",
                url=f"https://download.pytorch.org/models/{file}.pth",
                sha256=file.rpartition("-")[2],
                licence="BSD-3-Clause",
                trained_on="ImageNet-1k",
                classes=1000,
                score={"top1": top1},
                convert=_convert,
            ),
        ),
        tiny={"size": (64, 64)},
        paper=_PAPERS[name.split("_")[0].rstrip("1")],
        licence="BSD-3-Clause",
    )


MODELS = {name: _entry(name, *row) for name, row in _ROWS.items()}
