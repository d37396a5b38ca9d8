"""Every network of timm by its own name (https://github.com/huggingface/pytorch-image-models).

timm builds the networks and holds their published weights; ours is the joint: the house's
arguments, normalisation inside, and a table of facts (`timm.json`) that lists them without building
one. `python -m sigak.models.timm_nets` counts the installed timm's networks anew and rewrites the
table.

Input (B, C, H, W) in [0, 1], output (B, classes) logits.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sigak.layers.normalize import Normalize
from sigak.models._entry import Entry, Input, Weights, count_parameters

__all__ = ["MODELS", "TimmClassifier"]

TABLE = Path(__file__).with_name("timm.json")


class TimmClassifier(nn.Module):
    """A timm network `name` behind the house's normalisation. `head` names its classifier
    layers.
    """

    def __init__(
        self,
        name: str,
        *,
        classes: int,
        channels: int,
        size: tuple[int, int],
        mean: Sequence[float],
        std: Sequence[float],
        **args: Any,
    ) -> None:
        import timm

        super().__init__()
        config = timm.get_pretrained_cfg(name)
        # Vision transformers learn a place code per patch and must be told another input size.
        if config.fixed_input_size and tuple(config.input_size[1:]) != tuple(size):
            args["img_size"] = tuple(size)
        self.normalize = Normalize(mean, std)
        self.net = timm.create_model(name, num_classes=classes, in_chans=channels, **args)
        classifier = config.classifier
        heads = (classifier,) if isinstance(classifier, str) else tuple(classifier or ())
        self.head = tuple(f"net.{part}" for part in heads)

    def forward(self, images: Tensor) -> Tensor:
        return self.net(self.normalize(images))  # type: ignore[no-any-return]


def _convert(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """timm's names -> ours: everything stands below `net.`."""
    return {f"net.{name}": value for name, value in state.items()}


def _entry(name: str, row: dict[str, Any]) -> Entry:
    weights = tuple(
        Weights(
            tag=tag,
            url=f"https://huggingface.co/timm/{name}.{tag}/resolve/main/model.safetensors",
            sha256="",  # the hub publishes none beside its files
            licence=licence,
            trained_on="ImageNet-1k" if classes == 1000 else "see the tag",
            classes=classes,
            convert=_convert,
        )
        for tag, licence, classes in row["weights"]
    )
    _, height, width = row["input"]
    return Entry(
        build=partial(TimmClassifier, name),
        task="classify",
        input=Input((height, width), "rgb", tuple(row["mean"]), tuple(row["std"]), fit="crop"),
        parameters=(row["total"], row["trainable"]),
        classes=row["classes"],
        weights=weights,
        licence=row["weights"][0][1] if row["weights"] else "Apache-2.0",
    )


def _row(name: str) -> dict[str, Any]:
    """The facts of one timm network, counted on the meta device (no memory, no weights)."""
    import timm

    config = timm.get_pretrained_cfg(name)
    with torch.device("meta"):
        total, trainable = count_parameters(timm.create_model(name))
    tags = timm.list_models(f"{name}.*", pretrained=True, include_tags=True)
    configs = {full.partition(".")[2]: timm.get_pretrained_cfg(full) for full in tags}
    own = [t for t, c in configs.items() if c.tag == config.tag]
    ordered = own + [t for t in configs if t not in own]
    return {
        "total": total,
        "trainable": trainable,
        "input": list(config.input_size),
        "mean": list(config.mean),
        "std": list(config.std),
        "classes": config.num_classes,
        "weights": [[t, configs[t].license or "unknown", configs[t].num_classes] for t in ordered],
    }


def _write_table() -> None:
    import timm

    rows: dict[str, Any] = {}
    for name in timm.list_models():
        try:
            rows[name] = _row(name)
        except Exception as error:  # a network that cannot be built on the meta device is reported
            print(f"{name}: left out, {type(error).__name__}: {error}")
    lines = [f"{json.dumps(n)}: {json.dumps(r, separators=(',', ':'))}" for n, r in rows.items()]
    TABLE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    print(f"{len(rows)} networks written to {TABLE}")


def _read_table() -> dict[str, Entry]:
    rows = json.loads(TABLE.read_text(encoding="utf-8")) if TABLE.exists() else {}
    return {name: _entry(name, row) for name, row in rows.items()}


MODELS: dict[str, Entry] = _read_table()

if __name__ == "__main__":
    _write_table()
