"""Which detection found which object.

COCO's rules: best score first, a detection takes the object of its class that it overlaps most of
those not taken yet, where the IoU reaches the threshold. One that reaches only a crowd is ignored:
neither right nor wrong. All pictures and thresholds are matched together: first the best detection
of every picture and class, then every second best, and so on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sigak.metrics._tables import Found, Truth, ranks

__all__ = ["THRESHOLDS", "Matches", "match"]

THRESHOLDS = np.linspace(0.5, 0.95, 10)
_PAIRS_AT_ONCE = 2_000_000


@dataclass(frozen=True)
class Matches:
    """truth and found are the tables that were matched, found as `Found.ranked`.

    partner (D, T) int64: the row of truth a detection takes at each of `THRESHOLDS`, -1 for none.
    ignored (D, T) bool: lies on a crowd. pairs: detections and objects of any classes that overlap
    with an IoU of .5.
    """

    truth: Truth
    found: Found
    partner: np.ndarray
    ignored: np.ndarray
    pairs: _Pairs

    @property
    def right(self) -> np.ndarray:
        """(D, T) bool: takes an object."""
        hit: np.ndarray = self.partner >= 0
        return hit

    def confused(self, least: float) -> np.ndarray:
        """(D,) int64: the object of another class that a wrong detection with a score of `least`
        or more lies on with an IoU of .5, where no such detection found that object; -1 for none.
        An object is given once, to the best score.
        """
        wrong = ~self.right[:, 0] & ~self.ignored[:, 0] & (self.found.scores >= least)
        free = ~self.truth.crowd
        free[self.partner[self.right[:, 0] & (self.found.scores >= least), 0]] = False
        pairs = self.pairs.where(wrong[self.pairs.found] & free[self.pairs.truth])
        order = np.lexsort((-self.found.scores, self.found.picture))
        rank = np.empty(len(order), np.int64)
        rank[order] = ranks(self.found.picture[order])
        return _assign(pairs, rank, len(free), THRESHOLDS[:1])[:, 0]


@dataclass(frozen=True)
class _Pairs:
    """Detections and objects of one picture that overlap: rows (P,) of each, and iou (P,)."""

    found: np.ndarray
    truth: np.ndarray
    iou: np.ndarray

    def where(self, chosen: np.ndarray) -> _Pairs:
        return _Pairs(self.found[chosen], self.truth[chosen], self.iou[chosen])


def match(truth: Truth, found: Found) -> Matches:
    """`found` matched with `truth`, both sorted by picture."""
    found = found.ranked()
    pairs = _overlapping(found, truth, float(THRESHOLDS[0]))
    same = pairs.where(found.labels[pairs.found] == truth.labels[pairs.truth])
    crowd = truth.crowd[same.truth]
    rank = ranks(found.picture, found.labels)
    partner = _assign(same.where(~crowd), rank, len(truth.labels), THRESHOLDS)
    over = same.where(crowd)
    ignored = np.zeros(partner.shape, bool)
    np.logical_or.at(ignored, over.found, over.iou[:, None] >= THRESHOLDS)
    return Matches(truth, found, partner, ignored & (partner < 0), pairs)


def _overlapping(found: Found, truth: Truth, least: float) -> _Pairs:
    """Pairs of one picture, of any classes, with an IoU of `least` or more."""
    first = np.searchsorted(truth.picture, found.picture, "left")
    count = np.searchsorted(truth.picture, found.picture, "right") - first
    ends = np.cumsum(count)
    total = int(ends[-1]) if len(ends) else 0
    cuts = np.searchsorted(ends, np.arange(_PAIRS_AT_ONCE, total, _PAIRS_AT_ONCE))
    parts = []
    for rows in np.split(np.arange(len(count)), cuts):
        one = np.repeat(rows, count[rows])
        other = np.repeat(first[rows], count[rows]) + ranks(one)
        iou = _iou(found.boxes[one], truth.boxes[other], truth.crowd[other])
        parts.append(_Pairs(one, other, iou).where(iou >= least))
    return _Pairs(*(np.concatenate([getattr(p, n) for p in parts]) for n in _Pairs.__annotations__))


def _iou(one: np.ndarray, other: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """(P,) of left, top, width, height (P, 4); over a crowd the share of `one` that lies on it."""
    ends = np.minimum(one[:, :2] + one[:, 2:], other[:, :2] + other[:, 2:])
    sides = np.clip(ends - np.maximum(one[:, :2], other[:, :2]), 0, None)
    common, area = sides.prod(1), one[:, 2:].prod(1)
    union = np.where(crowd, area, area + other[:, 2:].prod(1) - common)
    iou: np.ndarray = np.divide(common, union, out=np.zeros_like(common), where=union > 0)
    return iou


def _assign(pairs: _Pairs, rank: np.ndarray, objects: int, thresholds: np.ndarray) -> np.ndarray:
    """(D, T) the object each detection takes, -1 for none. rank (D,): its turn within its group;
    no object is wanted by two detections of one turn.
    """
    partner = np.full((len(rank), len(thresholds)), -1)
    taken = np.zeros((objects, len(thresholds)), bool)
    # By turn and detection; the object it would take comes last, of equal ones the later, as COCO.
    pairs = pairs.where(np.lexsort((pairs.truth, pairs.iou, pairs.found, rank[pairs.found])))
    turns = rank[pairs.found]
    starts = np.flatnonzero(ranks(turns) == 0)
    for start, end in zip(starts, np.append(starts[1:], len(turns))):
        one, other = pairs.found[start:end], pairs.truth[start:end]
        open_ = (pairs.iou[start:end, None] >= thresholds) & ~taken[other]
        places = np.where(open_, np.arange(end - start)[:, None], -1)
        begins = np.flatnonzero(ranks(one) == 0)
        best = np.maximum.reduceat(places, begins)
        row, column = np.nonzero(best >= 0)
        chosen = other[best[row, column]]
        partner[one[begins][row], column] = chosen
        taken[chosen, column] = True
    return partner
