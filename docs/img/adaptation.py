"""Draws docs/img/adaptation.png: answers for scenes by night, before and after adapting to them.

python docs/img/adaptation.py BEFORE AFTER, where these are run folders of benchmarks/adaptation.py.
From left to right: a scene by day, it by night, the answers for the night of both networks, the
truth.
"""

import sys
from pathlib import Path

import numpy as np

import sigak
from sigak import draw
from sigak.data import scenes
from sigak.data.classmaps import paint
from sigak.io import image

SIZE, GAP = (64, 64), 2
networks = [sigak.load(folder) for folder in sys.argv[1:3]]
colors = np.array(draw.palette(networks[0].classes), np.uint8)


def row(index: int) -> np.ndarray:
    """(H, W, 3): the five pictures side by side, enlarged, with white between them."""
    day, objects = scenes.render(7, index, SIZE)
    night, _ = scenes.render(7, index, SIZE, night=True)
    maps = [network.predict(night)[0].class_map for network in networks]
    maps.append(paint(objects, SIZE))
    large = [p.repeat(3, 0).repeat(3, 1) for p in (day, night, *(colors[m] for m in maps))]
    return np.concatenate([np.pad(p, [(GAP, GAP)] * 2 + [(0, 0)], constant_values=255)
                           for p in large], 1)  # fmt: skip


whole = np.concatenate([row(index) for index in range(6)], 0)
image.save(Path(__file__).with_suffix(".png"), whole)
