"""Loss curves: small multiples of every experiment of a task, and of every phase of pre-training."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from vpd.report.style import BLUE, FAINT, GREEN, empty_figure, new_figure, whole_numbers

ACROSS = 4


def _multiples(count: int, across: int = ACROSS, share: bool = True) -> tuple[Figure, list[Axes]]:
    """``count`` small panels in a grid; surplus panels are removed."""
    across = min(across, count)
    down = math.ceil(count / across)
    figure = new_figure(2.6 * across + 0.4, 1.9 * down + 0.4)
    panels = list(figure.subplots(down, across, sharex=share, sharey=share, squeeze=False).flat)
    for axes in panels[count:]:
        axes.remove()
    for axes in panels[max(count - across, 0) : count]:
        axes.tick_params(labelbottom=True)
    return figure, panels[:count]


def training_figure(histories: Mapping[str, pd.DataFrame]) -> Figure:
    """Training loss of each experiment over the range of all in grey: seeds thin, their smoothed mean thick.

    ``histories``: experiment -> frame with columns seed, step and loss. The loss axis is logarithmic.
    """
    if not histories:
        return empty_figure("not run yet")
    means = {name: smooth(frame.groupby("step")["loss"].mean(), 0.05) for name, frame in histories.items()}
    every = pd.concat(means, axis=1).sort_index().interpolate(method="index", limit_area="inside")
    figure, panels = _multiples(len(histories))
    for axes, (name, frame) in zip(panels, histories.items(), strict=True):
        axes.fill_between(every.index, every.min(axis=1), every.max(axis=1), color=FAINT, linewidth=0, zorder=1)
        for _, seed in frame.groupby("seed"):
            axes.plot(seed["step"], seed["loss"], color=BLUE, linewidth=0.7, alpha=0.4, zorder=2)
        axes.plot(means[name].index, means[name], color=BLUE, linewidth=1.8, zorder=3)
        axes.set_title(name, fontsize=10)
        loss_axes(axes, pd.concat([frame["loss"] for frame in histories.values()]))
    figure.supxlabel("training step", fontsize=10)
    figure.supylabel("loss", fontsize=10)
    return figure


def loss_axes(axes: Axes, losses: pd.Series) -> None:
    """Logarithmic axis for ``losses`` if they are positive, with few round ticks."""
    whole_numbers(axes)
    low, high = losses.min(), losses.max()
    if low > 0:
        axes.set_yscale("log")
        ticks = _round_ticks(low, high)
        axes.set_yticks(ticks, [f"{tick:.3g}" for tick in ticks])
        axes.yaxis.set_minor_locator(NullLocator())


def _round_ticks(low: float, high: float) -> list[float]:
    """Round numbers in the range, 1, 2 and 5 times powers of ten or closer ones, thinned to at most six."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7), [digit / 10 for digit in range(10, 100)]):
        ticks = [tick for power in powers for digit in digits if low <= (tick := digit * 10.0**power) <= high]
        if len(ticks) > 1:
            return ticks[:: math.ceil(len(ticks) / 6)]
    return [low, high]


def pretraining_figure(history: pd.DataFrame | None) -> Figure:
    """Loss of each phase of pre-training (columns phase, step, loss): faint as recorded, bold smoothed."""
    if history is None or history.empty:
        return empty_figure("no pre-training loss recorded")
    phases = list(dict.fromkeys(history["phase"]))
    figure, panels = _multiples(len(phases), share=False)
    for axes, phase in zip(panels, phases, strict=True):
        lines = history[history["phase"] == phase]
        axes.plot(lines["step"], lines["loss"], color=GREEN, linewidth=0.7, alpha=0.4)
        axes.plot(lines["step"], smooth(lines["loss"]), color=GREEN, linewidth=1.8)
        axes.set_title(str(phase), fontsize=10)
        loss_axes(axes, lines["loss"])
    figure.supxlabel("step", fontsize=10)
    figure.supylabel("loss", fontsize=10)
    return figure


def smooth(values: pd.Series, share: float = 0.1) -> pd.Series:
    """Centred running mean over ``share`` of the curve."""
    window = max(1, int(len(values) * share))
    return values.rolling(window, center=True, min_periods=1).mean()
