"""All pictures of an evaluation side by side: one row an object, one row a detection."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["MOST", "Found", "Truth", "ranks"]

MOST = 100  # detections of a class in a picture that count, the best ones; COCO's rule


@dataclass(frozen=True)
class Truth:
    """Objects, picture by picture: picture (N,) int64; boxes (N, 4) float64 left, top, width,
    height; labels (N,) int64; crowd (N,) bool; areas (N,) float64 square pixels.
    """

    picture: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    areas: np.ndarray


@dataclass(frozen=True)
class Found:
    """Detections, picture by picture: picture (N,) int64; boxes (N, 4) float64 left, top, width,
    height; labels (N,) int64; scores (N,) float64.
    """

    picture: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray

    def ranked(self) -> Found:
        """The detections that count, by picture, class and falling score; ties keep their order."""
        order = np.lexsort((-self.scores, self.labels, self.picture))
        rank = ranks(self.picture[order], self.labels[order])
        order = order[rank < MOST]
        return Found(self.picture[order], self.boxes[order], self.labels[order], self.scores[order])


def ranks(*keys: np.ndarray) -> np.ndarray:
    """(N,) the place of each row within its run of rows whose keys are all equal, from 0."""
    count = len(keys[0])
    new = np.zeros(count, bool)
    new[:1] = True
    for key in keys:
        new[1:] |= key[1:] != key[:-1]
    starts = np.flatnonzero(new)
    places: np.ndarray = np.arange(count) - np.repeat(starts, np.diff(starts, append=count))
    return places
