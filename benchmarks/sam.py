"""Automatic masks with ViT-B: the publisher's package and sigak in turn, in one run.

    python benchmarks/sam.py                  # writes benchmarks/results/sam.json, prints a table
    python benchmarks/sam.py --quick          # small network and grid, and nothing is written
    python benchmarks/sam.py --kept FILE      # keeps what was learnt there, or takes it from there
    python benchmarks/sam.py --drawn          # nothing is learnt: masks mean nothing, few are left

Both have the same weights, get every prompt of the grid, and run on the CPU with the same number of
threads. The encoder's weights are drawn. The decoder has learnt the objects of the one picture
that is looked at, in a few minutes and by heart, so that masks mean something and many are left:
what each step costs depends on how many prompts pass. With --drawn its weights are drawn too, the
last layers set so that half of the masks are predicted above the threshold and their stability lies
around its own. Seconds are those of the clock and of the processor, which a busy machine disturbs
less.
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
from torch.nn import functional as F

from sigak import models
from sigak.asking import Prompts
from sigak.data import scenes
from sigak.io import image, weights
from sigak.models.sam import published
from sigak.ops.outlines import masks_of
from sigak.tasks._everything import everything
from sigak.tasks._lesson import Answers

RESULTS = Path(__file__).parent / "results" / "sam.json"
_PROMPTS, _PLACES = 16, 100  # that a step of learning looks at
_LEAST = 0.004  # share of the picture that an object must have to be taught


def _preparation(network: Any) -> image.Preparation:
    return image.Preparation(network.size, "rgb", "longest", resample="antialias")


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


def coarse_truth(objects: Any, size: tuple[int, int], inner: tuple[int, int], side: int) -> Any:
    """(N, side / 4, side / 4) bool: the larger objects of a picture as coarse masks have them, and
    last what is left between them.
    """
    planes = masks_of(objects.outlines, size).planes()[:, None].float()
    planes = F.interpolate(planes, inner, mode="area")
    planes = torch.cat([planes, 1 - planes.amax(0, keepdim=True)])
    planes = F.pad(planes, (0, side - inner[1], 0, side - inner[0]))
    found = F.avg_pool2d(planes, 4)[:, 0] >= 0.5
    return found[found.float().mean((1, 2)) > _LEAST]


def teach(network: Any, embedding: torch.Tensor, truth: torch.Tensor, steps: int) -> None:
    """Teaches the decoder what lies where on one picture. Each step looks at a few places only:
    but for attention, which takes its means over fewer, places know nothing of each other.
    """
    torch.manual_seed(0)
    encoder, decoder = network.prompt_encoder, network.mask_decoder
    optimizer = torch.optim.AdamW(decoder.parameters(), 1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps)
    grid, codes = embedding.shape[2], encoder.places().detach()
    whole = (embedding + encoder.dense(network.asked())).detach().flatten(2)[0]  # (d, N)
    blocks = truth.unflatten(2, (grid, 4)).unflatten(1, (grid, 4)).transpose(2, 3).flatten(1, 2)
    told = []
    for step in range(1, steps + 1):
        which, points = torch.randint(len(truth), (_PROMPTS,)), []
        for one in truth[which]:
            places = one.nonzero()
            y, x = places[int(torch.randint(len(places), ()))].tolist()
            points.append([[4 * x + 2.0, 4 * y + 2.0]])
        tokens = encoder.tokens(network.asked(points=torch.tensor(points))).detach()
        some = torch.randperm(whole.shape[1])[:_PLACES]
        side = int(_PLACES**0.5)
        masks, quality = decoder(whole[:, some].view(1, -1, side, side), codes[some], tokens)
        target = blocks[which][:, some].unflatten(1, (side, side)).transpose(2, 3).flatten(3)
        losses = Answers(masks[:, 1:], quality[:, 1:], target.flatten(1, 2)).losses()
        optimizer.zero_grad()
        losses["loss"].backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        told.append(losses["iou"].item())
        if step % 50 == 0:
            print(f"step {step}: IoU {np.mean(told[-50:]):.3f}", flush=True)


def learnt(network: Any, pixels: np.ndarray, objects: Any, said: Any) -> None:
    """The decoder of `network` as it was kept, or taught now."""
    kept = Path(said.kept) if said.kept else None
    if kept and kept.exists():
        network.mask_decoder.load_state_dict(weights.read(kept)[0])
        return
    ready, _ = image.prepare(pixels, _preparation(network))
    batch = torch.from_numpy(ready.copy()).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        embedding = network.embed(batch)
    truth = coarse_truth(objects, pixels.shape[:2], ready.shape[:2], network.size[0])
    teach(network, embedding, truth, said.steps)
    if kept:
        weights.write(kept, network.mask_decoder.state_dict(), {})


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
        "of_theirs": len(theirs),
        "share_found": float(np.mean([p > 0.99 for p in paired])) if paired else 1.0,
        "share_found_above_0.9": float(np.mean([p > 0.9 for p in paired])) if paired else 1.0,
        "least_iou": min(paired, default=1.0),
        "same_order": in_order,
    }


def timed(work: Any) -> tuple[Any, dict[str, float]]:
    """What `work` gives, and its seconds by the clock and of the processor."""
    clock, processor = time.perf_counter(), time.process_time()
    found = work()
    spent = time.process_time() - processor
    return found, {"seconds": time.perf_counter() - clock, "processor_seconds": spent}


def said() -> Any:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--drawn", action="store_true")
    parser.add_argument("--kept", default="", metavar="FILE")
    parser.add_argument("--steps", type=int, default=2000, help="of learning")
    parser.add_argument("--points-per-side", type=int, default=0)
    parser.add_argument("--pred-iou-thresh", type=float, default=0.88)
    parser.add_argument("--stability-score-thresh", type=float, default=0.95)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--ours-alone", action="store_true")
    return parser.parse_args()


def main() -> None:
    """Measure ours, theirs and ours again, print, and without --quick write."""
    asked = said()
    torch.set_num_threads(asked.threads)
    small = models.entry("sam-b").tiny | {"size": (256, 256), "window": 14}
    shape = small if asked.quick else {"window": 14, "dim": 256, "hidden": 2048}
    built = models.arguments("sam-b", **shape)
    torch.manual_seed(1)
    network = drawn(built) if asked.drawn else models.entry("sam-b").build(**built).eval()
    size = (200, 300) if asked.quick else (1200, 1800)
    pixels, objects = scenes.render(0, 1, size, most=60)
    if asked.drawn:
        settle(network, pixels, _preparation(network), asked.pred_iou_thresh)
    else:
        learnt(network, pixels, objects, asked)
    how = {
        "points_per_side": asked.points_per_side or (8 if asked.quick else 32),
        "pred_iou_thresh": asked.pred_iou_thresh,
        "stability_score_thresh": asked.stability_score_thresh,
    }

    def ours(half: bool) -> Any:
        wanted = Prompts(everything=True, half=half, **how)
        return everything(network, pixels, _preparation(network), wanted, "cpu")

    rows: dict[str, Any] = {}
    results = {}
    for name, half in (("sigak", False), ("sigak --half", True)):
        results[name], rows[name] = timed(partial(ours, half))
        rows[name]["masks"] = len(results[name])
        rows[name]["peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps(rows, indent=1), flush=True)
    if asked.ours_alone:
        return
    theirs = reference(built)
    theirs.load_state_dict(published(network.state_dict()))
    expected, row = timed(lambda: SamAutomaticMaskGenerator(theirs, **how).generate(pixels))
    rows["segment-anything"] = row | {"masks": len(expected)}
    for name, found in results.items():
        _, again = timed(partial(ours, name.endswith("half")))
        mine = rows[name]
        mine |= compare(found, expected, pixels.shape[:2])
        for kind in ("seconds", "processor_seconds"):
            mine[kind] = (mine[kind] + again[kind]) / 2  # before and after theirs
            mine[f"times_less_{kind}"] = row[kind] / mine[kind]
    print(json.dumps(rows, indent=1))
    if not asked.quick:
        facts = {"machine": machine(), "size": list(size), "threads": asked.threads, **how}
        facts["decoder"] = "drawn" if asked.drawn else "learnt the picture by heart"
        RESULTS.write_text(json.dumps(facts | {"rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
