"""Losses that belong to no single network: plain functions tensor -> tensor."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["binary_cross_entropy", "cross_entropy", "l2_penalty"]


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
        if isinstance(module, nn.Conv2d | nn.Linear) and name not in head
    ]
    return torch.stack([w.float().square().sum() for w in kernels]).sum()
