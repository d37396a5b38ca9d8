"""What a network's answer rests on: the methods, as functions of a network and a picture.

Grad-CAM (Selvaraju et al. 2016, https://arxiv.org/abs/1610.02391), attention rollout (Abnar and
Zuidema 2020, https://arxiv.org/abs/2005.00928), the gradient at the input (Simonyan et al. 2013,
https://arxiv.org/abs/1312.6034), and occlusion (Zeiler and Fergus 2013,
https://arxiv.org/abs/1311.2901). Layers are found by running the network, not by their names.

Networks are to be in evaluation mode (`evaluating`) and are left as they were: no hook stays, and
no parameter's gradient is touched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from sigak.structures import SigakError

__all__ = [
    "Score", "Seen", "captured", "checked_map", "deepest_map", "evaluating", "grad_cam",
    "input_gradient", "occlusion", "rolled_out", "rollout", "trace",
]  # fmt: skip

_PREFIX = 8  # most tokens that stand for no patch: the class token and registers
_SHARE = 6  # an occluding square is this part of the picture's sides

Score = Callable[[Tensor], Tensor]  # what is explained (B,), of a network's output (B, K) or images


@dataclass(frozen=True)
class Seen:
    """A layer as it ran, and its output's shape."""

    name: str
    module: nn.Module
    shape: tuple[int, ...]

    @property
    def is_map(self) -> bool:
        """Whether it answered (B, C, H, W) with more than one place."""
        return len(self.shape) == 4 and max(self.shape[2:]) > 1


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(training)


@contextmanager
def captured(network: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """While it lasts, the outputs of the layers `names`, by name, as the network runs."""
    kept: dict[str, Tensor] = {}
    layers = dict(network.named_modules())

    def keeper(name: str) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        def keep(_: nn.Module, __: Any, output: Tensor) -> Tensor:
            kept[name] = output
            return output.clone()  # a later activation in place must not overwrite what is kept

        return keep

    handles = [layers[name].register_forward_hook(keeper(name)) for name in dict.fromkeys(names)]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


class _Attention(TorchFunctionMode):
    """Notes the weights (N, N), averaged over heads, of every attention in a pass of one
    picture, whether it is fused or written out.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[Tensor] = []

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is F.multi_head_attention_forward:
            kwargs = kwargs | {"need_weights": True, "average_attn_weights": False}
            output, weights = function(*args, **kwargs)
            if weights is not None:
                self._note(weights)
            return output, weights
        output = function(*args, **kwargs)
        if function is F.scaled_dot_product_attention:
            self._note(_attention_weights(*args, **kwargs))
        elif function in (F.softmax, torch.softmax, Tensor.softmax):
            self._note(output)
        return output

    def _note(self, weights: Tensor) -> None:
        """Windows of attention count as several pictures and are left out."""
        if weights.ndim == 4 and len(weights) == 1 and weights.shape[2] == weights.shape[3]:
            self.weights.append(weights[0].mean(0).detach())


def _attention_weights(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **options: Any
) -> Tensor:
    """What scaled_dot_product_attention multiplies the values by."""
    scale = options.get("scale") or 1 / math.sqrt(query.shape[-1])
    scores = query @ key.transpose(-2, -1) * scale
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, -torch.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    return scores.softmax(-1)


def trace(network: nn.Module, images: Tensor) -> tuple[list[Seen], list[Tensor]]:
    """Every layer in the order it finished, and the attention weights met on the way."""
    seen: list[Seen] = []

    def note(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, _: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                seen.append(Seen(name, module, tuple(output.shape)))

        return hook

    handles = [m.register_forward_hook(note(n)) for n, m in network.named_modules() if n]
    attention = _Attention()
    try:
        with torch.no_grad(), attention:
            network(images)
    finally:
        for handle in handles:
            handle.remove()
    return seen, attention.weights


def deepest_map(seen: Sequence[Seen], convolutions: Sequence[Seen]) -> str:
    """The last layer whose output lies on the grid of the last convolution: behind its norm, its
    activation and the residual or joined branches around it, but before any pooling. Empty where
    the only convolution cuts the picture into patches.
    """
    if not convolutions or (len(convolutions) == 1 and _cuts_patches(convolutions[0].module)):
        return ""
    grid = convolutions[-1].shape[2:]
    return [s.name for s in seen if s.is_map and s.shape[2:] == grid][-1]


def _cuts_patches(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.stride == module.kernel_size != (1, 1)


def checked_map(layer: str, seen: Sequence[Seen]) -> str:
    maps = list(dict.fromkeys(s.name for s in seen if s.is_map))
    if layer not in maps:
        near = ", ".join(get_close_matches(layer, maps, 3, 0.3) or maps[-5:])
        raise SigakError(
            f"--layer must name a layer whose output is a feature map, received {layer!r}; "
            + (f"did you mean {near}?" if maps else "this network has none")
        )
    return layer


# ------------------------------------------------------------------ the methods


def grad_cam(network: nn.Module, images: Tensor, score: Score, layer: str) -> Tensor:
    """(h, w), at the resolution of `layer`: where its channels speak for the score (at least 0).

    Each channel of the layer's output counts with the mean of the score's gradient over its places
    (Selvaraju et al. 2016, equations 1 and 2). images (1, C, H, W) in [0, 1]; the network is to be
    in evaluation mode and keeps its gradients.
    """
    # The input asks for a gradient, so that one flows through a frozen network as well.
    with torch.enable_grad(), captured(network, [layer]) as kept:
        raw = network(images.detach().clone().requires_grad_())
        activation = kept[layer]
        (gradient,) = torch.autograd.grad(score(raw).sum(), activation, allow_unused=True)
    if gradient is None:
        raise SigakError(f"the answer does not depend on the layer {layer!r}; name another --layer")
    weights = gradient.mean((2, 3), keepdim=True)
    return (weights * activation).sum(1)[0].relu().detach()


def input_gradient(network: nn.Module, images: Tensor, score: Score) -> Tensor:
    """(H, W): how steeply the score changes with each pixel, the largest channel's (Simonyan et al.
    2013). images (1, C, H, W) in [0, 1].
    """
    with torch.enable_grad():
        asked = images.detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(score(network(asked)).sum(), asked)
    return gradient.abs().amax(1)[0]


def occlusion(
    images: Tensor, score: Score, *, patch: tuple[int, int] | None = None, batch: int = 32
) -> Tensor:
    """(H, W): how far the score falls when a square over that place is hidden, averaged over the
    squares that cover it; negative where hiding helps (Zeiler and Fergus 2013).

    images (1, C, H, W) in [0, 1]; score: images (B, C, H, W) -> (B,); the square, `patch` (H, W)
    pixels, takes the picture's mean colour and moves by half its sides.
    """
    height, width = images.shape[2:]
    side = patch or (max(1, height // _SHARE), max(1, width // _SHARE))
    masks = _squares((height, width), side).to(images.device)
    color = images.mean((2, 3), keepdim=True)
    before = score(images)
    fallen = [
        before.cpu() - score(torch.where(part[:, None], color, images)).cpu()
        for part in torch.split(masks, batch)
    ]
    drops = torch.cat(fallen)[:, None, None]
    covered = masks.cpu().double()
    return ((drops * covered).sum(0) / covered.sum(0)).float()


def _squares(size: tuple[int, int], side: tuple[int, int]) -> Tensor:
    """(N, H, W) bool: a window of `side` at every half step, the last ones flush with the edge."""
    starts = []
    for whole, part in zip(size, side, strict=True):
        last = max(0, whole - part)
        starts.append([*range(0, last, (part + 1) // 2), last])
    masks = torch.zeros(len(starts[0]) * len(starts[1]), *size, dtype=torch.bool)
    for place, (top, left) in enumerate((y, x) for y in starts[0] for x in starts[1]):
        masks[place, top : top + side[0], left : left + side[1]] = True
    return masks


def rollout(attention: Sequence[Tensor], grid: tuple[int, int]) -> Tensor:
    """(h, w): how much of each patch reaches the class token through all layers.

    attention: (N, N) weights per layer, averaged over heads, rows sum to 1; grid (h, w): patches,
    the last h * w tokens. Each layer passes half of a token on as it is, which is the residual
    connection (Abnar and Zuidema 2020). Without a class token the mean over all tokens is taken.
    """
    total = torch.eye(len(attention[0]), device=attention[0].device)
    for weights in attention:
        total = (0.5 * weights + 0.5 * torch.eye(len(weights), device=weights.device)) @ total
    prefix = len(total) - grid[0] * grid[1]
    reached = total[0] if prefix else total.mean(0)
    return reached[prefix:].reshape(grid)


def rolled_out(attention: Sequence[Tensor], convolutions: Sequence[Seen]) -> Tensor | None:
    """The rollout where all attention is over the tokens of one grid of patches, else None."""
    if not convolutions or len({len(weights) for weights in attention}) != 1:
        return None
    height, width = convolutions[-1].shape[2:]
    prefix = len(attention[0]) - height * width
    return rollout(attention, (height, width)) if 0 <= prefix <= _PREFIX else None
