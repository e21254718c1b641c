"""Learning curves of a table's rows against each other: training loss, and the metric where it is measured on the way."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vpd.report.curves import loss_axes, smooth
from vpd.report.names import metric_name
from vpd.report.style import BLUE, CYCLE, ORANGE, empty_figure, new_figure, whole_numbers

ACROSS = 3
LEGEND_WIDTH = 2.0
"""Inches for one entry of the legend."""
DASHES = ((0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))


@dataclass(frozen=True)
class Curve:
    """One row of a table in one panel, which holds rows that were trained on the same data with the same schedule."""

    label: str
    panel: str
    own: bool
    """Whether it is VPD, drawn in front of the baselines."""
    history: pd.DataFrame | None = None
    """Columns seed, step and loss; None if it was not kept."""
    scores: pd.DataFrame | None = None
    """Columns seed, step and value of the table's metric; None without results."""


def learning_figure(curves: Sequence[Curve], metric: str) -> Figure:
    """A panel of losses for each group of rows, and a panel of ``metric`` for each that was measured more than once."""
    panels = list(dict.fromkeys(curve.panel for curve in curves))
    losses = {name: here for name in panels if (here := _of(curves, name, "history"))}
    scores = {name: here for name in panels if _several(here := _of(curves, name, "scores"))}
    count = len(losses) + len(scores)
    if not count:
        return empty_figure("not run yet")
    across = min(ACROSS, count)
    down = math.ceil(count / across)
    width = 3.6 if across == ACROSS else 4.4
    figure = new_figure(width * across + 0.3, 2.9 * down + 0.7)
    axes = list(figure.subplots(down, across, squeeze=False).flat)
    figure.get_layout_engine().set(h_pad=0.1)
    looks = styles(curves)
    for name, here in losses.items():
        _losses(panel := axes.pop(0), here, looks)
        panel.set_title(name)
    for name, here in scores.items():
        _scores(panel := axes.pop(0), here, looks, metric)
        panel.set_title(name)
    for panel in axes:
        panel.remove()
    for panel in figure.axes[-across:]:
        panel.set_xlabel("training step")
    _legend(figure)
    return figure


def _of(curves: Sequence[Curve], panel: str, kind: str) -> list[Curve]:
    return [curve for curve in curves if curve.panel == panel and getattr(curve, kind) is not None]


def _several(curves: Sequence[Curve]) -> bool:
    return any(curve.scores["step"].nunique() > 1 for curve in curves)


def styles(curves: Sequence[Curve]) -> dict[str, dict]:
    """Look of each label: VPD solid, thick and in front, baselines thinner and, beside VPD, broken."""
    labels = {curve.label: curve.own for curve in curves}
    mixed = len(set(labels.values())) > 1
    first = [color for color in (BLUE, ORANGE) if mixed]
    others = [color for color in CYCLE if color not in first]
    counts = {True: 0, False: 0}
    looks = {}
    for label, own in labels.items():
        front = own and mixed
        colors, number = (first if front else others), counts[own]
        dash = DASHES[number % len(DASHES)] if mixed and not own else "-"
        looks[label] = {"color": colors[number % len(colors)], "linestyle": dash}
        looks[label] |= {"linewidth": 2.4 if front else 1.5, "zorder": 4 if front else 3}
        counts[own] += 1
    return looks


def _losses(axes: Axes, curves: Sequence[Curve], looks: Mapping[str, dict]) -> None:
    means = [smooth(curve.history.groupby("step")["loss"].mean(), 0.05) for curve in curves]
    for curve, mean in zip(curves, means, strict=True):
        axes.plot(mean.index, mean, label=curve.label, **looks[curve.label])
    axes.set_ylabel("training loss")
    loss_axes(axes, pd.concat(means))


def _scores(axes: Axes, curves: Sequence[Curve], looks: Mapping[str, dict], metric: str) -> None:
    for curve in curves:
        steps = curve.scores.groupby("step")["value"]
        mean, look = steps.mean(), looks[curve.label]
        axes.errorbar(mean.index, mean, yerr=steps.std().fillna(0.0), marker="o", capsize=3, label=curve.label, **look)
    axes.set_ylabel(metric_name(metric))
    axes.margins(x=0.15)
    whole_numbers(axes)
    axes.set_xticks(sorted({step for curve in curves for step in curve.scores["step"]}))


def _legend(figure: Figure) -> None:
    handles = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    across = max(1, int(figure.get_figwidth() / LEGEND_WIDTH))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=across, frameon=False)
