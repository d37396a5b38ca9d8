"""Tracking: the same number for the same object from frame to frame.

ByteTrack, Zhang et al. 2021, https://arxiv.org/abs/2110.06864: tracks are continued by the boxes
that overlap where a Kalman filter expects them; those with good scores choose first, and what is
left of the tracks is tried on boxes of poor scores, which are often objects half hidden.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from sigak.io.video import Frame
from sigak.ops.boxes import cxcywh_to_xyxy, iou, xyxy_to_cxcywh
from sigak.structures import Instances, Sample, SigakError

__all__ = ["LOW", "START", "Tracker", "followed"]

START = 0.25  # the least score of a box that may begin a track
LOW = 0.1  # the least score of a box that may continue one
_POSITION, _VELOCITY = 1 / 20, 1 / 160  # noise as shares of the object's own size
_GOOD, _POOR, _NEW = 0.2, 0.5, 0.3  # least overlap: good boxes, poor boxes, tracks seen once


@dataclass
class _Track:
    """One object: a Kalman filter of constant velocity for each of centre x, y, width and height.

    The four do not influence each other in ByteTrack's model, so that each is a filter of two
    numbers: value and speed a frame, with their covariance (4, 2, 2).
    """

    label: int
    value: np.ndarray
    speed: np.ndarray
    covariance: np.ndarray
    id: int = 0  # from 1 once it is more than a single sight
    unseen: int = 0  # frames since it was seen

    @classmethod
    def begin(cls, label: int, box: np.ndarray) -> _Track:
        scale = np.tile(box[2:], 2)
        covariance = np.zeros((4, 2, 2))
        covariance[:, 0, 0] = (2 * _POSITION * scale) ** 2
        covariance[:, 1, 1] = (10 * _VELOCITY * scale) ** 2
        return cls(label, box.copy(), np.zeros(4), covariance)

    def predict(self) -> None:
        """One frame ahead."""
        scale = np.tile(np.maximum(self.value[2:], 1.0), 2)
        self.unseen += 1
        if self.unseen > 1:  # its size is not followed while it is hidden
            self.speed[2:] = 0.0
        self.value = self.value + self.speed
        p = self.covariance
        p[:, 0, 0] += 2 * p[:, 0, 1] + p[:, 1, 1] + (_POSITION * scale) ** 2
        p[:, 0, 1] += p[:, 1, 1]
        p[:, 1, 0] = p[:, 0, 1]
        p[:, 1, 1] += (_VELOCITY * scale) ** 2

    def correct(self, box: np.ndarray) -> None:
        """Take in the box (4,) cx, cy, w, h that was found."""
        scale = np.tile(box[2:], 2)
        p = self.covariance
        gain = p[:, 0, :] / (p[:, 0, 0] + (_POSITION * scale) ** 2)[:, None]  # (4, 2)
        surprise = box - self.value
        self.value = self.value + gain[:, 0] * surprise
        self.speed = self.speed + gain[:, 1] * surprise
        self.covariance = p - gain[:, :, None] * p[:, None, 0, :]
        self.unseen = 0


class Tracker:
    """Numbers for the objects of one video, fed frame by frame.

    start: the least score of a box that begins a track; memory: frames after which an object that
    was not seen is forgotten. An object keeps its class.
    """

    def __init__(self, start: float = START, memory: int = 30) -> None:
        if not 0 < start < 1 or memory < 1:
            raise SigakError(
                f"a tracker expects a score between 0 and 1 and a memory of at least one frame, "
                f"received {start} and {memory}"
            )
        self.start = start
        self.memory = memory
        self._tracks: list[_Track] = []
        self._next = 1
        self._begun = False

    def update(self, found: Instances) -> Instances:
        """Those of `found` (boxes, labels, scores from `LOW` on) that belong to a track, in their
        order, with `ids` (N,) from 1. A track is shown from its second frame on, in the first frame
        of the video at once.
        """
        if found.scores is None:
            raise SigakError("a tracker needs boxes with scores, and these have none")
        for track in self._tracks:
            track.predict()
        boxes = xyxy_to_cxcywh(found.boxes.double()).numpy()
        good = found.scores >= self.start
        poor = ~good & (found.scores >= LOW)
        ids = torch.zeros(len(found), dtype=torch.int64)
        old = [t for t in self._tracks if t.id]
        left = self._match(old, found, boxes, good, _GOOD, ids)
        # Those hidden for longer are too uncertain to be continued by a poor box.
        self._match([t for t in left if t.unseen == 1], found, boxes, poor, _POOR, ids)
        young = [t for t in self._tracks if not t.id]
        self._match(young, found, boxes, good & (ids == 0), _NEW, ids)
        self._tracks = [t for t in self._tracks if t.unseen <= (self.memory if t.id else 0)]
        self._begin(found, boxes, good & (ids == 0), ids)
        return replace(found, ids=ids)[ids > 0]

    def _match(
        self,
        tracks: list[_Track],
        found: Instances,
        boxes: np.ndarray,
        eligible: Tensor,
        least: float,
        ids: Tensor,
    ) -> list[_Track]:
        """Give the eligible boxes to `tracks` for the largest sum of overlaps; the others."""
        places = eligible.nonzero()[:, 0]
        if not tracks or not len(places):
            return tracks
        expected = cxcywh_to_xyxy(torch.from_numpy(np.stack([t.value for t in tracks])))
        overlap = iou(expected, found.boxes[places].double())
        same = torch.tensor([t.label for t in tracks])[:, None] == found.labels[places][None]
        worth = torch.where(same & (overlap >= least), overlap, 0.0).numpy()
        left = dict(enumerate(tracks))
        for row, column in zip(*linear_sum_assignment(worth, maximize=True)):
            if worth[row, column] > 0:
                track, place = left.pop(int(row)), int(places[column])
                track.correct(boxes[place])
                ids[place] = self._number(track)
        return list(left.values())

    def _begin(self, found: Instances, boxes: np.ndarray, new: Tensor, ids: Tensor) -> None:
        """Start a track at each new box."""
        for place in new.nonzero()[:, 0].tolist():
            track = _Track.begin(int(found.labels[place]), boxes[place])
            self._tracks.append(track)
            if not self._begun:
                ids[place] = self._number(track)
        self._begun = True

    def _number(self, track: _Track) -> int:
        if not track.id:
            track.id, self._next = self._next, self._next + 1
        return track.id


def followed(answers: Iterator[tuple[Sample, Any]], start: float) -> Iterator[tuple[Sample, Any]]:
    """Detections with numbers: a tracker for each video, and one for pictures that follow each
    other.
    """
    tracker, last = Tracker(start), None
    for sample, result in answers:
        video = sample.origin.video if isinstance(sample.origin, Frame) else None
        if video is not last:
            tracker, last = Tracker(start), video
        yield sample, replace(result, instances=tracker.update(result.instances))
