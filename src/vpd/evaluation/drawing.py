"""Figures: a grid of images of several shapes with row and column titles, as a PNG with reproducible bytes."""

import colorsys
import itertools
import textwrap
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from vpd.utils.files import atomic_path

# Inches.
CELL = 2.0
GAP = 0.08
MARGIN = 0.12
LINE = 0.17
DPI = 120
UNLABELLED = (0.82, 0.82, 0.82)
Shape = tuple[int, int]  # height and width of a picture in pixels


class FigureGrid:
    """A figure with rows of cells, all ``cell`` inches high and as wide as their pictures' shapes ask for.

    ``above`` are the inches kept free above each row, ``right`` those beyond ``right_edge``, where the widest row ends.
    """

    def __init__(
        self,
        rows: Sequence[Sequence[Shape]],
        title: str,
        above: Sequence[float],
        right: float = 0.0,
        cell: float = CELL,
    ) -> None:
        left = MARGIN + LINE + 0.08
        widths = [[cell * width / height for height, width in row] for row in rows]
        self.right_edge = left + max(sum(row) + GAP * (len(row) - 1) for row in widths)
        self.width = self.right_edge + right + MARGIN
        lines = wrap(title, self.width, size=12)
        top = MARGIN + 0.24 * len(lines)
        self.height = top + sum(above) + len(rows) * (cell + GAP) + MARGIN
        self.figure = Figure(figsize=(self.width, self.height), dpi=DPI, facecolor="white")
        self.text(MARGIN, self.height - MARGIN, "\n".join(lines), size=12, weight="bold", va="top")
        self.cells: list[list[Axes]] = []
        bottom = self.height - top
        for row, space in zip(widths, above, strict=True):
            bottom -= space + cell + GAP
            lefts = itertools.accumulate([left, *(width + GAP for width in row[:-1])])
            self.cells.append([self.axes(x, bottom, width, cell) for x, width in zip(lefts, row, strict=True)])

    def axes(self, left: float, bottom: float, width: float, height: float) -> Axes:
        """Add axes without ticks at a place in inches."""
        place = (left / self.width, bottom / self.height, width / self.width, height / self.height)
        axes = self.figure.add_axes(place, xticks=[], yticks=[])
        for spine in axes.spines.values():
            spine.set_linewidth(0.5)
        return axes

    def text(self, x: float, y: float, text: str, **style: Any) -> None:
        """Write at a place in inches."""
        self.figure.text(x / self.width, y / self.height, text, **style)

    def save(self, path: Path) -> None:
        """Write the PNG; the same figure gives the same bytes."""
        with atomic_path(path) as temporary:
            self._draw(temporary)

    def picture(self) -> Image.Image:
        """Return what ``save`` would write."""
        file = BytesIO()
        self._draw(file)
        return Image.open(file)

    def _draw(self, file: Path | BytesIO) -> None:
        with mpl.rc_context({"font.family": "DejaVu Sans"}):
            self.figure.savefig(file, format="png", metadata={"Software": None})


def show(axes: Axes, picture: np.ndarray, **options: Any) -> None:
    """Show pixels as they are: enlarged without smoothing, reduced with it."""
    shrunk = picture.shape[0] > axes.get_window_extent().height
    axes.imshow(picture, interpolation="hanning" if shrunk else "nearest", aspect="auto", **options)


def wrap(text: str, width: float, size: float = 9.0) -> list[str]:
    """Break a text of ``size`` points to lines that fit into ``width`` inches."""
    return textwrap.wrap(text, max(8, int(width / (0.0083 * size))))


def caption(axes: Axes, text: str, lines: int = 1) -> None:
    """Write above a cell, broken to the cell's width and cut after ``lines`` lines."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    wrapped = wrap(text, axes.get_position().width * figure.get_figwidth())
    shown = wrapped if len(wrapped) <= lines else [*wrapped[: lines - 1], wrapped[lines - 1] + " …"]
    axes.set_title("\n".join(shown), fontsize=9, pad=3)


def corner_note(axes: Axes, text: str) -> None:
    """Write into the lower right corner of a cell, on white."""
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.5}
    axes.text(0.98, 0.03, text, transform=axes.transAxes, ha="right", va="bottom", fontsize=8, bbox=box)


def pixels(image: Tensor) -> np.ndarray:
    """Return an image (3, H, W), uint8 or float in [-1, 1], as RGB (H, W, 3) in [0, 1]."""
    values = image.float() / 255 if not image.is_floating_point() else (image + 1) / 2
    return values.clamp(0, 1).permute(1, 2, 0).numpy()


def palette(classes: int) -> np.ndarray:
    """Return ``classes`` RGB colours in [0, 1], the first twenty from a list made to be told apart."""
    table = mpl.colormaps["tab20"](range(20))[:, :3]
    listed = [*table[0::2], *table[1::2]]
    hues = [(index * 0.61803398875) % 1.0 for index in range(classes)]
    spun = [colorsys.hls_to_rgb(hue, 0.35 + 0.15 * (i % 3), 0.55 + 0.2 * (i % 2)) for i, hue in enumerate(hues)]
    return np.array([*listed, *spun[20:]][:classes])
