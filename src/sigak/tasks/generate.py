"""Generation: pictures made of random numbers, by a generator that learns against a discriminator.

Each plays for itself, with the non-saturating loss of Goodfellow et al. 2014
(https://arxiv.org/abs/1406.2661): the discriminator learns to tell real from made, the generator to
have its pictures called real. Neither loss tells how good the pictures are, so the figure that is
watched is a distance between made and held-out pictures: the kernel distance KID.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sigak.augment.pipeline import Pipeline
from sigak.io import image as images
from sigak.recipe import Recipe
from sigak.structures import Batch, Sample, SigakError
from sigak.tasks import Task

__all__ = [
    "LATENT",
    "TASK",
    "Distance",
    "Generate",
    "Generated",
    "RandomFeatures",
    "kid",
    "latents",
    "tile",
]

LATENT = 100  # random numbers a picture is made of, as many as the DCGAN paper takes
_SHEET = 64  # pictures on the sheet of an epoch
_MOST = 5000  # pictures of each kind that the distance compares
_BLOCK = 1000  # rows of a kernel matrix held at once


@dataclass(frozen=True)
class Generated:
    """A made picture: `image` (H, W, C) uint8. The same seed and place make it again."""

    source: str
    image: np.ndarray
    seed: int

    def __str__(self) -> str:
        height, width = self.image.shape[:2]
        return f"{width}x{height} picture of seed {self.seed}"

    def asdict(self) -> dict[str, Any]:
        """{source, seed}; the picture itself is written by `Generate.save`."""
        return {"source": self.source, "seed": self.seed}


@final
class Generate(Task):
    """See the module."""

    name = "generate"
    needs = ("image",)
    generative = True

    def __init__(self, classes: Sequence[str], recipe: Recipe) -> None:
        super().__init__(classes, recipe)
        if recipe.freeze:
            raise SigakError("--freeze keeps a backbone, and a generator has none; leave it out")
        if recipe.l2:
            raise SigakError("--l2 is not for generators; use --weight-decay")

    @property
    def outputs(self) -> int:
        return 0

    def monitor(self, validated: bool) -> str:
        if not validated:
            raise SigakError(
                "a generator is judged by held-out pictures, and there are none; give --val 0.1, "
                "or name a figure with --monitor discriminator_loss"
            )
        return "val_kid"

    def collate(self, samples: Sequence[Sample]) -> Batch:
        return Batch.of(samples)

    def augment(self, size: tuple[int, int]) -> Pipeline | None:
        pipeline = Pipeline.parse(self.recipe.augment, size=size, classes=len(self.classes))
        return pipeline if pipeline else None

    def steps(
        self, network: Callable[..., Any], batch: Batch
    ) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """The discriminator on real and made pictures, then the generator on new ones.

        label_smoothing lowers the target of real pictures alone (one-sided: Salimans et al. 2016,
        https://arxiv.org/abs/1606.03498).
        """
        real, made = network(_noise(batch), batch.images, part="discriminator")
        loss = _bce(real, 1.0 - self.recipe.label_smoothing) + _bce(made, 0.0)
        yield "discriminator", {"loss": loss, "discriminator_loss": loss}
        loss = _bce(network(_noise(batch), part="generator"), 1.0)
        yield "generator", {"loss": loss, "generator_loss": loss}

    def predict(self, network: Callable[[Tensor], Tensor], batch: Batch) -> list[Generated]:
        """One made picture for each of the batch, which only says how many and at which places."""
        return self.generate(network, batch.indices.tolist(), self.recipe.seed, batch.images.device)

    def generate(
        self,
        network: Callable[[Tensor], Tensor],
        places: Sequence[int],
        seed: int,
        device: torch.device | str,
    ) -> list[Generated]:
        """The pictures of `seed` at `places`, whatever others are made beside them."""
        made = network(latents(seed, places).to(device))
        pixels = (made.float() * 255.0).round().clamp(0, 255).to(torch.uint8)
        views = pixels.permute(0, 2, 3, 1).cpu().numpy()
        return [
            Generated(f"sample#{place}", view, seed)
            for place, view in zip(places, views, strict=True)
        ]

    def sheet(
        self, network: Callable[[Tensor], Tensor], device: torch.device | str
    ) -> np.ndarray | None:
        """The same 64 places every time, so that the sheets of two epochs can be compared."""
        made = self.generate(network, range(_SHEET), self.recipe.seed, device)
        return tile([result.image for result in made])

    def metric(self) -> Distance:
        return Distance()

    def draw(self, image: np.ndarray, result: Generated) -> np.ndarray:
        return tile([result.image])

    def save(
        self, results: Sequence[Generated], folder: Path, forms: Sequence[str] = ()
    ) -> list[Path]:
        """0001.png ..., sheet.png with all of them, and samples.json: a list of {file, source,
        seed}.
        """
        self.refuse_forms(forms)
        digits = max(4, len(str(len(results))))
        files = [folder / f"{i + 1:0{digits}d}.png" for i in range(len(results))]
        for path, result in zip(files, results, strict=True):
            images.save(path, result.image)
        sheet, listing = folder / "sheet.png", folder / "samples.json"
        images.save(sheet, tile([result.image for result in results]))
        rows = [{"file": p.name, **r.asdict()} for p, r in zip(files, results, strict=True)]
        listing.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        return [*files, sheet, listing]


def latents(seed: int, places: Sequence[int]) -> Tensor:
    """(N, 100) float32 numbers from N(0, 1), each row a function of (seed, place) alone."""
    if seed < 0:
        raise SigakError(f"--seed must be at least 0, received {seed}")
    rows = [
        np.random.Generator(np.random.Philox(key=[seed, place])).standard_normal(LATENT, np.float32)
        for place in places
    ]
    return torch.from_numpy(np.stack(rows))


def tile(pictures: Sequence[np.ndarray], margin: int = 2) -> np.ndarray:
    """(H, W, C) uint8: pictures of one size side by side in a square of rows, white between."""
    columns = math.ceil(math.sqrt(len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    height, width, channels = pictures[0].shape
    high, wide = height + margin, width + margin
    canvas = np.full((rows * high + margin, columns * wide + margin, channels), 255, np.uint8)
    for place, picture in enumerate(pictures):
        top, left = place // columns * high + margin, place % columns * wide + margin
        canvas[top : top + height, left : left + width] = picture
    return canvas


def _noise(batch: Batch) -> Tensor:
    """Fresh latents (B, 100) from torch's generator, which every training step seeds."""
    return torch.randn(len(batch), LATENT, device=batch.images.device)


def _bce(logits: Tensor, target: float) -> Tensor:
    """Mean sigmoid cross-entropy of logits (B,) that should all be `target`."""
    logits = logits.float()
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))


# --- the distance -------------------------------------------------------------------------------


class Distance:
    """KID between the pictures of the batches and those made beside them, on `RandomFeatures`,
    standardised by those of the batches.

    The first 5,000 pictures of each kind are compared.
    """

    def __init__(self) -> None:
        self.real: list[Tensor] = []
        self.made: list[Tensor] = []
        self.count = 0

    def update(self, results: Sequence[Generated], batch: Batch) -> None:
        """Take in one batch of floating pictures and as many made ones."""
        if self.count < _MOST:
            features = _features(str(batch.images.device))
            pixels = torch.from_numpy(np.stack([r.image for r in results])).permute(0, 3, 1, 2)
            self.real.append(features(batch.images).cpu())
            self.made.append(features(pixels.to(batch.images.device).float() / 255.0).cpu())
        self.count += len(results)

    def merge(self, other: Distance) -> None:
        """Take in what another process found."""
        self.real += other.real
        self.made += other.made
        self.count += other.count

    def compute(self, detail: bool = True) -> dict[str, Any]:
        """{count, kid, features}; kid is NaN for fewer than two pictures."""
        real, made = (torch.cat(rows)[:_MOST] for rows in (self.real, self.made))
        distance = kid(*_standardized(real, made)) if len(real) > 1 else math.nan
        return {"count": self.count, "kid": distance, "features": RandomFeatures.about}


def kid(real: Tensor, made: Tensor) -> float:
    """The squared maximum mean discrepancy between features (N, D) and (M, D), unbiased, with the
    kernel (x.y / D + 1)^3: KID, the lower the nearer, around 0 (and below it by chance) for samples
    of one distribution (Binkowski et al. 2018, https://arxiv.org/abs/1801.01401).
    """
    n, m = len(real), len(made)
    if min(n, m) < 2:
        raise SigakError(f"the kernel distance needs 2 pictures of each kind, received {n} and {m}")
    real, made = real.double(), made.double()
    within = _kernel_sum(real, real, True) / (n * (n - 1))
    within += _kernel_sum(made, made, True) / (m * (m - 1))
    return within - 2.0 * _kernel_sum(real, made, False) / (n * m)


def _standardized(real: Tensor, made: Tensor) -> tuple[Tensor, Tensor]:
    """Both kinds of features by the mean and spread of the real ones: without it the kernel sees
    little but the large mean that features after a ReLU have in common.
    """
    mean, spread = real.mean(0), real.std(0)
    # A feature that hardly varies must not outweigh all others.
    spread = (spread + 0.1 * spread.mean()).clamp_min(1e-6)
    return (real - mean) / spread, (made - mean) / spread


def _kernel_sum(x: Tensor, y: Tensor, others: bool) -> float:
    """The sum of the kernel over all pairs; `others`: without those of a row with itself."""
    total = 0.0
    for rows in torch.split(x, _BLOCK):
        total += float(((rows @ y.T) / x.shape[1] + 1.0).pow(3).sum())
    own = (x.square().sum(1) / x.shape[1] + 1.0).pow(3).sum() if others else 0.0
    return total - float(own)


class RandomFeatures(nn.Module):
    """A small convolutional network with fixed random kernels: images (B, C, H, W) in [0, 1] ->
    (B, 512).

    Features that were learnt from ImageNet say little of pictures unlike it; those of a random
    network rank generators as well there (Naeem et al. 2020, https://arxiv.org/abs/2002.09797),
    and need neither labels nor a download. Distances on them compare runs on the same data with
    each other, not with figures that were published for other features.
    """

    about = "random convolutional network, 32x32 pixels, 512 features, standardised"

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        layers: list[nn.Module] = []
        for before, after in ((3, 32), (32, 64), (64, 128)):
            layer = nn.Conv2d(before, after, 3, padding=1, bias=False)
            spread = math.sqrt(2.0 / (9 * before))  # He et al. 2015: keeps the scale of features
            kernel = torch.randn(layer.weight.shape, generator=generator) * spread
            layer.weight = nn.Parameter(kernel, requires_grad=False)
            layers += [layer, nn.ReLU(), nn.MaxPool2d(2)]
        self.layers = nn.Sequential(*layers, nn.AvgPool2d(2), nn.Flatten())

    def forward(self, pictures: Tensor) -> Tensor:
        color = pictures.expand(-1, 3, -1, -1) if pictures.shape[1] == 1 else pictures[:, :3]
        if color.shape[2:] != (32, 32):
            color = F.interpolate(color, size=(32, 32), mode="bilinear", antialias=True)
        return self.layers(color * 2.0 - 1.0)  # type: ignore[no-any-return]


@lru_cache(maxsize=2)
def _features(device: str) -> RandomFeatures:
    with torch.random.fork_rng([]):  # building layers draws numbers the run counts on
        return RandomFeatures().to(device)


TASK = Generate
