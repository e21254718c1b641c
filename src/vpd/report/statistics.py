"""Differences between two experiments, and slopes, over their seeds: interval and effect size."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import t as student

LEVEL = 0.95


@dataclass(frozen=True)
class Difference:
    """Mean of ``a`` minus mean of ``b``, with what the seeds say about it."""

    mean: float
    seeds: tuple[int, int]
    low: float | None = None
    """Ends of the Welch interval; None if either side has one seed."""
    high: float | None = None
    effect: float | None = None
    """Cohen's d: the difference over the pooled standard deviation; None without spread."""
    paired: bool = False
    """Whether it is a mean of one number per seed, so that both counts of ``seeds`` are the same seeds."""

    @property
    def settled(self) -> int:
        """Sign of the difference if the interval excludes zero, else 0."""
        if self.low is None or self.low <= 0 <= self.high:
            return 0
        return 1 if self.low > 0 else -1


def difference(a: Sequence[float], b: Sequence[float], level: float = LEVEL) -> Difference:
    """Compare two sets of independent seeds by Welch's t interval, which allows unequal spread."""
    mean = statistics.fmean(a) - statistics.fmean(b)
    seeds = (len(a), len(b))
    if min(seeds) < 2:
        return Difference(mean, seeds)
    shares = [statistics.variance(values) / len(values) for values in (a, b)]
    half = _half_width(shares, seeds, level)
    return Difference(mean, seeds, mean - half, mean + half, _effect(mean, a, b))


def rise(steps: Sequence[float], values: Sequence[Sequence[float]], level: float = LEVEL) -> Difference:
    """Mean least-squares slope per doubling of ``steps``, one curve of ``values`` per seed; Student's interval."""
    x = [math.log2(step) for step in steps]
    slopes = [statistics.linear_regression(x, curve).slope for curve in values]
    mean, count = statistics.fmean(slopes), len(slopes)
    if count < 2:
        return Difference(mean, (count, count), paired=True)
    sd = statistics.stdev(slopes)
    half = float(student.ppf((1 + level) / 2, count - 1)) * sd / math.sqrt(count)
    return Difference(mean, (count, count), mean - half, mean + half, mean / sd if sd else None, paired=True)


def _half_width(shares: list[float], seeds: tuple[int, int], level: float) -> float:
    """Student quantile times the standard error, with the degrees of freedom of Welch and Satterthwaite."""
    variance = sum(shares)
    if variance == 0:
        return 0.0
    freedom = variance**2 / sum(share**2 / (count - 1) for share, count in zip(shares, seeds, strict=True))
    return float(student.ppf((1 + level) / 2, freedom)) * math.sqrt(variance)


def _effect(mean: float, a: Sequence[float], b: Sequence[float]) -> float | None:
    squares = sum(statistics.variance(values) * (len(values) - 1) for values in (a, b))
    pooled = math.sqrt(squares / (len(a) + len(b) - 2))
    return mean / pooled if pooled else None
