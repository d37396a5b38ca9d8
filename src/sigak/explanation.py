"""Explain: a checkpoint and a picture in, what the answer rests on out.

Grad-CAM for networks with convolutions (Selvaraju et al. 2016, https://arxiv.org/abs/1610.02391),
attention rollout for those that attend from token to token (Abnar and Zuidema 2020,
https://arxiv.org/abs/2005.00928), the gradient at the input where there is neither (Simonyan et al.
2013, https://arxiv.org/abs/1312.6034), and occlusion for every network (Zeiler and Fergus 2013,
https://arxiv.org/abs/1311.2901). Layers are found by running the network, not by their names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from sigak import draw
from sigak.io import image
from sigak.ops.warp import warp_device
from sigak.prediction import Predictor, load
from sigak.structures import Batch, Sample, SigakError
from sigak.tasks.classify import Classification

__all__ = [
    "Explanation", "Features", "Heat", "explain", "grad_cam", "input_gradient", "occlusion",
    "rollout",
]  # fmt: skip

_ROWS = 4  # layers whose feature maps are shown
_CHANNELS = 8  # feature maps of a layer
_FILTERS = 32  # filters of the first layer
_PREFIX = 8  # most tokens that stand for no patch: the class token and registers
_SHARE = 6  # an occluding square is this part of the picture's sides

Score = Callable[[Tensor], Tensor]  # a network's output (B, K) -> what is explained (B,)


@dataclass(frozen=True)
class Heat:
    """One heat map: the method, in words how it was made, and `map` (H, W) float32 from 0 to 1 over
    the picture as it lies in the file. strength: what its 1 stands for, in the method's own unit.
    """

    method: str
    note: str
    map: np.ndarray
    strength: float

    @property
    def peak(self) -> tuple[float, float]:
        """(x, y) of the hottest place in the file, in pixels."""
        y, x = np.unravel_index(int(self.map.argmax()), self.map.shape)
        return float(x) + 0.5, float(y) + 0.5


@dataclass(frozen=True)
class Features:
    """What a layer answered: `maps` (K, h, w) float32 of its strongest channels, whose numbers are
    `channels`.
    """

    layer: str
    maps: np.ndarray
    channels: tuple[int, ...]


@dataclass(frozen=True)
class Explanation:
    """What the answer for one picture rests on.

    picture (H, W, 3) uint8, the file's; target, the class that is explained, and its probability;
    heats in the file's frame; features from shallow to deep; filters (K, h, w, C) float32 of the
    first convolution, None where there is none; note: what this network cannot be asked.
    """

    picture: np.ndarray
    result: Classification
    target: str
    target_score: float
    heats: tuple[Heat, ...]
    features: tuple[Features, ...] = ()
    filters: np.ndarray | None = field(default=None, repr=False)
    note: str = ""

    def asdict(self) -> dict[str, Any]:
        """Plain values for JSON: the answer, and where each method looked."""
        return {
            **self.result.asdict(),
            "target": self.target,
            "target_score": self.target_score,
            "heats": [
                {"method": h.method, "note": h.note, "peak": h.peak, "strength": h.strength}
                for h in self.heats
            ],
            "features": [{"layer": f.layer, "channels": f.channels} for f in self.features],
            "note": self.note,
        }

    def sheet(self) -> np.ndarray:
        """(H, W, 3) uint8: one page with all of it."""
        return _sheet(self)


def explain(
    checkpoint: str | Path | Predictor,
    source: Any,
    *,
    label: str = "",
    layer: str = "",
    device: str = "auto",
) -> Explanation:
    """Why `checkpoint` answers as it does for the one picture `source` (see `sigak.predict`).

    label: the class to explain, by default the answer. layer: the layer Grad-CAM looks at, by
    default the deepest feature map at the resolution of the last convolution.
    Raises SigakError for more than one picture, an unknown class or layer, and other tasks.
    """
    predictor = load(checkpoint, device=device)
    found = image.expand(source)
    if len(found) != 1:
        raise SigakError(f"explain takes one picture, received {len(found)}; name one of them")
    name, thing = found[0]
    sample, result = next(predictor.answers(thing))
    if not isinstance(result, Classification):
        raise SigakError(
            f"explain needs a checkpoint that classifies; this one's task is {predictor.task.name}"
        )
    target = _class_index(label or result.label, predictor.classes)
    with _evaluating(predictor.network):
        heats, convolutions, note = _heats(predictor, sample, target, layer)
        images = _images(predictor, sample)
        features = _features(predictor.network, images, convolutions)
    return Explanation(
        picture=image.read(thing),
        result=replace(result, source=name),
        target=predictor.classes[target],
        target_score=float(result.scores[target]),
        heats=heats,
        features=features,
        filters=_filters(convolutions),
        note=note,
    )


def _class_index(label: str, classes: Sequence[str]) -> int:
    if label not in classes:
        near = ", ".join(get_close_matches(label, classes, 3, 0.4) or classes[:10])
        raise SigakError(f"the checkpoint knows no class {label!r}; did you mean {near}?")
    return list(classes).index(label)


def _images(predictor: Predictor, sample: Sample) -> Tensor:
    """(1, C, H, W) in [0, 1] on the network's device."""
    return Batch.of([sample]).to(predictor.engine.device).floating().images


def _heats(
    predictor: Predictor, sample: Sample, target: int, layer: str
) -> tuple[tuple[Heat, ...], list[_Seen], str]:
    """The heat maps this network can give, its convolutions, and what it cannot give in words."""
    network, images = predictor.network, _images(predictor, sample)
    seen, attention = _trace(network, images)
    convolutions = [s for s in seen if isinstance(s.module, nn.Conv2d) and s.is_map]
    rolled = _rolled(attention, convolutions)
    chosen = _checked(layer, seen) if layer else _deepest(seen, convolutions)
    logit = _logit(target, binary=predictor.task.recipe.label_mode == "binary")
    maps: list[tuple[str, str, Tensor]] = []
    note = ""
    if chosen and (layer or rolled is None):
        maps.append(("Grad-CAM", f"at {chosen}", grad_cam(network, images, logit, chosen)))
    if rolled is not None:
        maps.append(("attention rollout", f"through {len(attention)} layers", rolled))
    if not maps:
        note = (
            "this network has no convolution that Grad-CAM could look at and no class token to "
            "follow, so the input's gradient is shown in their place"
        )
        maps.append(("input gradient", "of the logit", input_gradient(network, images, logit)))
    drops = occlusion(images, lambda some: _probabilities(predictor, some, target))
    maps.append(("occlusion", "fall of the probability", drops.clamp_min(0)))
    return tuple(_heat(*one, sample) for one in maps), convolutions, note


def _logit(target: int, *, binary: bool) -> Score:
    """The target's logit; with one output for two classes its sign says which class it speaks
    for.
    """
    if binary:
        return lambda raw: raw[:, 0] if target else -raw[:, 0]
    return lambda raw: raw[:, target]


def _probabilities(predictor: Predictor, images: Tensor, target: int) -> Tensor:
    """(B,) float64: the target's probability for images (B, C, H, W), as `sigak predict` has it."""
    count = len(images)
    batch = Batch(
        images=images,
        indices=torch.zeros(count, dtype=torch.int64),
        matrix=torch.eye(3, dtype=torch.float64).expand(count, 3, 3),
        sizes=[(images.shape[2], images.shape[3])] * count,
        sources=[""] * count,
    )
    results = predictor.task.predict(predictor.engine, batch)
    return torch.tensor([float(r.scores[target]) for r in results], dtype=torch.float64)


# ------------------------------------------------------------------ looking into a network


@dataclass(frozen=True)
class _Seen:
    """A layer as it ran, and its output's shape."""

    name: str
    module: nn.Module
    shape: tuple[int, ...]

    @property
    def is_map(self) -> bool:
        """Whether it answered (B, C, H, W) with more than one place."""
        return len(self.shape) == 4 and max(self.shape[2:]) > 1


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(training)


@contextmanager
def _captured(network: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
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
            self._note(weights)
            return output, weights
        output = function(*args, **kwargs)
        if function is F.scaled_dot_product_attention:
            self._note(_attention_weights(*args, **kwargs))
        elif function in (F.softmax, torch.softmax, Tensor.softmax):
            self._note(output)
        return output

    def _note(self, weights: Tensor) -> None:
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


def _trace(network: nn.Module, images: Tensor) -> tuple[list[_Seen], list[Tensor]]:
    """Every layer in the order it finished, and the attention weights met on the way."""
    seen: list[_Seen] = []

    def note(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, _: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                seen.append(_Seen(name, module, tuple(output.shape)))

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


def _deepest(seen: Sequence[_Seen], convolutions: Sequence[_Seen]) -> str:
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


def _checked(layer: str, seen: Sequence[_Seen]) -> str:
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
    with torch.enable_grad(), _captured(network, [layer]) as kept:
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
        for part in masks.split(batch)
    ]
    drops = torch.cat(fallen)[:, None, None]
    covered = masks.cpu().double()
    return ((drops * covered).sum(0) / covered.sum(0)).float()


def _squares(size: tuple[int, int], side: tuple[int, int]) -> Tensor:
    """(N, H, W) bool: a window of `side` at every half step, the last ones flush with the edge."""
    starts = []
    for whole, part in zip(size, side, strict=True):
        last = max(0, whole - part)
        starts.append([*range(0, last, max(1, part // 2)), last])
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


def _rolled(attention: Sequence[Tensor], convolutions: Sequence[_Seen]) -> Tensor | None:
    """The rollout where all attention is over the tokens of one grid of patches, else None."""
    if not convolutions or len({len(weights) for weights in attention}) != 1:
        return None
    height, width = convolutions[-1].shape[2:]
    prefix = len(attention[0]) - height * width
    return rollout(attention, (height, width)) if 0 <= prefix <= _PREFIX else None


def _heat(method: str, note: str, found: Tensor, sample: Sample) -> Heat:
    """A map (h, w) over the network's input, taken back to the file's frame."""
    strength = float(found.max())
    scaled = (found / strength if strength > 0 else torch.zeros_like(found)).float().cpu()
    height, width = sample.image.shape[:2]
    rows, columns = scaled.shape
    grow = np.diag([width / columns, height / rows, 1.0])[None]
    # First to the input, its edge cells reaching to the edge; then home, nothing beyond the input.
    canvas = warp_device(scaled[None, None], grow, (height, width), "nearest")
    home = warp_device(canvas, np.linalg.inv(sample.matrix)[None], sample.size, "constant")
    return Heat(method, note, home[0, 0].clamp(0, 1).numpy(), strength)


def _features(
    network: nn.Module, images: Tensor, convolutions: Sequence[_Seen]
) -> tuple[Features, ...]:
    """The strongest channels of convolutions from the first to the last."""
    names = list(dict.fromkeys(s.name for s in convolutions))
    places = np.linspace(0, len(names) - 1, min(_ROWS, len(names))).round().astype(int)
    chosen = [names[i] for i in places]
    with torch.no_grad(), _captured(network, chosen) as kept:
        network(images)
    found = []
    for name in chosen:
        maps = kept[name][0].float().cpu()
        order = maps.abs().mean((1, 2)).argsort(descending=True)[:_CHANNELS]
        found.append(Features(name, maps[order].numpy(), tuple(order.tolist())))
    return tuple(found)


def _filters(convolutions: Sequence[_Seen]) -> np.ndarray | None:
    """(K, h, w, C) of the first convolution; its input channels averaged where they are no
    colours.
    """
    if not convolutions:
        return None
    weight: Tensor = convolutions[0].module.weight.detach().float().cpu()  # type: ignore[assignment,operator,union-attr]
    if weight.shape[1] not in (1, 3):
        weight = weight.mean(1, keepdim=True)
    return weight.permute(0, 2, 3, 1)[:_FILTERS].numpy()


# ------------------------------------------------------------------ the sheet

_SIDE = 256  # pixels of a picture on the sheet
_COLUMNS = 4
_SMALL = (_COLUMNS * (_SIDE + 8)) // _CHANNELS - 8  # of a feature map, so that rows are as wide


def _sheet(found: Explanation) -> np.ndarray:
    result = found.result
    captions = [f"{result.label} {result.score:.1%}"]
    pictures = [found.picture]
    for heat in found.heats:
        captions.append(heat.method)
        pictures.append(_overlay(found.picture, heat.map))
    title = f"{found.target} ({found.target_score:.1%}) in {Path(result.source).name}"
    notes = [f"{heat.method}: {heat.note}" for heat in found.heats] + [found.note] * bool(
        found.note
    )
    parts = [_heading(title), draw.grid(pictures, captions, _COLUMNS, _SIDE)]
    parts += [_heading(note, 14) for note in notes]
    for features in found.features:
        parts.append(_heading(f"{features.layer}: the strongest channels", 14))
        names = [f"#{channel}" for channel in features.channels]
        parts.append(draw.grid([_gray(m) for m in features.maps], names, _CHANNELS, _SMALL))
    if found.filters is not None:
        kernels = [_stretched(kernel) for kernel in found.filters]
        parts.append(_heading("the filters of the first convolution", 14))
        parts.append(draw.grid(kernels, [""] * len(kernels), 2 * _CHANNELS, _SMALL // 2 - 4))
    width = max(part.shape[1] for part in parts)
    return np.vstack(
        [np.pad(p, ((0, 0), (0, width - p.shape[1]), (0, 0)), constant_values=255) for p in parts]
    )


def _heading(words: str, size: int = 18) -> np.ndarray:
    strip = np.full((size + 14, _COLUMNS * (_SIDE + 8), 3), 255, np.uint8)
    return draw.text(strip, (6, 6), words, size=size)


def _overlay(picture: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """The picture in gray, hot places in colour: what is cold stays as it is."""
    from matplotlib import colormaps

    gray = picture.astype(np.float32).mean(2, keepdims=True)
    color = colormaps["turbo"](heat)[..., :3].astype(np.float32) * 255
    share = 0.75 * np.sqrt(heat)[..., None]
    return np.rint(gray * (1 - share) + color * share).astype(np.uint8)


def _gray(values: np.ndarray) -> np.ndarray:
    return _stretched(values[:, :, None])


def _stretched(values: np.ndarray) -> np.ndarray:
    """(H, W, C) uint8, the lowest value black and the highest white."""
    low, high = float(values.min()), float(values.max())
    return np.rint((values - low) * (255 / max(high - low, 1e-12))).astype(np.uint8)
