"""Optimisers and schedules by name, and which parameters they move at what rate."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from sigak.recipe import Recipe
from sigak.structures import SigakError

__all__ = [
    "build",
    "build_parts",
    "check",
    "factor",
    "freeze",
    "in_head",
    "norms_for",
    "restore",
    "set_lr",
]

# What does not fit a step over all parameters: LBFGS evaluates the loss several times, SparseAdam
# takes sparse gradients alone, Muon matrices alone.
_UNFIT = ("Optimizer", "LBFGS", "SparseAdam", "Muon")
NAMES = {"momentum": "SGD", "sgd": "SGD"} | {
    name.lower(): name
    for name in dir(torch.optim)
    if inspect.isclass(getattr(torch.optim, name)) and name not in _UNFIT
}


def build_parts(
    network: nn.Module, head: tuple[str, ...], recipe: Recipe, pretrained: bool
) -> dict[str, torch.optim.Optimizer]:
    """One optimiser for each of the network's `parts` {name: submodule}; "main" for all of a
    network that has none. A network's `betas` are those of its Adam. Without a head all of it moves
    at the full rate, pretrained or not.
    """
    parts: dict[str, str] = getattr(network, "parts", {"main": ""})
    optimizers = {
        name: build(network.get_submodule(path), head, recipe, pretrained and bool(head))
        for name, path in parts.items()
    }
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            if "betas" in group:
                group["betas"] = getattr(network, "betas", group["betas"])
    return optimizers


def build(
    network: nn.Module, head: tuple[str, ...], recipe: Recipe, pretrained: bool
) -> torch.optim.Optimizer:
    """The recipe's optimiser over `network`: kernels decay, biases and norms do not; a pretrained
    backbone moves at `backbone_lr` times the rate of the head. Each group keeps its own full rate
    in "base_lr".
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        full = not pretrained or in_head(name, head)
        groups.setdefault((parameter.ndim > 1, full), []).append(parameter)
    listed = []
    for (decays, at_full_rate), parameters in groups.items():
        rate = recipe.lr if at_full_rate else recipe.lr * recipe.backbone_lr
        decay = recipe.weight_decay if decays else 0.0
        listed.append({"params": parameters, "lr": rate, "base_lr": rate, "weight_decay": decay})
    kind = _class(recipe.optimizer)
    return kind(listed, **_options(kind, recipe))  # type: ignore[no-any-return]


def _class(name: str) -> Any:
    found = NAMES.get(name.lower())
    if found is None:
        from difflib import get_close_matches

        near = ", ".join(get_close_matches(name.lower(), NAMES, 3, 0.5)) or ", ".join(sorted(NAMES))
        raise SigakError(f"there is no optimiser called {name!r}; did you mean {near}?")
    return getattr(torch.optim, found)


def _options(kind: Any, recipe: Recipe) -> dict[str, Any]:
    """Constructor options this optimiser knows; fused kernels where PyTorch has them."""
    known = inspect.signature(kind).parameters
    options: dict[str, Any] = {"lr": recipe.lr}
    if kind in (torch.optim.SGD, torch.optim.RMSprop):
        options["momentum"] = recipe.momentum
    if "fused" in known and kind.__name__ in ("SGD", "Adam", "AdamW", "Adagrad"):
        options["fused"] = True
    return options


def factor(recipe: Recipe, step: float, steps_per_epoch: int) -> float:
    """The share of the base rate at `step` (0 ..): warm-up, then the schedule over the epochs that
    remain.

    A pure function of the step, so a resumed run needs no schedule state. step: 1 until half of
    the training, then .1, then .01 from three quarters; exponential: falls to .01 at the end;
    onecycle: up from .04 over the first 30 %, then a cosine to 0 (Smith 2018, arXiv 1803.09820).
    """
    warmup = recipe.warmup * steps_per_epoch
    if step < warmup:
        return (step + 1) / (warmup + 1)
    last = recipe.epochs * steps_per_epoch
    x = min(1.0, (step - warmup) / max(1.0, last - warmup))
    if recipe.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * x))
    if recipe.schedule == "linear":
        return 1 - x
    if recipe.schedule == "step":
        return 1.0 if x < 0.5 else 0.1 if x < 0.75 else 0.01
    if recipe.schedule == "exponential":
        return float(0.01**x)
    if recipe.schedule == "onecycle":
        return 0.04 + 0.96 * x / 0.3 if x < 0.3 else 0.5 * (1 + math.cos(math.pi * (x - 0.3) / 0.7))
    return 1.0


def set_lr(optimizer: torch.optim.Optimizer, share: float) -> float:
    """Set every group to `share` of its base rate; returns the highest rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * share
    return float(max(group["lr"] for group in optimizer.param_groups))


def restore(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Take up a saved state, every buffer in the memory layout of its parameter: the fused kernels
    walk both as flat memory and would pair the wrong values where one is channels_last and the
    other is not.
    """
    optimizer.load_state_dict(state)
    for parameter, buffers in optimizer.state.items():
        for name, value in buffers.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                buffers[name] = torch.empty_like(parameter).copy_(value)


def in_head(name: str, head: tuple[str, ...]) -> bool:
    """Whether `name` is one of the head's layers or something in one."""
    return any(name == part or name.startswith(f"{part}.") for part in head)


def freeze(network: nn.Module, head: tuple[str, ...], *, frozen: bool, norms: bool) -> None:
    """Freeze (or let go) everything but the head's layers; `norms` keeps the backbone's batch norm
    in evaluation mode, so that it does not forget the statistics it was trained with.
    """
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(not frozen or in_head(name, head))
    for name, module in network.named_modules():
        if norms and isinstance(module, _BatchNorm) and not in_head(name, head):
            module.eval()


@contextmanager
def norms_for(network: nn.Module, pictures: int) -> Iterator[None]:
    """Training on `pictures` at once: batch norm takes its running statistics for a lone picture,
    which has no spread of its own.
    """
    training = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.training]
    lone = training if pictures == 1 else []
    for module in lone:
        module.eval()
    try:
        yield
    finally:
        for module in lone:
            module.train()


def check(recipe: Recipe) -> None:
    """SigakError before any work if the recipe names an optimiser that does not exist."""
    _class(recipe.optimizer)
