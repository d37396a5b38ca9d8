"""Names of the classes that detectors are published for: COCO's 80, and its 91 numbers."""

from __future__ import annotations

__all__ = ["COCO80", "COCO91"]

_ALL = """person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light,
fire hydrant, street sign*, stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow,
elephant, bear, zebra, giraffe, hat*, backpack, umbrella, shoe*, eye glasses*, handbag, tie,
suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard,
surfboard, tennis racket, bottle, plate*, wine glass, cup, fork, knife, spoon, bowl, banana, apple,
sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed,
mirror*, dining table, window*, desk*, toilet, door*, tv, laptop, mouse, remote, keyboard,
cell phone, microwave, oven, toaster, sink, refrigerator, blender*, book, clock, vase, scissors,
teddy bear, hair drier, toothbrush, hair brush*"""  # a star: a number without annotations

_NAMES = [" ".join(name.split()) for name in _ALL.split(",")]

COCO91 = tuple(name.rstrip("*") for name in _NAMES)
"""In the order of the category ids, which begin with 1."""

COCO80 = tuple(name for name in _NAMES if not name.endswith("*"))
"""Those that have annotations, as most detectors number them."""
