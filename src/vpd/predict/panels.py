"""Panels: a picture beside its prediction."""

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import cv2
import matplotlib as mpl
import numpy as np
import torch
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy import ndarray

from vpd.datasets.dataset import image_tensor
from vpd.evaluation.drawing import FigureGrid, palette, show
from vpd.evaluation.panels import MASK, masked
from vpd.predict.tasks import Referring, Segmentation, Task
from vpd.utils.errors import printable

# Inches.
BOX_WIDTH, BOX_HEIGHT = 4.6, 4.0
NARROWEST = 4.5
LEGEND_LINE = 0.195
LABELLED = 0.9  # height from which on a colour scale has room for its full label

LONGEST = 1100  # longest side in pixels of what is drawn: about twice the figure's own
LONGEST_NAME = 26
OPACITY = 0.62
EDGE = 0.6 * MASK
FLAT = 0.1  # metres that a colour scale spans at least


@contextlib.contextmanager
def plain_text() -> Iterator[None]:
    """Draw names and sentences as they are: no formulas between dollars, no warnings of letters that the font lacks."""
    with mpl.rc_context({"text.parse_math": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from font")
        yield


def draw_panel(task: Task, image: ndarray, values: ndarray, title: str) -> FigureGrid:
    """Draw an RGB picture (H, W, 3) beside its prediction (H, W) with a legend, an outline or a colour scale."""
    picture = _scaled(image, smooth=True)
    if isinstance(task, Segmentation):
        areas = np.bincount(values.ravel(), minlength=len(task.names))
        order = [int(number) for number in np.argsort(-areas, kind="stable") if areas[number]]
        legend = [_entry(task.names[number], areas[number] / values.size) for number in order]
        colours, small = palette(len(task.names)), _scaled(values, smooth=False)
        overlay = OPACITY * colours[small] + (1 - OPACITY) * (picture / 255).mean(-1, keepdims=True)
        overlay[_borders(small)] = 1.0
        figure = _figure(image, f"{title}   classes: {len(order)}", 0.7 + 0.085 * max(map(len, legend)))
        _show(figure, picture, overlay)
        bottom, top = _edges(figure)
        rows = max(3, int((top - bottom) / LEGEND_LINE))
        handles = [Patch(color=colours[n], label=text) for n, text in zip(order[:rows], legend, strict=False)]
        corner = (figure.right_edge / figure.width, top / figure.height)
        style = {"fontsize": 9, "frameon": False, "borderpad": 0}
        figure.figure.legend(handles=handles, loc="upper left", bbox_to_anchor=corner, **style)
    elif isinstance(task, Referring):
        inside = _scaled(values.astype(np.uint8), smooth=False)
        overlay = masked(image_tensor(picture), torch.from_numpy(inside))
        overlay[_borders(inside)] = EDGE
        figure = _figure(image, f"{title}   “{printable(task.text)}”" + ("" if values.any() else ": nothing found"))
        _show(figure, picture, overlay)
    else:
        low, high = float(values.min()), float(values.max())
        widened = max(0.0, FLAT - (high - low)) / 2
        scale, magma = Normalize(max(0.0, low - widened), high + widened), mpl.colormaps["magma_r"]
        figure = _figure(image, f"{title}   {low:.1f} to {high:.1f} m, {task.scene_name}", margin=0.9)
        _show(figure, picture, _scaled(values, smooth=True), cmap=magma, norm=scale)
        bottom, top = _edges(figure)
        axes = figure.axes(figure.right_edge + 0.12, bottom, 0.14, top - bottom)
        ticks = MaxNLocator(max(1, min(8, int((top - bottom) / 0.3))))
        figure.figure.colorbar(ScalarMappable(scale, magma), cax=axes, ticks=ticks)
        axes.set_ylabel("depth (m)" if top - bottom >= LABELLED else "m")
    return figure


def _figure(image: ndarray, title: str, margin: float = 0.0) -> FigureGrid:
    """Two cells of the image's shape, with ``margin`` inches free on the right."""
    height, width = image.shape[:2]
    high = min(BOX_HEIGHT, BOX_WIDTH * height / width)
    return FigureGrid([[(height, width)] * 2], title, [0.1], max(margin, NARROWEST - 2 * high * width / height), high)


def _edges(figure: FigureGrid) -> tuple[float, float]:
    """Lower and upper edge of the cells, in inches."""
    box = figure.cells[0][0].get_position()
    return box.y0 * figure.height, box.y1 * figure.height


def _show(figure: FigureGrid, image: ndarray, prediction: ndarray, **options: Any) -> None:
    left, right = figure.cells[0]
    show(left, image)
    show(right, prediction, **options)


def _scaled(values: ndarray, smooth: bool) -> ndarray:
    """Resize to the size at which a map is drawn; where it shrinks, ``smooth`` takes means instead of single values."""
    height, width = values.shape[:2]
    factor = LONGEST / max(height, width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return cv2.resize(values, size, interpolation=cv2.INTER_AREA if smooth and factor < 1 else cv2.INTER_NEAREST)


def _borders(labels: ndarray) -> ndarray:
    """Mark the borders of classes, one pixel into each side: bool (H, W)."""
    small, block = labels.astype(np.int16), np.ones((3, 3), np.uint8)
    return cv2.dilate(small, block) != cv2.erode(small, block)


def _entry(name: str, share: float) -> str:
    text = printable(name)
    text = text if len(text) <= LONGEST_NAME else text[: LONGEST_NAME - 1] + "…"
    return f"{text}  {100 * share:.0f} %" if share >= 0.01 else f"{text}  < 1 %"
