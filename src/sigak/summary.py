"""A network layer by layer, as Keras's `summary` prints it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sigak.models._entry import count_parameters

__all__ = ["summarize"]


def summarize(network: nn.Module, shape: tuple[int, ...]) -> list[tuple[str, str, str]]:
    """(layer, output shape, parameters) of every leaf layer in the order it runs on inputs of
    `shape` (C, H, W).

    Parameters are counted as Keras does, batch-norm statistics included; the last rows are the
    totals.
    """
    rows: list[tuple[str, str, str]] = []
    hooks = []

    def hook(name: str) -> None:
        def note(module: nn.Module, _: object, output: object) -> None:
            size = (
                " x ".join(str(n) for n in output.shape[1:]) if isinstance(output, Tensor) else ""
            )
            own = sum(p.numel() for p in module.parameters()) + sum(
                b.numel() for n, b in module.named_buffers() if n in ("running_mean", "running_var")
            )
            rows.append((f"{name} ({type(module).__name__})", size, f"{own:,}"))

        hooks.append(layers[name].register_forward_hook(note))

    layers = dict(network.named_modules())
    for name, module in layers.items():
        if not list(module.children()):
            hook(name)
    training = network.training
    network.eval()
    with torch.inference_mode():
        network(torch.zeros(1, *shape))
    network.train(training)
    for handle in hooks:
        handle.remove()
    total, trainable = count_parameters(network)
    rows.append(("total", "", f"{total:,}"))
    rows.append(("trainable", "", f"{trainable:,}"))
    return rows
