"""LeNet-5: "Gradient-based learning applied to document recognition", LeCun et al. 1998.
http://yann.lecun.com/exdb/publis/pdf/lecun-98.pdf

What differs here: the modern reading with 61,706 parameters. The second convolution sees all six
maps (the paper connects some), pooling is a plain average without weights, and the output is one
logit per class. 28x28 pictures are padded to 32x32 by the first convolution, as the paper does.

Input (B, C, H, W) in [0, 1], output (B, classes) logits.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from sigak.layers.normalize import Normalize
from sigak.models._entry import Entry, Input, init_glorot
from sigak.structures import SigakError

__all__ = ["MODELS", "LeNet5"]


class LeNet5(nn.Module):
    """C1 6@5x5, S2, C3 16@5x5, S4, C5 120, F6 84, output; tanh throughout."""

    head = ("output",)

    def __init__(
        self,
        *,
        classes: int,
        channels: int,
        size: tuple[int, int],
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        super().__init__()
        height, width = ((side // 2 - 4) // 2 for side in size)
        if min(height, width) < 1:
            raise SigakError(
                f"lenet5 needs pictures of at least 12x12, received {size[0]}x{size[1]}; "
                "give a larger --size, such as 28"
            )
        self.normalize = Normalize(mean, std)
        self.features = nn.Sequential(
            nn.Conv2d(channels, 6, 5, padding=2),
            nn.Tanh(),
            nn.AvgPool2d(2),
            nn.Conv2d(6, 16, 5),
            nn.Tanh(),
            nn.AvgPool2d(2),
        )
        self.dense = nn.Sequential(
            nn.Flatten(),
            nn.Linear(16 * height * width, 120),
            nn.Tanh(),
            nn.Linear(120, 84),
            nn.Tanh(),
        )
        self.output = nn.Linear(84, classes)
        self.apply(init_glorot)

    def forward(self, images: Tensor) -> Tensor:
        return self.output(self.dense(self.features(self.normalize(images))))  # type: ignore[no-any-return]


MODELS = {
    "lenet5": Entry(
        build=LeNet5,
        task="classify",
        input=Input((28, 28), "any"),
        parameters=(61_706, 61_706),
        classes=10,
        paper="http://yann.lecun.com/exdb/publis/pdf/lecun-98.pdf",
        recipe={"lr": 2e-3, "optimizer": "adam"},
    ),
}
