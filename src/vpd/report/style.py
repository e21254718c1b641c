"""One look for all figures, and files that are the same bytes for the same numbers."""

from __future__ import annotations

from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, MUTED, FAINT = "#222222", "#6b6b6b", "#d5d5d5"
BLUE, ORANGE, GREEN = "#0072b2", "#d55e00", "#009e73"
"""From the palette of Okabe and Ito, distinguishable with any colour vision."""
CYCLE = (BLUE, ORANGE, GREEN, "#cc79a7", "#b58900", "#56b4e9", MUTED)
"""For lines that are told apart by colour, all of that palette that shows on white."""
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#ececec",
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "figure.dpi": 100,
    "savefig.dpi": 150,
    "svg.hashsalt": "vpd",
    "svg.fonttype": "path",
}


def styled():
    """Context in which figures are made and saved; the user's matplotlibrc has no say in it."""
    return matplotlib.rc_context({**matplotlib.rcParamsDefault, "backend": "agg", **STYLE})


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, sizes in inches."""
    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Figure, folder: Path, name: str) -> None:
    """Write ``name``.svg and ``name``.png without dates or versions in them, from one layout, which is what takes time."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    figure.savefig(folder / f"{name}.svg", metadata={"Date": None, "Creator": None})
    figure.savefig(folder / f"{name}.png", metadata={"Software": None})


def empty_figure(message: str) -> Figure:
    """A figure that only says why it is empty."""
    figure = new_figure(6, 1.5)
    figure.text(0.5, 0.5, message, ha="center", va="center", color=MUTED)
    return figure


def whole_numbers(axes: Axes) -> None:
    """Label the x axis with thousands as ``2k`` and millions as ``1.2M``."""
    axes.xaxis.set_major_formatter(lambda value, _: short(value))


def short(value: float) -> str:
    """``800``, ``2k`` or ``1.2M``."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"
