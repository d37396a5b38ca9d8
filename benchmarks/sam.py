"""Automatic masks with ViT-B: the publisher's package and sigak in turn, in one run.

    python benchmarks/sam.py                  # writes benchmarks/results/sam.json, prints a table
    python benchmarks/sam.py --quick          # small network and grid, and nothing is written
    python benchmarks/sam.py --picture FILE   # another picture than the drawn one

Both have the same weights. They are drawn, not trained: of the layers that predict IoU and logits
the last ones are set so that half of the masks are predicted above the threshold and their
stability lies around its own, as it is with trained ones; the masks themselves mean nothing. Both
get every prompt of the grid, on the CPU, with the same number of threads.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import machine
from segment_anything import SamAutomaticMaskGenerator, modeling

from sigak import models
from sigak.asking import Prompts
from sigak.data import scenes
from sigak.io import image
from sigak.models.sam import published
from sigak.tasks._everything import everything

RESULTS = Path(__file__).parent / "results" / "sam.json"


def reference(built: dict[str, Any]) -> modeling.Sam:
    """The publisher's network of the same form."""
    side, dim = built["size"][0], built["dim"]
    encoder = modeling.ImageEncoderViT(
        img_size=side, depth=built["depth"], embed_dim=built["width"], num_heads=built["heads"],
        out_chans=dim, norm_layer=partial(torch.nn.LayerNorm, eps=1e-6), use_rel_pos=True,
        window_size=built["window"], global_attn_indexes=built["whole"],
    )  # fmt: skip
    decoder = modeling.MaskDecoder(
        transformer_dim=dim,
        transformer=modeling.TwoWayTransformer(2, dim, 8, built["hidden"]),
        iou_head_hidden_dim=dim,
    )
    prompts = modeling.PromptEncoder(dim, (side // 16,) * 2, (side, side), 16)
    return modeling.Sam(encoder, prompts, decoder).eval()


def drawn(built: dict[str, Any]) -> Any:
    """Our network with drawn weights."""
    torch.manual_seed(1)
    network = models.entry("sam-b").build(**built).eval()
    for parameter in network.mask_decoder.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    for parameter in network.prompt_encoder.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return network


@torch.inference_mode()
def settle(network: Any, pixels: np.ndarray, preparation: image.Preparation, wanted: float) -> None:
    """Half of the masks predicted above `wanted`, and logits of a spread that gives them about the
    stability that is asked for.
    """
    ready, _ = image.prepare(pixels, preparation)
    batch = torch.from_numpy(ready.copy()).permute(2, 0, 1)[None].float() / 255
    embedding = network.embed(batch)
    places = torch.rand(4, 1, 2) * torch.tensor([ready.shape[1], ready.shape[0]])
    masks, quality = network.answer(embedding, network.asked(points=places))
    head = network.mask_decoder.iou_prediction_head.layers[2]
    spread = float(quality[:, 1:].std()) / 0.05
    head.weight.data /= spread
    head.bias.data = (head.bias.data - quality.median(0).values) / spread + wanted
    for number, part in enumerate(network.mask_decoder.output_hypernetworks_mlps):
        scale = 60 / float(masks[:, number].std())
        part.layers[2].weight.data *= scale
        part.layers[2].bias.data *= scale


def compare(ours: list[Any], theirs: list[dict[str, Any]], size: tuple[int, int]) -> dict[str, Any]:
    """How many of the publisher's masks have one of ours with IoU above .99, and the same order."""
    found = [one.region.mask(size) for one in ours]

    def overlap(a: np.ndarray, b: np.ndarray) -> float:
        either = (a | b).sum()
        return float((a & b).sum() / either) if either else 1.0

    paired = [
        max((overlap(mask, theirs_one["segmentation"]) for mask in found), default=0.0)
        for theirs_one in theirs
    ]
    in_order = len(found) == len(theirs) and all(
        overlap(a, b["segmentation"]) > 0.99 for a, b in zip(found, theirs, strict=True)
    )
    return {
        "masks": len(found),
        "of_theirs": len(theirs),
        "share_found": float(np.mean([p > 0.99 for p in paired])) if paired else 1.0,
        "least_iou": min(paired, default=1.0),
        "same_order": in_order,
    }


def main() -> None:
    """Measure, print, and without --quick write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--picture", default="")
    parser.add_argument("--points-per-side", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--ours-alone", action="store_true")
    said = parser.parse_args()
    torch.set_num_threads(said.threads)
    side = said.points_per_side or (8 if said.quick else 32)
    small = models.entry("sam-b").tiny | {"size": (256, 256), "window": 14}
    shape = small if said.quick else {"window": 14, "dim": 256, "hidden": 2048}
    built = models.arguments("sam-b", **shape)
    network = drawn(built)
    size = (200, 300) if said.quick else (1200, 1800)
    pixels = image.read(said.picture) if said.picture else scenes.render(0, 1, size, most=60)[0]
    preparation = image.Preparation(network.size, "rgb", "longest", resample="antialias")
    settle(network, pixels, preparation, 0.88)
    asked = Prompts(everything=True, points_per_side=side)
    rows: dict[str, Any] = {}
    results = {}
    for name, half in (("sigak", False), ("sigak --half", True)):
        begun = time.perf_counter()
        results[name] = everything(
            network, pixels, preparation, Prompts(**vars(asked) | {"half": half}), "cpu"
        )
        rows[name] = {"seconds": time.perf_counter() - begun, "masks": len(results[name])}
    rows["sigak"]["peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps(rows, indent=1), flush=True)
    if said.ours_alone:
        return
    theirs = reference(built)
    theirs.load_state_dict(published(network.state_dict()))
    begun = time.perf_counter()
    expected = SamAutomaticMaskGenerator(theirs, points_per_side=side).generate(pixels)
    rows["segment-anything"] = {"seconds": time.perf_counter() - begun, "masks": len(expected)}
    for name, found in results.items():
        rows[name] |= compare(found, expected, pixels.shape[:2])
        rows[name]["times_faster"] = rows["segment-anything"]["seconds"] / rows[name]["seconds"]
    print(json.dumps(rows, indent=1))
    if not said.quick:
        whole = {"machine": machine(), "prompts": side**2, "size": list(pixels.shape[:2])}
        RESULTS.write_text(json.dumps(whole | {"rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
