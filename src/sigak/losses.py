"""Losses that belong to no single network: plain functions tensor -> tensor."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sigak.structures import IGNORE, SigakError

__all__ = [
    "PIXEL_LOSSES",
    "binary_cross_entropy",
    "cross_entropy",
    "dice",
    "focal",
    "l2_penalty",
    "lovasz_softmax",
    "pixel_cross_entropy",
    "pixel_loss",
]


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Mean softmax cross-entropy of logits (B, K) with labels (B,) int64 or class weights (B, K).

    `smoothing` spreads that share of every label over all classes (Szegedy et al. 2015, arXiv
    1512.00567).
    """
    return F.cross_entropy(logits.float(), labels, label_smoothing=smoothing)


def binary_cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Mean sigmoid cross-entropy of one logit (B, 1) a picture with labels (B,) 0 or 1, or (B, 2)
    weights.
    """
    truth = labels[:, 1].float() if labels.ndim == 2 else labels.float()
    truth = truth * (1.0 - smoothing) + 0.5 * smoothing
    return F.binary_cross_entropy_with_logits(logits.float()[:, 0], truth)


def l2_penalty(network: nn.Module, head: tuple[str, ...]) -> Tensor:
    """Sum of squares of every convolution and dense kernel but those of the `head` layers (Keras's
    l2).
    """
    kernels = [
        module.weight
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d | nn.Conv3d | nn.Linear) and name not in head
    ]
    return torch.stack([w.float().square().sum() for w in kernels]).sum()


# ------------------------------------------------------------------ of pixels


def _counted(logits: Tensor, maps: Tensor) -> tuple[Tensor, Tensor]:
    """The pixels that are not IGNORE: logits (N, K) float32 and labels (N,) int64."""
    known = maps != IGNORE
    rows = logits.float().movedim(1, -1)[known]
    return rows, maps[known].long()


def pixel_cross_entropy(logits: Tensor, maps: Tensor) -> Tensor:
    """Mean softmax cross-entropy of logits (B, K, H, W) over the pixels of class maps (B, H, W)
    uint8 that are not IGNORE; 0 where all are. As every loss of pixels it takes volumes too, (B, K,
    D, H, W) and (B, D, H, W).
    """
    total = F.cross_entropy(logits.float(), maps.long(), ignore_index=IGNORE, reduction="sum")
    return total / (maps != IGNORE).sum().clamp_min(1)


def focal(logits: Tensor, maps: Tensor, gamma: float = 2.0) -> Tensor:
    """`pixel_cross_entropy` with every pixel's share multiplied by (1 - p)^gamma, where p is the
    probability of its class: Lin et al. 2017, https://arxiv.org/abs/1708.02002.
    """
    rows, labels = _counted(logits, maps)
    told = -F.cross_entropy(rows, labels, reduction="none")  # log p
    return ((1 - told.exp()) ** gamma * -told).sum() / max(1, len(labels))


def dice(logits: Tensor, maps: Tensor) -> Tensor:
    """1 - Dice of the probabilities: 2 sum(p t) / (sum(p) + sum(t)) over all known pixels of the
    batch, a mean over the classes that occur in it. Milletari et al. 2016,
    https://arxiv.org/abs/1606.04797, with plain sums below the line.
    """
    rows, labels = _counted(logits, maps)
    chances = rows.softmax(1)
    truth = F.one_hot(labels, rows.shape[1]).to(chances)
    support = truth.sum(0)
    overlap = 2 * (chances * truth).sum(0) / (chances.sum(0) + support).clamp_min(1e-7)
    present = support > 0
    return ((1 - overlap) * present).sum() / present.sum().clamp_min(1)


def lovasz_softmax(logits: Tensor, maps: Tensor) -> Tensor:
    """The Jaccard index of a class, carried over from sets to probabilities by its Lovasz
    extension; a mean over the classes that occur in the batch. Berman et al. 2018,
    https://arxiv.org/abs/1705.08790.
    """
    rows, labels = _counted(logits, maps)
    chances = rows.softmax(1)
    found = []
    for label in torch.unique(labels).tolist():  # type: ignore[no-untyped-call]
        truth = (labels == label).float()
        errors, order = (truth - chances[:, label]).abs().sort(descending=True)
        truth = truth[order]
        # The Jaccard loss of the set of the n largest errors, for every n; its steps are the
        # weights of the errors.
        missed = truth.sum() - truth.cumsum(0)
        loss = 1 - missed / (truth.sum() + (1 - truth).cumsum(0))
        weights = torch.cat([loss[:1], loss[1:] - loss[:-1]])
        found.append(errors @ weights)
    return torch.stack(found).mean() if found else rows.sum()


PIXEL_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ce": pixel_cross_entropy,
    "dice": dice,
    "focal": focal,
    "lovasz": lovasz_softmax,
}


def pixel_loss(spec: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss that a text names: one of `PIXEL_LOSSES` or a sum such as "ce+dice" or
    "ce+0.5*lovasz".
    """
    parts: list[tuple[float, Callable[[Tensor, Tensor], Tensor]]] = []
    for word in spec.split("+"):
        weight, star, name = word.strip().rpartition("*")
        try:
            share = float(weight) if star else 1.0
            parts.append((share, PIXEL_LOSSES[name.strip()]))
        except (KeyError, ValueError):
            raise SigakError(
                f"--loss is a sum of {', '.join(PIXEL_LOSSES)} such as ce+dice or ce+0.5*lovasz, "
                f"received {spec!r}"
            ) from None

    def total(logits: Tensor, maps: Tensor) -> Tensor:
        return torch.stack([share * loss(logits, maps) for share, loss in parts]).sum()

    return total
