"""Random numbers as a pure function of (seed, epoch, sample, name).

Nothing is drawn "next", so nothing depends on order: a sample's numbers are the same in any batch,
in any worker and after a resume, and a new epoch gives new ones. Each value is a hash of its
coordinates, counter-based as in Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3"
(SC 2011); the hash is the finaliser of SplitMix64 (Steele, Lea and Flood, "Fast Splittable
Pseudorandom Number Generators", OOPSLA 2014).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Any

import numpy as np

from sigak.structures import SigakError

__all__ = ["Draws"]

_WORD = (1 << 64) - 1
_STEP = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: SplitMix64's increment


def _mixed(words: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser over uint64 words: every input bit reaches every output bit."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(words ^ (words >> np.uint64(31)))


@lru_cache(maxsize=4096)
def _slot_word(slot: str | int) -> np.uint64:
    digest = blake2b(repr(slot).encode(), digest_size=8).digest()
    return np.uint64(int.from_bytes(digest, "little"))


class Draws:
    """Random numbers for a batch of samples.

    seed and epoch are any integers, `indices` (B,) the samples' places in their split. Every method
    takes the name (or number) of what is drawn and returns one value per sample; asking again gives
    the same values.
    """

    def __init__(self, seed: int, epoch: int, indices: np.ndarray) -> None:
        if np.ndim(indices) != 1:
            raise SigakError(
                f"indices must be one row (B,) of whole numbers, received shape {np.shape(indices)}"
            )
        self.seed, self.epoch, self.indices = seed, epoch, indices
        run = _mixed(np.array([seed & _WORD], np.uint64) + _STEP)
        run = _mixed(run ^ _mixed(np.array([epoch & _WORD], np.uint64) * _STEP + _STEP))
        samples = np.asarray(indices).astype(np.int64).astype(np.uint64)
        self._keys = _mixed(run + _mixed(samples * _STEP + _STEP))

    def __len__(self) -> int:
        return len(self._keys)

    def at_epoch(self, epoch: int) -> Draws:
        """The draws of the same samples in another epoch."""
        return Draws(self.seed, epoch, self.indices)

    def bits(self, slot: str | int, lane: int = 0) -> np.ndarray:
        """(B,) uint64 of 64 random bits; `lane` numbers independent words of one slot."""
        keys = _mixed(self._keys + _slot_word(slot))
        return _mixed(keys + np.uint64(((lane + 1) * int(_STEP)) & _WORD))

    def uniform(
        self, slot: str | int, low: Any = 0.0, high: Any = 1.0, lane: int = 0
    ) -> np.ndarray:
        """(B,) float64 in [low, high); low and high are numbers or (B,) arrays."""
        unit = (self.bits(slot, lane) >> np.uint64(11)) * 2.0**-53
        return np.asarray(low + unit * (high - low))

    def normal(self, slot: str | int, mean: float = 0.0, std: float = 1.0) -> np.ndarray:
        """(B,) float64 of the normal distribution (Box and Muller, 1958)."""
        radius = np.sqrt(-2.0 * np.log(1.0 - self.uniform(slot)))
        return mean + std * radius * np.cos(2.0 * np.pi * self.uniform(slot, lane=1))

    def integers(self, slot: str | int, low: int, high: int) -> np.ndarray:
        """(B,) int64 from low up to, but not including, high."""
        if high <= low:
            raise SigakError(f"integers needs high above low, received low {low}, high {high}")
        return np.asarray(np.floor(self.uniform(slot) * (high - low)).astype(np.int64) + low)

    def choice(self, slot: str | int, options: Sequence[Any] | np.ndarray) -> np.ndarray:
        """(B,) picks among `options`, each as likely."""
        return np.asarray(np.asarray(options)[self.integers(slot, 0, len(options))])

    def chance(self, slot: str | int, probability: float = 0.5) -> np.ndarray:
        """(B,) bool, True with the given probability."""
        return np.asarray(self.uniform(slot) < probability)

    def beta(self, slot: str | int, alpha: float) -> np.ndarray:
        """(B,) float64 of Beta(alpha, alpha), alpha > 0.

        Devroye, "Random Variate Generation in One Line of Code", Winter Simulation Conference 1996.
        """
        cosine = np.cos(2.0 * np.pi * self.uniform(slot, lane=1))
        # The power may overflow where alpha is tiny; the limit, a value at 0 or 1, is then right.
        with np.errstate(over="ignore", divide="ignore"):
            spread = (np.power(1.0 - self.uniform(slot), -1.0 / alpha) - 1.0) * cosine**2
            distance = 1.0 / np.sqrt(1.0 + 1.0 / spread)
        sign = np.where(self.uniform(slot, lane=2) < 0.5, -1.0, 1.0)
        return np.asarray(0.5 * (1.0 + sign * distance))
