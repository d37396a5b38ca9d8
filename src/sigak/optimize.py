"""Optimisers and schedules by name, and which parameters they move at what rate."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sigak.recipe import Recipe
from sigak.structures import SigakError

__all__ = [
    "Muon",
    "build",
    "build_parts",
    "check",
    "factor",
    "freeze",
    "in_head",
    "moving_average",
    "norms_for",
    "orthogonalize",
    "restore",
    "set_lr",
]

# What does not fit a step over all parameters: LBFGS evaluates the loss several times, SparseAdam
# takes sparse gradients alone, and PyTorch's Muon matrices alone, so there is one of our own.
_UNFIT = ("Optimizer", "LBFGS", "SparseAdam", "Muon")
NAMES = {"momentum": "SGD", "sgd": "SGD", "muon": "Muon"} | {
    name.lower(): name
    for name in dir(torch.optim)
    if inspect.isclass(getattr(torch.optim, name)) and name not in _UNFIT
}


class Muon(torch.optim.Optimizer):
    """Nesterov momentum whose every direction is given the same length: Jordan et al. 2024,
    https://kellerjordan.github.io/posts/muon/.

    A kernel (rows, ...) is taken as a matrix (rows, columns). A group's "role" says what is done:
    "kernel" as above; "scale-free" likewise, and the kernel is kept at the norm sqrt(rows), so that
    a rate means the same angle all the time; "rest" (biases, norms, the head) by Adam at a tenth
    of the rate.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 0.02,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "betas": betas, "weight_decay": weight_decay}
        super().__init__(params, defaults | {"role": "kernel"})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Move every parameter that has a gradient; returns what `closure`, if any, returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            move = self._adam if group["role"] == "rest" else self._orthogonal
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    move(parameter, parameter.grad, group)
        return loss

    def _orthogonal(self, kernel: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[kernel]
        if not state:
            state["momentum"] = torch.zeros_like(kernel)
        state["momentum"].mul_(group["momentum"]).add_(gradient)
        ahead = gradient.add(state["momentum"], alpha=group["momentum"])
        if group["role"] == "scale-free":
            kernel.mul_(len(kernel) ** 0.5 / kernel.norm().clamp_min(1e-12))
        moved = orthogonalize(ahead.flatten(1)).reshape(kernel.shape)
        # A tall matrix has as many directions as columns: the same step for each of its rows.
        kernel.add_(moved, alpha=-group["lr"] * max(1.0, len(kernel) / kernel[0].numel()) ** 0.5)

    def _adam(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            state["mean"], state["square"] = (
                torch.zeros_like(parameter),
                torch.zeros_like(parameter),
            )
        state["step"] += 1
        (early, late), step = group["betas"], int(state["step"])
        state["mean"].lerp_(gradient, 1 - early)
        state["square"].lerp_(gradient.square(), 1 - late)
        spread = (state["square"] / (1 - late**step)).sqrt_().add_(1e-8)
        parameter.addcdiv_(state["mean"], spread, value=-0.1 * group["lr"] / (1 - early**step))


def orthogonalize(matrix: Tensor, steps: int = 3) -> Tensor:
    """(rows, columns) -> U V^T of its singular value decomposition U S V^T, roughly: the singular
    values end between about .7 and 1.2, but those that were below a tenth of the norm lower.

    By Newton-Schulz steps with the coefficients of Jordan et al. 2024. Each is a polynomial of the
    Gram matrix, and polynomials of one matrix commute: so the steps are taken on the small square
    matrix, and the large one is multiplied twice, not twice a step.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    wide = (matrix.T if tall else matrix).float()
    wide = wide / wide.norm().clamp_min(1e-12)
    gram = wide @ wide.T
    unit = torch.eye(len(gram), device=gram.device)
    total = unit
    for _ in range(steps):
        factor = 3.4445 * unit + gram @ (2.0315 * gram - 4.7750 * unit)
        total = factor @ total
        gram = factor @ gram @ factor
    found: Tensor = (total @ wide).to(matrix.dtype)
    return found.T if tall else found


def build_parts(
    network: nn.Module, head: tuple[str, ...], recipe: Recipe, pretrained: bool
) -> dict[str, torch.optim.Optimizer]:
    """One optimiser for each of the network's `parts` {name: submodule}; "main" for all of a
    network that has none. A network's `betas` are those of its Adam, its `recipes` {name: changes}
    what a part does otherwise. A part without a head moves at the full rate, pretrained or not.
    """
    parts: dict[str, str] = getattr(network, "parts", {"main": ""})
    recipes: dict[str, dict[str, Any]] = getattr(network, "recipes", {})
    optimizers = {}
    for name, path in parts.items():
        inside = f"{path}." if path else ""
        own = tuple(layer.removeprefix(inside) for layer in head if layer.startswith(inside))
        changed = replace(recipe, **recipes.get(name, {}))
        part = network.get_submodule(path)
        optimizers[name] = build(part, own, changed, pretrained and bool(own))
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
    kind = _class(recipe.optimizer)
    groups: dict[tuple[bool, bool, str], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        full = not pretrained or in_head(name, head)
        role = _muon_role(network, head, name, parameter) if kind is Muon else ""
        groups.setdefault((parameter.ndim > 1, full, role), []).append(parameter)
    listed: list[dict[str, Any]] = []
    for (decays, at_full_rate, role), parameters in groups.items():
        rate = recipe.lr if at_full_rate else recipe.lr * recipe.backbone_lr
        decay = recipe.weight_decay if decays else 0.0
        group = {"params": parameters, "lr": rate, "base_lr": rate, "weight_decay": decay}
        listed.append(group | ({"role": role} if role else {}))
    return kind(listed, **_options(kind, recipe))  # type: ignore[no-any-return]


def _muon_role(
    network: nn.Module, head: tuple[str, ...], name: str, parameter: nn.Parameter
) -> str:
    """What Muon does with a parameter; see there. A network's `scale_free` names the layers whose
    kernels may be multiplied by any number, since a norm follows.
    """
    if parameter.ndim < 2 or in_head(name, head):
        return "rest"
    return "scale-free" if in_head(name, getattr(network, "scale_free", ())) else "kernel"


def _class(name: str) -> Any:
    found = NAMES.get(name.lower())
    if found is None:
        from difflib import get_close_matches

        near = ", ".join(get_close_matches(name.lower(), NAMES, 3, 0.5)) or ", ".join(sorted(NAMES))
        raise SigakError(f"there is no optimiser called {name!r}; did you mean {near}?")
    return Muon if found == "Muon" else getattr(torch.optim, found)


def _options(kind: Any, recipe: Recipe) -> dict[str, Any]:
    """Constructor options this optimiser knows; fused kernels where PyTorch has them."""
    known = inspect.signature(kind).parameters
    options: dict[str, Any] = {"lr": recipe.lr}
    if kind in (torch.optim.SGD, torch.optim.RMSprop, Muon):
        options["momentum"] = recipe.momentum
    if "fused" in known and kind.__name__ in ("SGD", "Adam", "AdamW", "Adagrad"):
        options["fused"] = True
    return options


def factor(recipe: Recipe, step: float, steps_per_epoch: int) -> float:
    """The share of the base rate at `step` (0 ..): warm-up, then the schedule over the epochs that
    remain.

    A pure function of the step, so a resumed run needs no schedule state. step: 1 until half of
    the training, then .1, then .01 from three quarters; poly: (1 - x)^.9 over the share x that is
    done; exponential: falls to .01 at the end; onecycle: up from .04 over the first 30 %, then a
    cosine to 0 (Smith 2018, arXiv 1803.09820).
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
    if recipe.schedule == "poly":
        return float((1 - x) ** 0.9)
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


def moving_average(decay: float) -> Callable[[Sequence[Tensor], Sequence[Tensor], Any], None]:
    """What turns the average of n steps into that of n + 1, in place: the older share is `decay`,
    and less in the first steps, (1 + n) / (10 + n), so that what training began with is soon
    forgotten.
    """

    @torch.no_grad()
    def update(averaged: Sequence[Tensor], current: Sequence[Tensor], steps: Any) -> None:
        count = float(steps)
        share = 1 - min(decay, (1 + count) / (10 + count))
        for old, new in zip(averaged, current, strict=True):
            if old.is_floating_point():
                old.lerp_(new.to(old), share)
            else:
                old.copy_(new)

    return update


def in_head(name: str, head: tuple[str, ...]) -> bool:
    """Whether `name` is one of the head's layers or something in one."""
    return any(name == part or name.startswith(f"{part}.") for part in head)


def freeze(network: nn.Module, head: tuple[str, ...], *, frozen: bool, norms: bool) -> None:
    """Freeze (or let go) everything but the head's layers; what a network names in `fixed` never
    moves; `norms` keeps the backbone's batch norm
    in evaluation mode, so that it does not forget the statistics it was trained with.
    """
    for name, parameter in network.named_parameters():
        moves = not frozen or in_head(name, head)
        parameter.requires_grad_(moves and name not in getattr(network, "fixed", ()))
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
