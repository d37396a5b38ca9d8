"""Fully connected network: what flattening loses against a convolutional network of the same
budget.

784-128-10 on 28x28 gray pictures. Input (B, C, H, W) in [0, 1], output (B, classes) logits.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from sigak.layers.normalize import Normalize
from sigak.models._entry import Entry, Input, init_glorot

__all__ = ["MODELS", "Mlp"]


class Mlp(nn.Module):
    """Flatten, then dense layers of `widths` with ReLU, then one logit per class."""

    head = ("classifier",)

    def __init__(
        self,
        *,
        classes: int,
        channels: int,
        size: tuple[int, int],
        mean: Sequence[float],
        std: Sequence[float],
        widths: Sequence[int] = (128,),
    ) -> None:
        super().__init__()
        self.normalize = Normalize(mean, std)
        self.hidden = nn.Sequential(nn.Flatten())
        last = channels * size[0] * size[1]
        for width in widths:
            self.hidden.append(nn.Linear(last, width))
            self.hidden.append(nn.ReLU())
            last = width
        self.classifier = nn.Linear(last, classes)
        self.apply(init_glorot)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.hidden(self.normalize(images)))  # type: ignore[no-any-return]


MODELS = {
    "mlp": Entry(
        build=Mlp,
        task="classify",
        input=Input((28, 28), "any"),
        parameters=(101_770, 101_770),
        classes=10,
        tiny={"widths": (8,)},
        recipe={"lr": 1e-3, "optimizer": "adam"},
    ),
}
