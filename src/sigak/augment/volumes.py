"""Augmentation of volumes: mirrors along the axes, and brightness and contrast.

What is drawn is a function of (seed, epoch, sample), as for pictures.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sigak.augment.draws import Draws
from sigak.structures import Batch, SigakError

__all__ = ["VolumeAugmentation"]

_AXES = "dhw"  # the last three of a batch's


@dataclass(frozen=True)
class VolumeAugmentation:
    """flip: the axes, of "dhw", along which a volume is mirrored with chance 1/2; brightness: what
    is added to its values at most, either way; contrast: by what share of their distance from .5
    that is stretched or shrunk at most.
    """

    flip: str = ""
    brightness: float = 0.0
    contrast: float = 0.0

    @classmethod
    def parse(cls, text: str) -> VolumeAugmentation | None:
        """From words such as "flip=dhw,brightness=0.1,contrast=0.1"; None for "none". Raises
        SigakError for other words.
        """
        said = dict(word.strip().partition("=")[::2] for word in text.split(",") if word.strip())
        flip = said.pop("flip", "")
        try:
            shares = {name: float(said.pop(name, 0)) for name in ("brightness", "contrast")}
        except ValueError:
            shares = {"brightness": -1.0}
        fits = all(0 <= share < 1 for share in shares.values())
        if not fits or set(flip) - set(_AXES) or set(said) - {"none"}:
            raise SigakError(
                f"--augment of volumes takes flip with the axes d, h and w, brightness and "
                f"contrast, such as flip=dhw,brightness=0.1,contrast=0.1, or none; received "
                f"{text!r}"
            )
        made = cls(flip, **shares)
        return None if made == cls() else made

    def __call__(self, batch: Batch, seed: int, epoch: int) -> Batch:
        """The batch with images (B, C, D, H, W) in [0, 1] and class maps (B, D, H, W) changed."""
        draws = Draws(seed, epoch, batch.indices.cpu().numpy())
        images, maps = batch.images, batch.class_maps
        for axis in self.flip:
            chosen = torch.from_numpy(draws.chance(f"flip {axis}")).to(images.device)
            images = _mirrored(images, chosen, _AXES.index(axis) - 3)
            maps = None if maps is None else _mirrored(maps, chosen, _AXES.index(axis) - 3)
        if self.brightness or self.contrast:
            gain, offset = (
                torch.from_numpy(draws.uniform(name, -share, share)).to(images)
                for name, share in (("contrast", self.contrast), ("brightness", self.brightness))
            )
            gain, offset = (one.view(-1, 1, 1, 1, 1) for one in (1 + gain, offset))
            images = ((images - 0.5) * gain + 0.5 + offset).clamp_(0, 1)
        return replace(batch, images=images, class_maps=maps)


def _mirrored(values: Tensor, chosen: Tensor, axis: int) -> Tensor:
    """`values` with the rows that are `chosen` (B,) bool mirrored along `axis`."""
    return torch.where(chosen.view(-1, *[1] * (values.ndim - 1)), values.flip(axis), values)
