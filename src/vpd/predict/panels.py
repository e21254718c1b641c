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
from vpd.predict.predictions import DepthMap, Prediction, ReferredObject, Segments
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


def draw_panel(found: Prediction, title: str) -> FigureGrid:
    """Draw a picture beside its prediction with a legend, an outline or a colour scale."""
    image = found.image
    picture = scaled(image, smooth=True)
    if isinstance(found, Segments):
        overlay, legend = segments(found, picture)
        longest = max(len(str(entry.get_label())) for entry in legend)
        figure = _figure(image, f"{title}   classes: {len(legend)}", 0.7 + 0.085 * longest)
        _show(figure, picture, overlay)
        bottom, top = _edges(figure)
        rows = max(3, int((top - bottom) / LEGEND_LINE))
        corner = (figure.right_edge / figure.width, top / figure.height)
        style = {"fontsize": 9, "frameon": False, "borderpad": 0}
        figure.figure.legend(handles=legend[:rows], loc="upper left", bbox_to_anchor=corner, **style)
    elif isinstance(found, ReferredObject):
        figure = _figure(
            image, f"{title}   “{printable(found.text)}”" + ("" if found.mask.any() else ": nothing found")
        )
        _show(figure, picture, referred(picture, found.mask))
    elif isinstance(found, DepthMap):
        values = found.depth
        low, high = float(values.min()), float(values.max())
        figure = _figure(image, f"{title}   {low:.1f} to {high:.1f} m, {found.scene}", margin=0.9)
        scale = depth_scale(values)
        _show(figure, picture, scaled(values, smooth=True), **scale)
        bottom, top = _edges(figure)
        axes = figure.axes(figure.right_edge + 0.12, bottom, 0.14, top - bottom)
        ticks = MaxNLocator(max(1, min(8, int((top - bottom) / 0.3))))
        figure.figure.colorbar(ScalarMappable(**scale), cax=axes, ticks=ticks)
        axes.set_ylabel("depth (m)" if top - bottom >= LABELLED else "m")
    return figure


def segments(found: Segments, picture: ndarray) -> tuple[ndarray, list[Patch]]:
    """Tint a picture as large as ``scaled`` makes it with its classes; return it and a legend, largest class first."""
    labels, names = found.labels, found.names
    areas = np.bincount(labels.ravel(), minlength=len(names))
    order = [int(number) for number in np.argsort(-areas, kind="stable") if areas[number]]
    colours, small = palette(len(names)), scaled(labels, smooth=False)
    overlay = OPACITY * colours[small] + (1 - OPACITY) * (picture / 255).mean(-1, keepdims=True)
    overlay[_borders(small)] = 1.0
    return overlay, [Patch(color=colours[n], label=_entry(names[n], areas[n] / labels.size)) for n in order]


def referred(picture: ndarray, mask: ndarray) -> ndarray:
    """Tint and outline the object in a picture as large as ``scaled`` makes it."""
    inside = scaled(mask.astype(np.uint8), smooth=False)
    overlay = masked(image_tensor(picture), torch.from_numpy(inside))
    overlay[_borders(inside)] = EDGE
    return overlay


def depth_scale(metres: ndarray) -> dict[str, Any]:
    """Return the colours of metres and their range, which has a least width, as imshow's options."""
    low, high = float(metres.min()), float(metres.max())
    widened = max(0.0, FLAT - (high - low)) / 2
    return {"norm": Normalize(max(0.0, low - widened), high + widened), "cmap": mpl.colormaps["magma_r"]}


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


def scaled(values: ndarray, smooth: bool) -> ndarray:
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
