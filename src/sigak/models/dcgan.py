"""DCGAN: "Unsupervised Representation Learning with Deep Convolutional Generative Adversarial
Networks", Radford, Metz and Chintala 2015. https://arxiv.org/abs/1511.06434

A generator turns random numbers into pictures, a discriminator tells them from real ones, and each
learns against the other. Strided convolutions instead of pooling, batch norm everywhere but where
pictures enter and leave, ReLU in the generator, LeakyReLU .2 in the discriminator, no dense layers
inside, kernels from N(0, .02).

What differs here: the paper draws 64x64 pictures only. Here the smallest maps are 4 to 7 pixels
high and wide and are doubled as often as the size asks for, so that 28 (7, 14, 28), 32 and 64 (4,
8, ... 64) pixels all work; at 64 the network is the paper's.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from sigak.layers.normalize import Normalize
from sigak.models._entry import Entry, Input
from sigak.models._held import held
from sigak.structures import SigakError

__all__ = ["DCGAN", "MODELS"]

_SMALLEST = (4, 7)  # sides of the maps the generator begins with
_WIDEST = 8  # times `width`: no layer has more channels


class DCGAN(nn.Module):
    """Both networks in one module, because they are trained, saved and resumed together.

    width: channels beside the pictures; doubled with every halving, up to 8 times. classes is taken
    and not used: a DCGAN knows no labels.
    """

    head = ()
    parts = {"discriminator": "discriminator", "generator": "generator"}  # noqa: RUF012 - data
    betas = (0.5, 0.999)  # of Adam, as in the paper: the usual .9 makes the two oscillate
    latent = 100  # random numbers a picture is made of
    input_shape = (latent,)  # what it predicts from is no picture

    def __init__(
        self,
        *,
        classes: int,
        channels: int,
        size: tuple[int, int],
        mean: Sequence[float],
        std: Sequence[float],
        width: int = 64,
    ) -> None:
        super().__init__()
        start, doublings = _plan(size)
        widths = [width * min(_WIDEST, 2**i) for i in range(doublings)]
        self.normalize = Normalize(mean, std)
        self.generator = _generator(self.latent, start, widths[::-1], channels)
        self.discriminator = _discriminator(start, widths, channels)
        self.apply(_init)

    def forward(self, latents: Tensor, images: Tensor | None = None, *, part: str = "") -> Any:
        """Latents (B, 100) -> pictures (B, C, H, W) in [0, 1].

        In training `part` names the optimiser that shall move, and one call computes all that its
        loss needs, with gradients for that part alone: processes that train together exchange the
        gradients of one forward per step. "discriminator": the logits (B,) of `images` (B, C, H, W)
        in [0, 1] and of pictures made from `latents`, judged apart so that batch norm does not mix
        them; positive means real. "generator": the logits (B,) of made pictures.
        """
        if part == "discriminator":
            if images is None:
                raise SigakError("the discriminator learns from images too, received latents alone")
            with torch.no_grad():
                made = self.draw(latents)
            return self.judge(images), self.judge(made)
        made = self.draw(latents)
        if part == "generator":
            with held(self.discriminator):
                return self.judge(made)
        return made

    def draw(self, latents: Tensor) -> Tensor:
        """Latents (B, 100) -> pictures (B, C, H, W) in [0, 1]."""
        return self.generator(latents[:, :, None, None]) * 0.5 + 0.5  # type: ignore[no-any-return]

    def judge(self, images: Tensor) -> Tensor:
        """Pictures (B, C, H, W) in [0, 1] -> logits (B,), positive where they look real."""
        return self.discriminator(self.normalize(images)).flatten()  # type: ignore[no-any-return]


def _plan(size: tuple[int, int]) -> tuple[tuple[int, int], int]:
    """(height, width) of the smallest maps, and how often they are doubled to reach `size`."""
    start, doublings = size, 0
    while min(start) > _SMALLEST[1] and start[0] % 2 == start[1] % 2 == 0:
        start, doublings = (start[0] // 2, start[1] // 2), doublings + 1
    if not doublings or not all(_SMALLEST[0] <= side <= _SMALLEST[1] for side in start):
        raise SigakError(
            f"a dcgan draws pictures whose sides are 4, 5, 6 or 7 doubled the same number of "
            f"times, received {size[0]}x{size[1]}; give a --size such as 28, 32 or 64"
        )
    return start, doublings


def _generator(
    latent: int, start: tuple[int, int], widths: Sequence[int], channels: int
) -> nn.Sequential:
    """(B, latent, 1, 1) -> (B, channels, H, W) in [-1, 1]; widths from the smallest maps on."""
    layers: list[nn.Module] = [nn.ConvTranspose2d(latent, widths[0], start, bias=False)]
    for before, after in pairwise(widths):
        layers += [nn.BatchNorm2d(before), nn.ReLU()]
        layers += [nn.ConvTranspose2d(before, after, 4, 2, 1, bias=False)]
    layers += [nn.BatchNorm2d(widths[-1]), nn.ReLU()]
    layers += [nn.ConvTranspose2d(widths[-1], channels, 4, 2, 1, bias=False), nn.Tanh()]
    return nn.Sequential(*layers)


def _discriminator(start: tuple[int, int], widths: Sequence[int], channels: int) -> nn.Sequential:
    """(B, channels, H, W) in [-1, 1] -> (B, 1, 1, 1); widths from the largest maps on."""
    layers: list[nn.Module] = [nn.Conv2d(channels, widths[0], 4, 2, 1, bias=False)]
    for before, after in pairwise(widths):
        layers += [nn.LeakyReLU(0.2), nn.Conv2d(before, after, 4, 2, 1, bias=False)]
        layers += [nn.BatchNorm2d(after)]
    layers += [nn.LeakyReLU(0.2), nn.Conv2d(widths[-1], 1, start, bias=False)]
    return nn.Sequential(*layers)


def _init(module: nn.Module) -> None:
    """Kernels from N(0, .02), the scales of batch norm from N(1, .02)."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)


_RECIPE = {
    "optimizer": "adam",
    "lr": 2e-4,
    "batch": 128,
    "epochs": 25,
    "schedule": "constant",
}


def _row(side: int, color: str, parameters: tuple[int, int], note: str = "") -> Entry:
    return Entry(
        build=DCGAN,
        task="generate",
        input=Input((side, side), color, mean=(0.5,), std=(0.5,)),
        parameters=parameters,
        classes=0,
        tiny={"width": 4},
        paper="https://arxiv.org/abs/1511.06434",
        recipe=_RECIPE,
        note=note,
    )


MODELS = {
    "dcgan": _row(32, "any", (1_729_792, 1_728_128), "half the paper's size, for small pictures"),
    "dcgan-64": _row(64, "rgb", (6_345_984, 6_342_272), "the paper's size"),
}
