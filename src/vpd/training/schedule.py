"""Learning-rate schedules as pure functions of the step: nothing to save, nothing to restore."""

from __future__ import annotations

from vpd.config.schema import ScheduleSpec


def factor(step: int, total: int, spec: ScheduleSpec) -> float:
    """Multiplier of every learning rate at the 0-based ``step`` of ``total``."""
    return SHAPES[spec.kind](step, total, spec) * _warmup(step, total, spec)


def _poly(step: int, total: int, spec: ScheduleSpec) -> float:
    """mmcv's PolyLrUpdaterHook; without warm-up also the referring schedule's LambdaLR (G11, R5)."""
    return (1.0 - spec.min_ratio) * (1.0 - step / total) ** spec.power + spec.min_ratio


def _triangular(step: int, total: int, spec: ScheduleSpec) -> float:
    """The depth schedule (D6): up to 1 at the peak, down for as many steps again, then flat at ``min_ratio``.

    It counts steps from 1. A peak of at least one step keeps one-epoch runs defined (D9).
    """
    count, half, low = step + 1, max(1, round(spec.peak * total)), spec.min_ratio
    if count < half:
        return (1.0 - low) * (count / half) ** spec.power + low
    fallen = min(1.0, count / half - 1.0)
    return max(low, (low - 1.0) * fallen**spec.power + 1.0)


def _constant(step: int, total: int, spec: ScheduleSpec) -> float:
    return 1.0


def _warmup(step: int, total: int, spec: ScheduleSpec) -> float:
    """mmcv's linear warm-up: from ``warmup_ratio`` to 1 over the first share of all steps."""
    steps = round(spec.warmup * total)
    if step >= steps:
        return 1.0
    return 1.0 - (1.0 - step / steps) * (1.0 - spec.warmup_ratio)


SHAPES = {"poly": _poly, "triangular": _triangular, "constant": _constant}
