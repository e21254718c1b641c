"""Result figures: a metric against pre-training steps, and the rows of a table as dots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import offset_copy

from vpd.config.table_checks import LOWER_IS_BETTER, FigureSpec
from vpd.report.cells import Cell
from vpd.report.claims import Points
from vpd.report.names import heading, metric_name
from vpd.report.style import BLUE, FAINT, INK, MUTED, ORANGE, empty_figure, new_figure, whole_numbers
from vpd.utils.errors import UserError

if TYPE_CHECKING:
    from vpd.config.params import Params

SEED = {"s": 16, "alpha": 0.55, "linewidths": 0, "zorder": 3}
PAPER = {"marker": "D", "markersize": 8, "color": "none", "markeredgecolor": INK, "zorder": 5}


def pretraining_steps(params: Params, name: str, figure: FigureSpec) -> dict[str, int]:
    """Pre-training steps of each point's U-Net: 0 if untrained, else of its milestone, else as the figure states.

    Raises UserError if neither the milestones nor the figure know a checkpoint.
    """
    known = {**figure.steps, **params.pretraining.milestones}
    steps = {}
    for point, experiment in figure.points.items():
        spec = params.resolve(experiment)
        if spec.model.unet == "random":
            steps[point] = 0
        elif spec.checkpoint in known:
            steps[point] = known[spec.checkpoint]
        else:
            cure = f"add it to figures.{name}.steps"
            raise UserError(f"figures.{name}: the pre-training steps of '{spec.checkpoint}' are not known; {cure}")
    return steps


def trend_figure(points: Points, comparable: bool) -> Figure:
    """Mean, standard deviation and single seeds against pre-training steps; untrained weights stand at 0."""
    shown = [(steps, cell) for steps, cell in sorted(points, key=lambda point: point[0]) if cell.values]
    if not shown:
        return empty_figure("not run yet")
    figure = new_figure(7.2, 4.4)
    axes = figure.subplots()
    x = np.array([steps for steps, _ in shown], dtype=float)
    means = np.array([cell.value for _, cell in shown])
    trained = x > 0
    axes.plot(x[trained], means[trained], color=BLUE, linewidth=2, zorder=2)
    axes.plot(x, means, color=BLUE, linewidth=1.2, linestyle=(0, (3, 3)), zorder=1)
    for steps, cell in shown:
        _point(axes, steps, cell, BLUE if steps else ORANGE)
    if comparable:
        _paper_points(axes, shown)
    _label_points(axes, shown)
    _finish_trend(axes, shown[0][1].metric)
    return figure


def _point(axes: Axes, steps: float, cell: Cell, color: str) -> None:
    """Mean and spread, with the seeds a little to the left."""
    aside = offset_copy(axes.transData, axes.figure, x=-7, units="points")
    if cell.sd is not None:
        axes.scatter([steps] * len(cell.values), cell.values, transform=aside, color=color, **SEED)
    axes.errorbar(steps, cell.value, yerr=cell.sd, color=color, marker="o", markersize=7, capsize=4, zorder=4)


def _paper_points(axes: Axes, shown: Points) -> None:
    points = [(steps, cell.paper) for steps, cell in shown if cell.paper is not None]
    if points:
        axes.plot(*zip(*points, strict=True), linestyle="", label="paper", **PAPER)
        axes.legend(loc="upper left", frameon=False)


def _label_points(axes: Axes, shown: Points) -> None:
    """Name each point to its lower right, which a rising curve leaves free; in a crowd the first above, others below."""
    width = max(steps for steps, _ in shown) or 1
    height = max(cell.value for _, cell in shown) - min(cell.value for _, cell in shown) or 1

    def crowded(one: tuple[int, Cell], other: tuple[int, Cell]) -> bool:
        return abs(one[0] - other[0]) < 0.12 * width and abs(one[1].value - other[1].value) < 0.15 * height

    for index, point in enumerate(shown):
        left = any(crowded(point, other) for other in shown[:index])
        right = any(crowded(point, other) for other in shown[index + 1 :])
        offset, places = ((9, -7), ("left", "top"))
        if right:
            offset, places = ((0, -16), ("center", "top")) if left else ((0, 16), ("center", "bottom"))
        at = (point[0], point[1].value)
        axes.annotate(point[1].row, at, offset, textcoords="offset points", ha=places[0], va=places[1])


def _finish_trend(axes: Axes, metric: str) -> None:
    axes.set_xlabel("pre-training steps of the diffusion model")
    axes.set_ylabel(metric_name(metric))
    axes.margins(x=0.1, y=0.12)
    whole_numbers(axes)
    axes.grid(axis="x", visible=False)


def dots_figure(columns: Mapping[str, Sequence[Cell]], decimals: Mapping[str, int], comparable: bool) -> Figure:
    """The rows of a table as dots, one panel per column: mean and standard deviation, below them the seeds."""
    if not any(cell.values for cells in columns.values() for cell in cells):
        return empty_figure("not run yet")
    rows = [cell.row for cell in next(iter(columns.values()))]
    figure = new_figure(2.4 + 3.1 * len(columns), 1.3 + 0.45 * len(rows))
    panels = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    for axes, (column, cells) in zip(panels, columns.items(), strict=True):
        _dots(axes, cells, decimals[column], comparable)
        axes.set_title(heading(column))
        axes.set_xlabel(metric_name(cells[0].metric))
    panels[0].set_yticks(range(len(rows)), rows)
    panels[0].set_ylim(len(rows) - 0.4, -0.6)
    if comparable:
        handle = Line2D([], [], linestyle="", label="paper", **PAPER)
        figure.legend(handles=[handle], loc="outside upper right", frameon=False)
    return figure


def _dots(axes: Axes, cells: Sequence[Cell], decimals: int, comparable: bool) -> None:
    best = (min if cells[0].metric in LOWER_IS_BETTER else max)((c.value for c in cells if c.values), default=None)
    below = offset_copy(axes.transData, axes.figure, y=-8, units="points")
    for y, cell in enumerate(cells):
        if not cell.values:
            axes.annotate(
                "not run", (0.5, y), xycoords=("axes fraction", "data"), va="center", ha="center", color=MUTED
            )
            continue
        color = ORANGE if cell.value == best else BLUE
        if cell.sd is not None:
            axes.scatter(cell.values, [y] * len(cell.values), transform=below, color=color, **SEED)
        axes.errorbar(cell.value, y, xerr=cell.sd, color=color, marker="o", markersize=7, capsize=3, zorder=4)
        label = f"{cell.value:.{decimals}f}"
        axes.annotate(label, (cell.value, y), (0, 6), textcoords="offset points", ha="center", fontsize=8.5)
        if comparable and cell.paper is not None:
            axes.plot(cell.paper, y, **PAPER)
    axes.grid(axis="y", color=FAINT, visible=True)
    axes.margins(x=0.12)
    axes.locator_params(axis="x", nbins=5)
