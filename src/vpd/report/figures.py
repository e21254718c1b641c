"""Figures: a metric against pre-training, rows of a table as dots, losses, and learning curves."""

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator
from matplotlib.transforms import Transform, offset_copy

from vpd.config.reported import ReportedTable
from vpd.report.cells import Cell
from vpd.report.claims import Points
from vpd.report.wording import heading, metric_name, short

INK, MUTED, FAINT = "#222222", "#6b6b6b", "#d5d5d5"
# From the palette of Okabe and Ito, which is distinguishable with any colour vision.
BLUE, ORANGE, GREEN = "#0072b2", "#d55e00", "#009e73"
CYCLE = (BLUE, ORANGE, GREEN, "#cc79a7", "#b58900", "#56b4e9", MUTED)  # all of it that is visible on white
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans", "font.size": 10, "text.color": INK, "figure.dpi": 100, "savefig.dpi": 150,
    "axes.titlesize": 11, "axes.titlelocation": "left", "axes.labelcolor": INK, "axes.edgecolor": MUTED,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True,
    "grid.color": "#ececec", "grid.linewidth": 0.8,
    "xtick.color": MUTED, "ytick.color": MUTED, "xtick.labelcolor": INK, "ytick.labelcolor": INK,
    "text.parse_math": False,  # a dollar sign in a label is no formula
    "svg.hashsalt": "vpd", "svg.fonttype": "path",  # equal ids and no fonts: equal bytes on every machine
}  # fmt: skip
CENTRED: dict[str, Any] = {"va": "center", "ha": "center", "color": MUTED}


def styled() -> AbstractContextManager[None]:
    """Make and save figures in this context; it ignores the user's matplotlibrc."""
    return matplotlib.rc_context({**matplotlib.rcParamsDefault, "backend": "agg", **STYLE})


def save(figure: Figure, folder: Path, name: str) -> None:
    """Write ``name``.svg and ``name``.png without dates or versions, so that equal numbers give equal bytes."""
    # The layout takes most of the time, so both files share one.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    figure.savefig(folder / f"{name}.svg", metadata={"Date": None, "Creator": None})
    figure.savefig(folder / f"{name}.png", metadata={"Software": None})


def empty_figure() -> Figure:
    """Make a figure that only says why it is empty."""
    figure = Figure(figsize=(6, 1.5), layout="constrained")
    figure.text(0.5, 0.5, "not run yet", **CENTRED)
    return figure


def _grid(count: int, most: int, width: float, height: float, share: bool = False) -> tuple[Figure, list[Axes], int]:
    """Make ``count`` panels, sizes in inches, at most ``most`` side by side; also return how many are side by side."""
    across = min(most, count)
    down = math.ceil(count / across)
    figure = Figure(figsize=(width * across + 0.4, height * down + 0.5), layout="constrained")
    panels = list(figure.subplots(down, across, sharex=share, sharey=share, squeeze=False).flat)
    for axes in panels[count:]:
        axes.remove()
    return figure, panels[:count], across


FRONT, BEHIND = {"linewidth": 2.4, "zorder": 4}, {"linewidth": 1.5, "zorder": 3}
DASHES = ((0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))
SEED: dict[str, Any] = {"s": 16, "alpha": 0.55, "linewidths": 0, "zorder": 3}
PAPER: dict[str, Any] = {"marker": "D", "markersize": 8, "color": "none", "markeredgecolor": INK, "zorder": 5}


def trend_figure(points: Points, comparable: bool) -> Figure | None:
    """Draw mean, standard deviation and single seeds against pre-training; untrained weights are at 0."""
    measured = [(steps, cell) for steps, cell in sorted(points, key=lambda point: point[0]) if cell.values]
    if not measured:
        return None
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
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
    for index, (steps, cell) in enumerate(measured):
        # The first above; others lower right, which a rising curve leaves free.
        offset, across, down = ((9, -7), "left", "top") if index else ((0, 16), "center", "bottom")
        axes.annotate(cell.row, (steps, cell.mean), offset, textcoords="offset points", ha=across, va=down)
    axes.set_xlabel(f"pre-training of the diffusion model ({'steps' if comparable else 'images seen'})")
    axes.set_ylabel(metric_name(measured[0][1].metric))
    axes.margins(x=0.1, y=0.12)
    if trained := [steps for steps, _ in measured if steps]:
        axes.set_xscale(
            "symlog", linthresh=min(trained)
        )  # milestones span orders of magnitude; the untrained stand at 0
    axes.xaxis.set_major_formatter(short)
    axes.grid(axis="x", visible=False)
    return figure


def dots_figure(columns: Mapping[str, Sequence[Cell]], source: ReportedTable, comparable: bool) -> Figure | None:
    """Draw the rows of a table as dots, one panel per column: mean and standard deviation, below them the seeds."""
    if not any(cell.values for cells in columns.values() for cell in cells):
        return None
    rows = [cell.row for cell in next(iter(columns.values()))]
    figure = Figure(figsize=(2.4 + 3.1 * len(columns), 1.3 + 0.45 * len(rows)), layout="constrained")
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
            axes.annotate("not run", (0.5, y), xycoords=("axes fraction", "data"), **CENTRED)
            continue
        color = ORANGE if cell.mean * cell.sign == best else BLUE
        if cell.sd is not None:
            axes.scatter(cell.values, [y] * len(cell.values), transform=below, color=color, **SEED)
        axes.errorbar(cell.mean, y, xerr=cell.sd, color=color, marker="o", markersize=7, capsize=3, zorder=4)
        text, at = f"{cell.mean:.{decimals}f}", (cell.mean, y)
        axes.annotate(text, at, (0, 6), textcoords="offset points", ha="center", fontsize=8.5)
        if comparable and cell.paper is not None:
            axes.plot(cell.paper, y, **PAPER)
    axes.grid(axis="y", color=FAINT, visible=True)
    axes.margins(x=0.12)
    axes.locator_params(axis="x", nbins=5)


def _smooth(values: pd.Series, share: float = 0.05) -> pd.Series:
    """Centred running mean over ``share`` of the curve."""
    return values.rolling(max(1, int(len(values) * share)), center=True, min_periods=1).mean()


def loss_figure(histories: Mapping[str, pd.DataFrame], label: str, share: bool) -> Figure | None:
    """Draw a panel of losses by name: seeds thin, their smoothed mean thick; ``share``: equal axes, all losses grey."""
    if not histories:
        return None
    smoothing, color = (0.05, BLUE) if share else (0.1, GREEN)
    means = {name: _smooth(frame.groupby("step")["loss"].mean(), smoothing) for name, frame in histories.items()}
    every = pd.concat(means, axis=1).sort_index().interpolate(method="index", limit_area="inside")
    losses = pd.concat([frame["loss"] for frame in histories.values()])
    figure, panels, across = _grid(len(histories), 4, 2.6, 1.9, share)
    for axes, (name, frame) in zip(panels, histories.items(), strict=True):
        if share:
            axes.fill_between(every.index, every.min(axis=1), every.max(axis=1), color=FAINT, linewidth=0, zorder=1)
        for _, seed in frame.groupby("seed"):
            axes.plot(seed["step"], seed["loss"], color=color, linewidth=0.7, alpha=0.4, zorder=2)
        axes.plot(means[name].index, means[name], color=color, linewidth=1.8, zorder=3)
        axes.set_title(name, fontsize=10)
        _loss_axes(axes, losses if share else frame["loss"])
    for axes in panels[-across:]:
        axes.tick_params(labelbottom=True)
    figure.supxlabel(label, fontsize=10)
    figure.supylabel("loss", fontsize=10)
    return figure


def _loss_axes(axes: Axes, losses: pd.Series) -> None:
    """Use a logarithmic axis for ``losses`` if they are positive, with few round ticks."""
    axes.xaxis.set_major_formatter(short)
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
    own: bool  # whether it is VPD, drawn in front of the baselines
    history: pd.DataFrame | None = None  # columns seed, step and loss; None if there is none
    scores: pd.DataFrame | None = None  # columns seed, step and value of the table's metric; None without results


def learning_figure(curves: Sequence[Curve], metric: str) -> Figure | None:
    """Draw a panel of losses for each group of rows, and one of ``metric`` for each that was measured more than once."""
    losses = list(dict.fromkeys(curve.panel for curve in curves if curve.history is not None))
    scores = list(dict.fromkeys(c.panel for c in curves if c.scores is not None and c.scores["step"].nunique() > 1))
    if not (count := len(losses) + len(scores)):
        return None
    figure, panels, across = _grid(count, 3, 3.6 if count >= 3 else 4.4, 2.9)
    figure.set_layout_engine("constrained", h_pad=0.1)
    looks = _styles(curves)
    for index, (axes, name) in enumerate(zip(panels, losses + scores, strict=True)):
        group = [curve for curve in curves if curve.panel == name]
        if index < len(losses):
            _draw_losses(axes, group, looks)
        else:
            _draw_scores(axes, group, looks, metric)
        axes.set_title(name)
    for axes in panels[-across:]:
        axes.set_xlabel("training step")
    handles: dict[str, Any] = {}  # one legend for all panels, below them
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    columns = max(1, int(figure.get_figwidth() / 2))  # an entry takes about two inches
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns, frameon=False)
    return figure


def _styles(curves: Sequence[Curve]) -> dict[str, dict[str, Any]]:
    """Look of each label: VPD solid, thick and in front, baselines thinner and, beside VPD, broken."""
    labels = {curve.label: curve.own for curve in curves}
    if len(set(labels.values())) == 1:
        return {label: {"color": CYCLE[i % len(CYCLE)], "linestyle": "-", **BEHIND} for i, label in enumerate(labels)}
    front, others = ([name for name, own in labels.items() if own == side] for side in (True, False))
    looks = {name: {"color": CYCLE[i % 2], "linestyle": "-", **FRONT} for i, name in enumerate(front)}
    broken = [{"color": CYCLE[2 + i % 5], "linestyle": DASHES[i % len(DASHES)], **BEHIND} for i in range(len(others))]
    return looks | dict(zip(others, broken, strict=True))


def _draw_losses(axes: Axes, curves: Sequence[Curve], looks: Mapping[str, dict[str, Any]]) -> None:
    histories = [(curve.label, curve.history) for curve in curves if curve.history is not None]
    means = [(label, _smooth(history.groupby("step")["loss"].mean())) for label, history in histories]
    for label, mean in means:
        axes.plot(mean.index, mean, label=label, **looks[label])
    axes.set_ylabel("training loss")
    _loss_axes(axes, pd.concat([mean for _, mean in means]))


def _draw_scores(axes: Axes, curves: Sequence[Curve], looks: Mapping[str, dict[str, Any]], metric: str) -> None:
    measured = [(curve.label, curve.scores) for curve in curves if curve.scores is not None]
    for label, scores in measured:
        steps = scores.groupby("step")["value"]
        mean, sd = steps.mean(), steps.std().fillna(0.0)
        axes.errorbar(mean.index, mean, yerr=sd, marker="o", capsize=3, label=label, **looks[label])
    axes.set_ylabel(metric_name(metric))
    axes.margins(x=0.15)
    axes.xaxis.set_major_formatter(short)
    axes.set_xticks(sorted({step for _, scores in measured for step in scores["step"]}))
