"""Result figures: their common look, a metric against pre-training steps, and the rows of a table as dots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import Transform, offset_copy

from vpd.config.reported import ReportedTable
from vpd.report.cells import Cell
from vpd.report.claims import Points
from vpd.report.wording import heading, metric_name, short

INK, MUTED, FAINT = "#222222", "#6b6b6b", "#d5d5d5"
BLUE, ORANGE, GREEN = "#0072b2", "#d55e00", "#009e73"
"""From the palette of Okabe and Ito, which is distinguishable with any colour vision."""
CYCLE = (BLUE, ORANGE, GREEN, "#cc79a7", "#b58900", "#56b4e9", MUTED)
"""Colours of lines: all of that palette that is visible on white."""
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans", "font.size": 10, "text.color": INK, "figure.dpi": 100, "savefig.dpi": 150,
    "axes.titlesize": 11, "axes.titlelocation": "left", "axes.labelcolor": INK, "axes.edgecolor": MUTED,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True,
    "grid.color": "#ececec", "grid.linewidth": 0.8,
    "xtick.color": MUTED, "ytick.color": MUTED, "xtick.labelcolor": INK, "ytick.labelcolor": INK,
    "svg.hashsalt": "vpd", "svg.fonttype": "path",  # equal ids and no fonts: equal bytes on every machine
}  # fmt: skip


def styled() -> AbstractContextManager[None]:
    """Make and save figures in this context; it ignores the user's matplotlibrc."""
    return matplotlib.rc_context({**matplotlib.rcParamsDefault, "backend": "agg", **STYLE})


def new_figure(width: float, height: float) -> Figure:
    """Make an empty figure, sizes in inches."""
    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Figure, folder: Path, name: str) -> None:
    """Write ``name``.svg and ``name``.png without dates or versions, so that equal numbers give equal bytes."""
    # The layout takes most of the time, so both files share one.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    figure.savefig(folder / f"{name}.svg", metadata={"Date": None, "Creator": None})
    figure.savefig(folder / f"{name}.png", metadata={"Software": None})


def empty_figure(message: str) -> Figure:
    """Make a figure that only says why it is empty."""
    figure = new_figure(6, 1.5)
    figure.text(0.5, 0.5, message, ha="center", va="center", color=MUTED)
    return figure


def whole_numbers(axes: Axes) -> None:
    """Label the x axis with thousands as ``2k`` and millions as ``1.2M``."""
    axes.xaxis.set_major_formatter(lambda value, _: short(value))


SEED: dict[str, Any] = {"s": 16, "alpha": 0.55, "linewidths": 0, "zorder": 3}
MIDDLE = ("axes fraction", "data")
"""Coordinates of a text in the middle of a row."""
PAPER: dict[str, Any] = {"marker": "D", "markersize": 8, "color": "none", "markeredgecolor": INK, "zorder": 5}


def trend_figure(points: Points, comparable: bool) -> Figure:
    """Draw mean, standard deviation and single seeds against pre-training steps; untrained weights are at 0."""
    measured = [(steps, cell) for steps, cell in sorted(points, key=lambda point: point[0]) if cell.values]
    if not measured:
        return empty_figure("not run yet")
    figure = new_figure(7.2, 4.4)
    axes = figure.subplots()
    means = [(float(steps), cell.mean) for steps, cell in measured]
    axes.plot(*zip(*[mean for mean in means if mean[0]], strict=True), color=BLUE, linewidth=2, zorder=2)
    axes.plot(*zip(*means, strict=True), color=BLUE, linewidth=1.2, linestyle=(0, (3, 3)), zorder=1)
    left = offset_copy(axes.transData, figure, x=-7, units="points")  # where the seeds do not cover their mean
    for steps, cell in measured:
        color = BLUE if steps else ORANGE
        if cell.sd is not None:
            axes.scatter([steps] * len(cell.values), cell.values, transform=left, color=color, **SEED)
        axes.errorbar(steps, cell.mean, yerr=cell.sd, color=color, marker="o", markersize=7, capsize=4, zorder=4)
    printed = [(steps, cell.paper) for steps, cell in measured if cell.paper is not None]
    if comparable and printed:
        axes.plot(*zip(*printed, strict=True), linestyle="", label="paper", **PAPER)
        axes.legend(loc="upper left", frameon=False)
    _label_points(axes, measured)
    axes.set_xlabel("pre-training steps of the diffusion model")
    axes.set_ylabel(metric_name(measured[0][1].metric))
    axes.margins(x=0.1, y=0.12)
    whole_numbers(axes)
    axes.grid(axis="x", visible=False)
    return figure


def _label_points(axes: Axes, measured: Points) -> None:
    """Name each point to its lower right, which a rising curve leaves free; in a crowd the first above, others below."""
    width = max(steps for steps, _ in measured) or 1
    height = max(cell.mean for _, cell in measured) - min(cell.mean for _, cell in measured) or 1

    def crowded(one: tuple[int, Cell], other: tuple[int, Cell]) -> bool:
        return abs(one[0] - other[0]) < 0.12 * width and abs(one[1].mean - other[1].mean) < 0.15 * height

    for index, point in enumerate(measured):
        left = any(crowded(point, other) for other in measured[:index])
        right = any(crowded(point, other) for other in measured[index + 1 :])
        offset, places = ((9, -7), ("left", "top"))
        if right:
            offset, places = ((0, -16), ("center", "top")) if left else ((0, 16), ("center", "bottom"))
        at = (point[0], point[1].mean)
        axes.annotate(point[1].row, at, offset, textcoords="offset points", ha=places[0], va=places[1])


def dots_figure(columns: Mapping[str, Sequence[Cell]], source: ReportedTable, comparable: bool) -> Figure:
    """Draw the rows of a table as dots, one panel per column: mean and standard deviation, below them the seeds."""
    if not any(cell.values for cells in columns.values() for cell in cells):
        return empty_figure("not run yet")
    rows = [cell.row for cell in next(iter(columns.values()))]
    figure = new_figure(2.4 + 3.1 * len(columns), 1.3 + 0.45 * len(rows))
    panels = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    for axes, (column, cells) in zip(panels, columns.items(), strict=True):
        below = offset_copy(axes.transData, figure, y=-8, units="points")
        _dots(axes, cells, below, source.decimals(column), comparable)
        axes.set_title(heading(column))
        axes.set_xlabel(metric_name(cells[0].metric))
    panels[0].set_yticks(range(len(rows)), rows)
    panels[0].set_ylim(len(rows) - 0.4, -0.6)
    if comparable:
        handle = Line2D([], [], linestyle="", label="paper", **PAPER)
        figure.legend(handles=[handle], loc="outside upper right", frameon=False)
    return figure


def _dots(axes: Axes, cells: Sequence[Cell], below: Transform, decimals: int, comparable: bool) -> None:
    best = max((cell.mean * cell.sign for cell in cells if cell.values), default=None)
    for y, cell in enumerate(cells):
        if not cell.values:
            axes.annotate("not run", (0.5, y), xycoords=MIDDLE, va="center", ha="center", color=MUTED)
            continue
        color = ORANGE if cell.mean * cell.sign == best else BLUE
        if cell.sd is not None:
            axes.scatter(cell.values, [y] * len(cell.values), transform=below, color=color, **SEED)
        axes.errorbar(cell.mean, y, xerr=cell.sd, color=color, marker="o", markersize=7, capsize=3, zorder=4)
        label = f"{cell.mean:.{decimals}f}"
        axes.annotate(label, (cell.mean, y), (0, 6), textcoords="offset points", ha="center", fontsize=8.5)
        if comparable and cell.paper is not None:
            axes.plot(cell.paper, y, **PAPER)
    axes.grid(axis="y", color=FAINT, visible=True)
    axes.margins(x=0.12)
    axes.locator_params(axis="x", nbins=5)
