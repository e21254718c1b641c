"""Average precision: how well scores rank the images that show a class above those that do not."""

from __future__ import annotations

from torch import Tensor


def average_precision(scores: Tensor, positive: Tensor) -> float:
    """Mean, over the positives, of the share of positives among all that score at least as high."""
    ranked = positive[scores.argsort(descending=True, stable=True)]
    precision = ranked.cumsum(0) / (ranked.new_ones(len(ranked)).cumsum(0))
    return precision[ranked].mean().item()


def mean_average_precision(scores: Tensor, shown: Tensor) -> tuple[float, float]:
    """Mean over the classes that some of the images show and some do not, and what chance would have.

    ``scores`` (N,K) and ``shown`` (N,K) bool; (0, 0) where no class is such.
    """
    mixed = [column for column in range(shown.shape[1]) if 0 < shown[:, column].sum() < len(shown)]
    count = max(len(mixed), 1)
    found = sum(average_precision(scores[:, column], shown[:, column]) for column in mixed)
    return found / count, sum(shown[:, column].float().mean().item() for column in mixed) / count
