"""Random draws that are the same bits on every machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

Item = TypeVar("Item")
STREAMS = 4
"""Independent streams of one seed: contents, camera noise, words, and what a dataset draws around the scene."""


class Dice:
    """Draws from stream ``stream`` of ``seed``; numbers are scaled here, by IEEE-exact operations that no compiler fuses."""

    def __init__(self, seed: int, stream: int) -> None:
        assert 0 <= stream < STREAMS
        self.bits = np.random.Generator(np.random.PCG64(seed * STREAMS + stream))

    def between(self, low: float, high: float) -> float:
        """A number in [low, high)."""
        return low + (high - low) * float(self.bits.random())

    def chance(self, probability: float) -> bool:
        """True with ``probability``."""
        return float(self.bits.random()) < probability

    def count(self, low: int, high: int) -> int:
        """An integer from ``low`` to ``high``, both included."""
        return int(self.bits.integers(low, high + 1))

    def pick(self, items: Sequence[Item]) -> Item:
        """One of ``items``."""
        return items[int(self.bits.integers(len(items)))]

    def shuffled(self, items: Sequence[Item]) -> list[Item]:
        """``items`` in random order."""
        rest = list(items)
        return [rest.pop(int(self.bits.integers(len(rest)))) for _ in range(len(rest))]
