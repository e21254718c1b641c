"""Differences between two experiments, and slopes, over their seeds: 95 % interval and effect size."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats

LEVEL = 0.95


@dataclass(frozen=True)
class Difference:
    """Mean of ``a`` minus mean of ``b``, with its interval over seeds."""

    mean: float
    seeds: tuple[int, int]
    interval: tuple[float, float] | None = None
    """None if either side has one seed."""
    effect: float | None = None
    """Cohen's d: the difference over the pooled standard deviation; None without spread."""
    paired: bool = False
    """Whether it is a mean of one number per seed, so that both counts of ``seeds`` are the same seeds."""

    @property
    def significant(self) -> int:
        """Sign of the difference if the interval excludes zero, else 0."""
        low, high = self.interval or (0, 0)
        return (low > 0) - (high < 0)


def difference(a: Sequence[float], b: Sequence[float]) -> Difference:
    """Compare two sets of independent seeds by Welch's t interval, which allows unequal spread."""
    mean, seeds = statistics.fmean(a) - statistics.fmean(b), (len(a), len(b))
    if min(seeds) < 2:
        return Difference(mean, seeds)
    squares = sum(statistics.variance(values) * (len(values) - 1) for values in (a, b))
    if squares == 0:  # t is undefined without spread, and scipy returns NaN
        return Difference(mean, seeds, (mean, mean))
    low, high = stats.ttest_ind(a, b, equal_var=False).confidence_interval(LEVEL)
    return Difference(mean, seeds, (float(low), float(high)), mean / math.sqrt(squares / (sum(seeds) - 2)))


def rise(steps: Sequence[float], values: Sequence[Sequence[float]]) -> Difference:
    """Mean least-squares slope per doubling of ``steps``, with Student's t interval.

    Args:
        steps: x of every curve, positive.
        values: one curve per seed.
    """
    x = [math.log2(step) for step in steps]
    slopes = [statistics.linear_regression(x, curve).slope for curve in values]
    mean, seeds = statistics.fmean(slopes), (len(slopes), len(slopes))
    if len(slopes) < 2:
        return Difference(mean, seeds, paired=True)
    sd = statistics.stdev(slopes)
    if sd == 0:
        return Difference(mean, seeds, (mean, mean), paired=True)
    low, high = stats.ttest_1samp(slopes, 0).confidence_interval(LEVEL)
    return Difference(mean, seeds, (float(low), float(high)), mean / sd, paired=True)
