"""Comparisons paired by seed: Student's t on the differences of the seeds that both sides have, corrected by Holm.

Runs of one seed share the order of the data and the initial weights, so their differences scatter less than their values.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count

from scipy import special

ALPHA = 0.05  # chance that a claim without any true difference shows one


@dataclass(frozen=True)
class Paired:
    """One difference, or one slope, per seed."""

    values: tuple[float, ...]  # at least one

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return statistics.fmean(self.values)

    @property
    def p(self) -> float | None:
        """Two-sided p value of Student's t test that the mean is zero; None for one seed."""
        if len(self.values) < 2:
            return None
        error = self._error
        if error == 0:  # every seed shows the same difference
            return float(self.mean == 0)
        return float(2 * special.stdtr(len(self.values) - 1, -abs(self.mean) / error))

    def interval(self, alpha: float) -> tuple[float, float] | None:
        """Return Student's interval of the mean, which misses the true one with probability ``alpha``; None for one seed."""
        if len(self.values) < 2:
            return None
        half = half_width(statistics.stdev(self.values), len(self.values), alpha)
        return self.mean - half, self.mean + half

    @property
    def _error(self) -> float:
        return statistics.stdev(self.values) / math.sqrt(len(self.values))


def half_width(sd: float, seeds: int, alpha: float) -> float:
    """Half the width of Student's interval over ``seeds`` whose differences have standard deviation ``sd``."""
    return -float(special.stdtrit(seeds - 1, alpha / 2)) * sd / math.sqrt(seeds)


def differences(first: Mapping[int, float], second: Mapping[int, float]) -> Paired | None:
    """Subtract ``second`` from ``first`` for every seed that both have; None if they share none."""
    shared = [value - second[seed] for seed, value in first.items() if seed in second]
    return Paired(tuple(shared)) if shared else None


def slopes(steps: Sequence[float], curves: Sequence[Sequence[float]]) -> Paired:
    """Least-squares slope per doubling of the positive ``steps``, of one curve per seed."""
    doublings = [math.log2(step) for step in steps]
    return Paired(tuple(statistics.linear_regression(doublings, curve).slope for curve in curves))


def holm(p_values: Sequence[float | None], alpha: float = ALPHA) -> list[tuple[float | None, float]]:
    """Correct the p values of one claim by Holm's procedure.

    The k-th smallest of m is multiplied by m - k + 1, and no adjusted value is below the one before. Its interval has the
    same correction, ``alpha / (m - k + 1)``, if it is significant, and else ``alpha / m``: so an interval leaves zero out
    exactly if its adjusted p value is at most ``alpha``.

    Args:
        p_values: one per planned comparison; None for one that could not be tested, which still counts.
        alpha: of the whole claim.

    Returns:
        per comparison the adjusted p value, None if it was not tested, and the ``alpha`` of its interval.
    """
    total, largest = len(p_values), 0.0
    results: list[tuple[float | None, float]] = [(None, alpha / total)] * total
    for rank, (p, index) in enumerate(sorted((p, index) for index, p in enumerate(p_values) if p is not None)):
        largest = max(largest, min(1.0, (total - rank) * p))
        results[index] = (largest, alpha / (total - rank if largest <= alpha else total))
    return results


def seeds_to_decide(margin: float, noise: float, comparisons: int) -> int:
    """Return how many seeds make an interval no wider than ``margin``.

    It then either leaves zero out, or lies within plus and minus ``margin``: a comparison is decided whatever it shows.
    """
    alpha = ALPHA / comparisons
    return next(seeds for seeds in count(2) if half_width(noise, seeds, alpha) <= margin / 2)
