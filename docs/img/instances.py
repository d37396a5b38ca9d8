"""Draws docs/img/instances.png: what a trained network finds in scenes it has not seen.

python docs/img/instances.py RUN, where RUN is the folder of the training in docs/instances.md.
"""

import sys
from pathlib import Path

import numpy as np

import sigak
from sigak.data import scenes
from sigak.io import image

pictures = [scenes.render(seed=7, index=i, size=(128, 128))[0] for i in (0, 5, 8, 10, 20, 23)]
network = sigak.load(sys.argv[1])
rows = [network.task.draw(p, network.predict(p, conf=0.4)[0]) for p in pictures]
large = [row.repeat(2, 0).repeat(2, 1) for row in rows]
whole = np.concatenate([np.concatenate(large[i : i + 3], 1) for i in (0, 3)], 0)
image.save(Path(__file__).with_suffix(".png"), whole)
