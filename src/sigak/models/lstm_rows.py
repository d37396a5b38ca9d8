"""LSTM over rows: a picture read from top to bottom, one row a step, by "Long Short-Term Memory",
Hochreiter and Schmidhuber 1997. https://doi.org/10.1162/neco.1997.9.8.1735

One layer with the forget gate of Gers et al. 2000; the state after the last row decides. First
weights as in Keras: Glorot for the rows, an orthogonal matrix for the state, forget bias 1. PyTorch
adds two biases where Keras has one, so there are 4 * hidden parameters more; the second starts at
zero.

Input (B, C, H, W) in [0, 1], output (B, classes) logits.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from sigak.layers.normalize import Normalize
from sigak.models._entry import Entry, Input, init_glorot

__all__ = ["MODELS", "LstmRows"]


class LstmRows(nn.Module):
    """Rows as a sequence of vectors of W * C numbers, an LSTM of `hidden` units, one logit per
    class. H may be any: the weights depend on W alone.
    """

    head = ("classifier",)

    def __init__(
        self,
        *,
        classes: int,
        channels: int,
        size: tuple[int, int],
        mean: Sequence[float],
        std: Sequence[float],
        hidden: int = 128,
    ) -> None:
        super().__init__()
        self.normalize = Normalize(mean, std)
        self.lstm = nn.LSTM(channels * size[1], hidden, batch_first=True)
        self.classifier = nn.Linear(hidden, classes)
        self._begin()

    def _begin(self) -> None:
        init_glorot(self.classifier)
        for name, weights in self.lstm.named_parameters():
            if name.startswith("weight_ih"):
                nn.init.xavier_uniform_(weights)
            elif name.startswith("weight_hh"):
                nn.init.orthogonal_(weights)
            else:
                nn.init.zeros_(weights)
            if name.startswith("bias_ih"):  # the gates: input, forget, cell, output
                nn.init.ones_(weights.chunk(4)[1])

    def forward(self, images: Tensor) -> Tensor:
        rows = self.normalize(images).permute(0, 2, 3, 1).flatten(2)  # (B, H, W * C)
        states, _ = self.lstm(rows)  # (B, H, hidden)
        return self.classifier(states[:, -1])  # type: ignore[no-any-return]


MODELS = {
    "lstm-rows": Entry(
        build=LstmRows,
        task="classify",
        input=Input((28, 28), "any"),
        parameters=(82_186, 82_186),
        classes=10,
        tiny={"hidden": 8},
        paper="https://doi.org/10.1162/neco.1997.9.8.1735",
        recipe={"lr": 3e-3, "optimizer": "adam"},
        note="512 more than Keras's 81,674: two biases per gate, of which Keras has one",
    ),
}
