"""Which pictures are held out: stratified, seeded, identical ones on one side.

Nothing here draws random numbers. A picture's place is decided by a hash of its name and the seed,
so a split does not depend on the order a file system lists files in, nor on the version of a random
generator, and adding a few pictures to a folder moves hardly any of the others to the other side.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256

import numpy as np

__all__ = ["THREADS", "carve", "group_files", "group_pixels", "shuffled"]

THREADS = min(8, os.cpu_count() or 1)


def shuffled(keys: Sequence[str], seed: int) -> list[int]:
    """The indices of `keys` in an order that looks random and depends on keys and seed alone."""
    ranks = [_rank(key, seed) for key in keys]
    return sorted(range(len(keys)), key=ranks.__getitem__)


def carve(
    labels: np.ndarray, groups: Sequence[int], keys: Sequence[str], share: float, seed: int
) -> np.ndarray:
    """(N,) bool: which of N pictures are held out, `share` of each class and at least one.

    labels (N,) class indices; groups equal numbers for pictures that must stay together; keys names
    that do not change from machine to machine. A class with one picture (or one group) keeps it for
    training, and so does a group whose pictures carry different labels: it would make a score
    doubtful.
    """
    _, first, group, size = np.unique(
        np.asarray(groups), return_index=True, return_inverse=True, return_counts=True
    )
    label_of = labels[first]
    movable = np.ones(len(first), bool)
    movable[group[labels != label_of[group]]] = False

    held = np.zeros(len(first), bool)
    for label in np.unique(labels):
        candidates = np.flatnonzero((label_of == label) & movable)
        wanted = max(1, round(share * int((labels == label).sum())))
        wanted = min(wanted, int(size[candidates].sum()) - 1)  # one stays in any case
        for place in shuffled([keys[first[candidate]] for candidate in candidates], seed):
            candidate = candidates[place]
            if size[candidate] <= wanted:
                held[candidate] = True
                wanted -= size[candidate]
    return held[group]


def group_files(paths: Sequence[str]) -> list[int]:
    """For each file the index of the first with the same bytes; only equal sizes are read."""
    sizes = [os.path.getsize(path) for path in paths]
    shared = Counter(sizes)
    twins = [i for i, size in enumerate(sizes) if shared[size] > 1]
    with ThreadPoolExecutor(THREADS) as pool:
        digests = dict(zip(twins, pool.map(_digest_file, [paths[i] for i in twins])))
    return _first_seen((sizes[i], digests.get(i, b"")) for i in range(len(paths)))


def group_pixels(pictures: Iterable[np.ndarray]) -> list[int]:
    """For each uint8 picture, all of one shape, the index of the first one with the same pixels."""
    return _first_seen(sha256(picture.tobytes()).digest() for picture in pictures)


def _first_seen(values: Iterable[Hashable]) -> list[int]:
    first: dict[Hashable, int] = {}
    return [first.setdefault(value, index) for index, value in enumerate(values)]


def _digest_file(path: str) -> bytes:
    digest = sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.digest()


def _rank(key: str, seed: int) -> bytes:
    return sha256(f"{seed}:{key}".encode("utf-8", "surrogateescape")).digest()
