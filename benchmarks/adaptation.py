"""What adapting to scenes by night brings, whose class maps are never shown: mean IoU on them.

    python benchmarks/adaptation.py --seeds 0,1 --out runs/adaptation

A small DeepLab-v2 learns `scenes` first (seed 0). It then goes on for two epochs, in turn: on the
same pictures; with those of `scenes-night` beside them, seen by batch norm alone, or adapted to
with either loss; and on `scenes-night` with its class maps, which is what could be reached. All go
on for as many steps from the same weights. The best epoch by the 100 validation pictures of the
night is measured on its 200 test pictures, and on those of the day. One thread; seconds are the
process's own, so that other work on the machine counts little.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from machine import machine

import sigak
from sigak.data import Dataset, load, provide
from sigak.models import adaptsegnet

DAY, NIGHT, HELD = "scenes:1000@64", "scenes-night:1000@64", "scenes:1@64"
FIRST = {"epochs": 16, "lr": 4e-3, "schedule": "onecycle"}
THEN = {"epochs": 2, "lr": 1e-3, "backbone_lr": 1.0, "schedule": "cosine"}
BOTH = {"batch": 8, "loss": "ce+dice", "device": "cpu", "threads": 1, "quiet": True}
SMALL = "adaptsegnet-small"
WAYS = ("source alone", "batch norm sees the target", "BCE", "LSGAN", "target with its class maps")


def learnt_on(spec: str) -> Dataset:
    """The training pictures of `spec` with their class maps, to be measured by night."""
    night, own = (provide(load(name), ("class_map",)) for name in (NIGHT, spec))
    return replace(night, splits=night.splits | {"train": own.splits["train"]})


def go_on(way: str, start: Path, out: Path, seed: int) -> sigak.Run:
    how: dict[str, Any] = {**BOTH, **THEN, "pretrained": str(start), "seed": seed, "out": str(out)}
    if way in (WAYS[0], WAYS[4]):
        return sigak.train("deeplabv2-small", learnt_on(DAY if way == WAYS[0] else NIGHT), **how)
    name = f"{SMALL}-lsgan" if way == "LSGAN" else SMALL
    row = adaptsegnet.MODELS[name]
    if way == WAYS[1]:
        silent = replace(row, args=row.args | {"adversarial": (0.0, 0.0)})
        adaptsegnet.MODELS[name] = silent
    try:
        return sigak.train(name, DAY, target=NIGHT, **how)
    finally:
        adaptsegnet.MODELS[name] = row


def measured(folder: Path) -> dict[str, float]:
    figures = {"night": NIGHT.replace("1000", "1"), "day": HELD}
    return {
        name: sigak.evaluate(folder, spec, split="test", device="cpu")["miou"]
        for name, spec in figures.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--out", default="runs/adaptation")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    start = Path(asked.out) / "day"
    if not (start / "evaluation.json").exists():
        sigak.train("deeplabv2-small", DAY, **BOTH, **FIRST, seed=0, out=str(start))
    rows = [{"way": "before", **measured(start)}]
    print(rows[-1], flush=True)
    for seed in map(int, asked.seeds.split(",")):
        for way in WAYS:
            begun, out = time.process_time(), Path(asked.out) / f"{way.replace(' ', '-')}-{seed}"
            run = go_on(way, start / "best.safetensors", out, seed)
            row = {"seed": seed, "way": way, "seconds": round(time.process_time() - begun)}
            rows.append(row | measured(run.folder) | {"best_epoch": run.best_epoch})
            print(rows[-1], flush=True)
        report = {"machine": machine(), "first": FIRST, "then": THEN, "rows": rows}
        path = Path(__file__).parent / "results" / "adaptation.json"
        path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
