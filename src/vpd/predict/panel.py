"""The picture beside its prediction, whatever its shape: the layout that the three tasks share."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path

import cv2
import matplotlib as mpl
import numpy as np
from numpy import ndarray

from vpd.evaluation.drawing import LINE, Sheet, caption, show, wrap

# Inches.
BOX_WIDTH, BOX_HEIGHT = 4.6, 4.0
STRIP_WIDTH = 8.0
SHEET_WIDTH = 4.5
NARROW = 0.9
STACKED = 2.2
"""Aspect from which on the two pictures lie above each other."""
DRAWN = 1100
"""Longest side in pixels of what is drawn: about twice the figure's own."""


class Panel:
    """A sheet with the picture and its prediction side by side, or above each other if they are wide.

    ``text`` says what the prediction is, in at most ``lines`` lines. ``margin`` are the inches kept free to the right
    for a legend; without one, a text that is too long for a narrow picture goes there.
    """

    def __init__(self, image: ndarray, title: str, text: str, margin: float = 0.0, lines: int = 1) -> None:
        height, width = image.shape[:2]
        stacked = width > STACKED * height
        high = STRIP_WIDTH * height / width if stacked else min(BOX_HEIGHT, BOX_WIDTH * height / width)
        wide = high * width / height
        fits = wide >= NARROW
        free = max(margin, SHEET_WIDTH - (wide if stacked else 2 * wide))
        above = 0.1 + LINE * (min(lines, len(wrap(text, wide))) if fits else 1)
        rows = [[(height, width)], [(height, width)]] if stacked else [[(height, width)] * 2]
        self.sheet = Sheet(rows, title, [above] * len(rows), free, high)
        self.image, self.prediction = (axes for row in self.sheet.cells for axes in row)
        if fits:
            caption(self.image, f"{width} × {height} pixels")
            caption(self.prediction, text, lines)
        elif not margin:
            self.sheet.text(self.sheet.right_edge + 0.1, self.top, "\n".join(wrap(text, free)), size=9, va="top")

    @property
    def top(self) -> float:
        """Upper edge of the pictures, in inches."""
        return self.image.get_position().y1 * self.sheet.height

    @property
    def bottom(self) -> float:
        """Lower edge of the pictures, in inches."""
        return self.prediction.get_position().y0 * self.sheet.height

    def draw(self, image: ndarray, prediction: ndarray, **options) -> None:
        """Show both; ``options`` are matplotlib's for the prediction."""
        show(self.image, image)
        show(self.prediction, prediction, **options)

    def save(self, path: Path) -> None:
        """Write the PNG."""
        self.sheet.save(path)


@contextlib.contextmanager
def plain_text() -> Iterator[None]:
    """Draw names and sentences as they are: no formulas between dollars, no warnings of letters that the font lacks."""
    with mpl.rc_context({"text.parse_math": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from font")
        yield


def drawn(values: ndarray, smooth: bool) -> ndarray:
    """A picture or map at the size it is drawn at: enlarged by whole pixels; reduced to means, or (not ``smooth``) values."""
    height, width = values.shape[:2]
    factor = DRAWN / max(height, width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return cv2.resize(values, size, interpolation=cv2.INTER_AREA if smooth and factor < 1 else cv2.INTER_NEAREST)


def outline(labels: ndarray, width: int = 1) -> ndarray:
    """Where another class begins, ``width`` pixels into each: bool (H, W)."""
    small = labels.astype(np.int16)
    block = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
    return cv2.dilate(small, block) != cv2.erode(small, block)


def printable(text: str) -> str:
    """``text`` without what cannot be drawn: bytes of file names in no known encoding, and control characters."""
    readable = text.encode("utf-8", "replace").decode("utf-8")
    return "".join(letter if letter.isprintable() else "?" for letter in readable)
