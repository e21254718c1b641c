"""preview.png: the first samples of a dataset beside their labels."""

import colorsys
import textwrap
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import numpy as np
from numpy import ndarray

SAMPLES, COLUMNS, LETTERS = 12, 3, 60
"""At most so many samples, samples a row, and letters a line."""
GOLDEN = 0.618034  # hues a golden section apart differ clearly however many there are


def palette(classes: int) -> ndarray:
    """(classes + 1, 3) uint8: black for no class, then one colour each."""
    colours: list[tuple[float, float, float]] = [(0.0, 0.0, 0.0)]
    for label in range(classes):
        colours.append(colorsys.hsv_to_rgb(label * GOLDEN % 1.0, 0.55, (0.95, 0.78, 0.6)[label % 3]))
    return (np.array(colours) * 255).astype(np.uint8)


def colour_depth(depth: ndarray, nearest: float, farthest: float) -> ndarray:
    """(H, W) metres as (H, W, 3) uint8 colours from light (near) to dark (far); invalid is black."""
    from matplotlib import colormaps

    share = np.clip((depth - nearest) / max(farthest - nearest, 1e-6), 0.0, 1.0)
    colours = colormaps["magma_r"](share * 0.8)[..., :3] * 255  # the rest is nearly black, which means invalid
    return np.where(depth[..., None] > 0, colours, 0.0).astype(np.uint8)


def mark_object(image: ndarray, mask: ndarray) -> ndarray:
    """The image darkened and bleached outside the mask."""
    return np.where(mask[..., None] > 0, image, image.mean(axis=2, keepdims=True) * 0.45).astype(np.uint8)


def write_preview(samples: Iterable[tuple[list[ndarray], list[str]]], path: Path) -> None:
    """Draw the first samples: their (H, W, 3) uint8 images, which have one size, below the lines of text about them."""
    from matplotlib.figure import Figure

    first = list(islice(samples, SAMPLES)) or [([np.full((1, 3, 3), 255, np.uint8)], ["no samples"])]
    rows = -(-len(first) // COLUMNS)
    figure = Figure(figsize=(5 * COLUMNS, 2.5 * rows), layout="constrained")
    axes = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for axis in axes:
        axis.axis("off")
    for axis, (images, lines) in zip(axes, first, strict=False):
        axis.imshow(np.hstack(images), interpolation="nearest")
        text = "\n".join(part for line in lines for part in textwrap.wrap(line, LETTERS))
        axis.set_title(text, fontsize=8, parse_math=False)  # a dollar sign in a sentence is no formula
    figure.savefig(path, dpi=100)
