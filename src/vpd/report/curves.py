"""Curves: losses of every experiment of a task and of every phase of pre-training, and rows of a table against each other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from vpd.report.figures import BLUE, CYCLE, FAINT, GREEN, ORANGE, empty_figure, new_figure, whole_numbers
from vpd.report.wording import metric_name

SMALL_PANELS, LARGE_PANELS = 4, 3
"""Panels side by side."""
LEGEND_WIDTH = 2.0
"""Inches for one entry of the legend."""
FRONT_COLORS = (BLUE, ORANGE)
FRONT, BEHIND = {"linewidth": 2.4, "zorder": 4}, {"linewidth": 1.5, "zorder": 3}
DASHES = ((0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))


def smooth(values: pd.Series, share: float = 0.1) -> pd.Series:
    """Centred running mean over ``share`` of the curve."""
    window = max(1, int(len(values) * share))
    return values.rolling(window, center=True, min_periods=1).mean()


def training_figure(histories: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw the training loss of each experiment: seeds thin, their smoothed mean thick, the range of all in grey.

    Args:
        histories: experiment -> frame with columns seed, step and loss.
    """
    if not histories:
        return empty_figure("not run yet")
    means = {name: smooth(frame.groupby("step")["loss"].mean(), 0.05) for name, frame in histories.items()}
    every = pd.concat(means, axis=1).sort_index().interpolate(method="index", limit_area="inside")
    losses = pd.concat([frame["loss"] for frame in histories.values()])
    figure, panels = _multiples(len(histories), "training step", share=True)
    for axes, (name, frame) in zip(panels, histories.items(), strict=True):
        axes.fill_between(every.index, every.min(axis=1), every.max(axis=1), color=FAINT, linewidth=0, zorder=1)
        for _, seed in frame.groupby("seed"):
            axes.plot(seed["step"], seed["loss"], color=BLUE, linewidth=0.7, alpha=0.4, zorder=2)
        axes.plot(means[name].index, means[name], color=BLUE, linewidth=1.8, zorder=3)
        axes.set_title(name, fontsize=10)
        _loss_axes(axes, losses)
    return figure


def pretraining_figure(history: pd.DataFrame | None) -> Figure:
    """Draw the loss of each phase of pre-training (columns phase, step, loss): faint as recorded, bold smoothed."""
    if history is None or history.empty:
        return empty_figure("no pre-training loss recorded")
    phases = list(dict.fromkeys(history["phase"]))
    figure, panels = _multiples(len(phases), "step", share=False)
    for axes, phase in zip(panels, phases, strict=True):
        lines = history[history["phase"] == phase]
        axes.plot(lines["step"], lines["loss"], color=GREEN, linewidth=0.7, alpha=0.4)
        axes.plot(lines["step"], smooth(lines["loss"]), color=GREEN, linewidth=1.8)
        axes.set_title(str(phase), fontsize=10)
        _loss_axes(axes, lines["loss"])
    return figure


def _multiples(count: int, label: str, share: bool) -> tuple[Figure, list[Axes]]:
    """``count`` small panels in a grid, with the label of the x axis; surplus panels are removed."""
    across = min(SMALL_PANELS, count)
    down = math.ceil(count / across)
    figure = new_figure(2.6 * across + 0.4, 1.9 * down + 0.4)
    panels = list(figure.subplots(down, across, sharex=share, sharey=share, squeeze=False).flat)
    for axes in panels[count:]:
        axes.remove()
    for axes in panels[max(count - across, 0) : count]:
        axes.tick_params(labelbottom=True)
    figure.supxlabel(label, fontsize=10)
    figure.supylabel("loss", fontsize=10)
    return figure, panels[:count]


def _loss_axes(axes: Axes, losses: pd.Series) -> None:
    """Use a logarithmic axis for ``losses`` if they are positive, with few round ticks."""
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


@dataclass(frozen=True)
class Curve:
    """One row of a table in one panel, which holds rows that were trained on the same data with the same schedule."""

    label: str
    panel: str
    own: bool
    """Whether it is VPD, drawn in front of the baselines."""
    history: pd.DataFrame | None = None
    """Columns seed, step and loss; None if there is none."""
    scores: pd.DataFrame | None = None
    """Columns seed, step and value of the table's metric; None without results."""


def learning_figure(curves: Sequence[Curve], metric: str) -> Figure:
    """Draw a panel of losses for each group of rows, and one of ``metric`` for each that was measured more than once."""
    losses, scores = _panels(curves, "history"), _panels(curves, "scores")
    scores = {name: frames for name, frames in scores.items() if any(f["step"].nunique() > 1 for _, f in frames)}
    count = len(losses) + len(scores)
    if not count:
        return empty_figure("not run yet")
    across = min(LARGE_PANELS, count)
    down = math.ceil(count / across)
    figure = new_figure((3.6 if across == LARGE_PANELS else 4.4) * across + 0.3, 2.9 * down + 0.7)
    axes = list(figure.subplots(down, across, squeeze=False).flat)
    figure.set_layout_engine("constrained", h_pad=0.1)
    looks = styles(curves)
    for draw, panels in ((_losses, losses), (_scores, scores)):
        for name, frames in panels.items():
            panel = axes.pop(0)
            draw(panel, frames, looks, metric)
            panel.set_title(name)
    for panel in axes:
        panel.remove()
    for panel in figure.axes[-across:]:
        panel.set_xlabel("training step")
    _legend(figure)
    return figure


def _panels(curves: Sequence[Curve], kind: str) -> dict[str, list[tuple[str, pd.DataFrame]]]:
    """(label, frame) of the curves that have a frame of ``kind``, by panel in the order of first use."""
    panels: dict[str, list[tuple[str, pd.DataFrame]]] = {curve.panel: [] for curve in curves}
    for curve in curves:
        if (frame := getattr(curve, kind)) is not None:
            panels[curve.panel].append((curve.label, frame))
    return {name: frames for name, frames in panels.items() if frames}


def styles(curves: Sequence[Curve]) -> dict[str, dict[str, Any]]:
    """Look of each label: VPD solid, thick and in front, baselines thinner and, beside VPD, broken."""
    labels = {curve.label: curve.own for curve in curves}
    mixed = len(set(labels.values())) > 1
    if not mixed:
        return {label: {"color": CYCLE[i % len(CYCLE)], "linestyle": "-", **BEHIND} for i, label in enumerate(labels)}
    front, others = [name for name in labels if labels[name]], [name for name in labels if not labels[name]]
    colors = [color for color in CYCLE if color not in FRONT_COLORS]
    looks = {name: {"color": FRONT_COLORS[i % 2], "linestyle": "-", **FRONT} for i, name in enumerate(front)}
    for i, name in enumerate(others):
        looks[name] = {"color": colors[i % len(colors)], "linestyle": DASHES[i % len(DASHES)], **BEHIND}
    return looks


def _losses(axes: Axes, frames: Sequence[tuple[str, pd.DataFrame]], looks: Mapping[str, dict], metric: str) -> None:
    means = [smooth(frame.groupby("step")["loss"].mean(), 0.05) for _, frame in frames]
    for (label, _), mean in zip(frames, means, strict=True):
        axes.plot(mean.index, mean, label=label, **looks[label])
    axes.set_ylabel("training loss")
    _loss_axes(axes, pd.concat(means))


def _scores(axes: Axes, frames: Sequence[tuple[str, pd.DataFrame]], looks: Mapping[str, dict], metric: str) -> None:
    for label, frame in frames:
        steps = frame.groupby("step")["value"]
        mean, sd = steps.mean(), steps.std().fillna(0.0)
        axes.errorbar(mean.index, mean, yerr=sd, marker="o", capsize=3, label=label, **looks[label])
    axes.set_ylabel(metric_name(metric))
    axes.margins(x=0.15)
    whole_numbers(axes)
    axes.set_xticks(sorted({step for _, frame in frames for step in frame["step"]}))


def _legend(figure: Figure) -> None:
    """One legend for all panels, below them."""
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    across = max(1, int(figure.get_figwidth() / LEGEND_WIDTH))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=across, frameon=False)
