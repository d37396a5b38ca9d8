"""Explain: a checkpoint and a picture in, what the answer rests on out, on one sheet.

Grad-CAM for networks with convolutions, attention rollout for those that attend from patch to
patch, the gradient at the input where there is neither, and occlusion for every network (see
`saliency`), all taken back to the frame of the file; the feature maps and the first filters beside
them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sigak import draw
from sigak.io import image
from sigak.ops.warp import warp_device
from sigak.prediction import Predictor, load
from sigak.saliency import (
    Score,
    Seen,
    captured,
    checked_map,
    deepest_map,
    evaluating,
    grad_cam,
    input_gradient,
    occlusion,
    rolled_out,
    trace,
)
from sigak.structures import Batch, Sample, SigakError
from sigak.tasks.classify import Classification
from sigak.tasks.segment import Segment, Segmentation

__all__ = ["Explanation", "Features", "Heat", "explain"]

_ROWS = 4  # layers whose feature maps are shown
_CHANNELS = 8  # feature maps of a layer
_FILTERS = 32  # filters of the first layer


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
    def peak(self) -> tuple[float, float] | None:
        """(x, y) of the hottest place in the file, in pixels; None where the method found none."""
        if not self.map.any():
            return None
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

    picture (H, W, 3) uint8, the file's; target, the class that is explained, and its probability,
    or the share of the picture that it was given;
    heats in the file's frame; features from shallow to deep; filters (K, h, w, C) float32 of the
    first convolution, None where there is none; note: what this network cannot be asked.
    """

    picture: np.ndarray
    result: Classification | Segmentation
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
    predictor.refuse_volumes("explain")
    found = image.expand(source)
    if len(found) != 1:
        raise SigakError(f"explain takes one picture, received {len(found)}; name one of them")
    name, thing = found[0]
    sample, result = next(predictor.answers(thing))
    if not isinstance(result, Classification | Segmentation):
        raise SigakError(
            f"explain needs a checkpoint that classifies or segments; this one's task is "
            f"{predictor.task.name}"
        )
    target = _class_index(label or result.label, predictor.classes)
    with evaluating(predictor.network):
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
) -> tuple[tuple[Heat, ...], list[Seen], str]:
    """The heat maps this network can give, its convolutions, and what it cannot give in words."""
    network, images = predictor.network, _images(predictor, sample)
    seen, attention = trace(network, images)
    convolutions = [s for s in seen if isinstance(s.module, nn.Conv2d) and s.is_map]
    rolled = rolled_out(attention, convolutions)
    chosen = checked_map(layer, seen) if layer else deepest_map(seen, convolutions)
    binary = predictor.task.recipe.label_mode == "binary"
    logit, odds = _logit(target, binary=binary), _log_odds(target, binary=binary)
    if isinstance(predictor.task, Segment):
        region = _region(predictor.engine(images), target, predictor.classes[target])
        logit, odds = _within(region, logit), _within(region, odds)
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
    note = note or _nothing_found(maps)
    drops = occlusion(images, lambda some: odds(predictor.engine(some)))
    maps.append(("occlusion", "fall of the log-odds", drops.clamp_min(0)))
    return tuple(_heat(*one, sample) for one in maps), convolutions, note


def _region(raw: Tensor, target: int, name: str) -> Tensor:
    """(1, 1, H, W) bool: the pixels that were given to the class."""
    region: Tensor = raw.argmax(1, keepdim=True) == target
    if not region.any():
        raise SigakError(f"no pixel of this picture was given to {name}; name a --class that was")
    return region


def _within(region: Tensor, score: Score) -> Score:
    """The score of logits averaged over a region, which makes of a map's what classification has:
    Vinogradova et al. 2020, https://arxiv.org/abs/2002.11434.
    """

    def averaged(raw: Tensor) -> Tensor:
        return score((raw * region).sum((2, 3)) / region.sum())

    return averaged


def _nothing_found(maps: Sequence[tuple[str, str, Tensor]]) -> str:
    """What an empty map means, in words."""
    empty = [f"{method} {where}" for method, where, found in maps if not found.any()]
    if not empty:
        return ""
    return (
        f"{empty[0]} is empty: on average its channels speak against the class everywhere, which "
        "happens above all without ReLU; look at another --layer and at the occlusion"
    )


def _logit(target: int, *, binary: bool) -> Score:
    """The target's logit; with one output for two classes its sign says which class it speaks
    for.
    """
    if binary:
        return lambda raw: raw[:, 0] if target else -raw[:, 0]
    return lambda raw: raw[:, target]


def _log_odds(target: int, *, binary: bool) -> Score:
    """log(p / (1 - p)) of the target: unlike the probability itself it still moves where the
    network is certain.
    """
    if binary:
        return _logit(target, binary=True)

    def score(raw: Tensor) -> Tensor:
        others = torch.cat([raw[:, :target], raw[:, target + 1 :]], 1)
        return (raw[:, target] - others.logsumexp(1)).double()

    return score


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
    network: nn.Module, images: Tensor, convolutions: Sequence[Seen]
) -> tuple[Features, ...]:
    """The strongest channels of convolutions from the first to the last."""
    names = list(dict.fromkeys(s.name for s in convolutions))
    places = np.linspace(0, len(names) - 1, min(_ROWS, len(names))).round().astype(int)
    chosen = [names[i] for i in places]
    with torch.no_grad(), captured(network, chosen) as kept:
        network(images)
    found = []
    for name in chosen:
        maps = kept[name][0].float().cpu()
        order = maps.abs().mean((1, 2)).argsort(descending=True)[:_CHANNELS]
        found.append(Features(name, maps[order].numpy(), tuple(order.tolist())))
    return tuple(found)


def _filters(convolutions: Sequence[Seen]) -> np.ndarray | None:
    """(K, h, w, C) of the first convolution; its input channels averaged where they are no
    colours.
    """
    if not convolutions:
        return None
    weight = convolutions[0].module.get_parameter("weight").detach().float().cpu()
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
    mixed: np.ndarray = np.rint(gray * (1 - share) + color * share)
    return mixed.astype(np.uint8)


def _gray(values: np.ndarray) -> np.ndarray:
    return _stretched(values[:, :, None])


def _stretched(values: np.ndarray) -> np.ndarray:
    """(H, W, C) uint8, the lowest value black and the highest white."""
    low, high = float(values.min()), float(values.max())
    scaled: np.ndarray = np.rint((values - low) * (255 / max(high - low, 1e-12)))
    return scaled.astype(np.uint8)
