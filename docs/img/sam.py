"""Draws docs/img/sam.png: everything that is found on scenes a small network has learnt by heart.

python docs/img/sam.py [CHECKPOINT]; without one the network learns first, some minutes on one core.
"""

import sys
from pathlib import Path

import numpy as np

import sigak
from sigak.data import Dataset, scenes
from sigak.io import image


def learnt() -> Path:
    """sam-nano after 200 passes over the first 16 scenes."""
    whole = scenes.read("scenes:16@128")
    data = Dataset(whole.name, whole.classes, {"train": whole.splits["train"]})
    how = {"epochs": 200, "val": 0.0, "augment": "none", "precision": "float32"}
    return sigak.train("sam-nano", data, **how).checkpoint


network = sigak.load(sys.argv[1] if len(sys.argv) > 1 else learnt())
rows = []
for index in (0, 1, 2, 3):
    pixels = scenes.render(0, index, (128, 128))[0]
    found = sigak.Session(network, pixels).everything(
        points_per_side=32, stability_score_thresh=0.85, box_nms_thresh=0.4, min_area=20
    )
    print(index, found)
    rows.append(np.concatenate([pixels, network.task.draw(pixels, found)], axis=0))
large = np.concatenate(rows, axis=1).repeat(2, 0).repeat(2, 1)
image.save(Path(__file__).with_suffix(".png"), large)
