"""preview.png: a contact sheet of a dataset's first samples beside their labels."""

from __future__ import annotations

import colorsys
import textwrap
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import numpy as np
from numpy import ndarray
from PIL import Image, ImageDraw, ImageFont

TILE = 192
"""Height of an image on the sheet, in pixels."""
SAMPLES, SHEET = 12, 1600
"""Most samples, and most pixels across."""
GAP, LINE_HEIGHT, FONT_SIZE, LETTER = 8, 16, 12, 6.4
PAPER, INK = (250, 250, 248), (40, 40, 44)
MARK = (255, 60, 40)
NO_CLASS = (0, 0, 0)
GOLDEN = 0.618034


def palette(classes: int) -> ndarray:
    """(classes + 1, 3) uint8: black for no class, then hues a golden section apart at three brightnesses."""
    colours = [NO_CLASS]
    for label in range(classes):
        hue, value = label * GOLDEN % 1.0, (0.95, 0.78, 0.6)[label % 3]
        colours.append(tuple(int(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.55, value)))
    return np.array(colours, np.uint8)


def colour_depth(depth: ndarray, nearest: float, farthest: float) -> ndarray:
    """Depth in metres as colours from yellow (near) over red to blue (far); invalid is black."""
    stops = np.array([[253, 231, 120], [238, 120, 70], [150, 45, 110], [30, 20, 80]], np.float64)
    place = np.clip((depth - nearest) / max(farthest - nearest, 1e-6), 0.0, 1.0) * (len(stops) - 1)
    low = np.minimum(place.astype(int), len(stops) - 2)
    colours = stops[low] + (stops[low + 1] - stops[low]) * (place - low)[..., None]
    return np.where(depth[..., None] > 0, colours, 0.0).astype(np.uint8)


def mark_object(image: ndarray, mask: ndarray) -> ndarray:
    """The image darkened and bleached outside the mask."""
    gray = image.mean(axis=2, keepdims=True) * 0.45
    return np.where(mask[..., None] > 0, image, gray + np.array(MARK) * 0.06).astype(np.uint8)


def write_preview(samples: Iterable[tuple[list[ndarray], list[str]]], path: Path) -> None:
    """Draw a contact sheet of the first samples.

    Args:
        samples: for each sample its (H, W, 3) uint8 images, and the lines of text under them.
        path: PNG to write.
    """
    cards = [_card(images, lines) for images, lines in islice(samples, SAMPLES)] or [_card([], ["no samples"])]
    rows = _flow(cards)
    width = max(sum(card.width + GAP for card in row) for row in rows)
    sheet = Image.new("RGB", (width + GAP, sum(max(card.height for card in row) + GAP for row in rows) + GAP), PAPER)
    top = GAP
    for row in rows:
        left = GAP
        for card in row:
            sheet.paste(card, (left, top))
            left += card.width + GAP
        top += max(card.height for card in row) + GAP
    sheet.save(path)


def _flow(cards: list[Image.Image]) -> list[list[Image.Image]]:
    """Cards in rows of at most ``SHEET`` pixels."""
    rows: list[list[Image.Image]] = [[]]
    for card in cards:
        if rows[-1] and sum(other.width + GAP for other in rows[-1]) + card.width > SHEET:
            rows.append([])
        rows[-1].append(card)
    return rows


def _card(images: list[ndarray], lines: list[str]) -> Image.Image:
    """One sample: its images in a row, its text wrapped below."""
    tiles = [_scaled(image) for image in images]
    width = max(TILE, sum(tile.width + 2 for tile in tiles))
    wrapped = [part for line in lines for part in textwrap.wrap(line, int(width / LETTER))]
    top = TILE + 4 if tiles else 0
    card = Image.new("RGB", (width, top + LINE_HEIGHT * len(wrapped)), PAPER)
    left = 0
    for tile in tiles:
        card.paste(tile, (left, 0))
        left += tile.width + 2
    draw, font = ImageDraw.Draw(card), ImageFont.load_default(FONT_SIZE)
    for number, line in enumerate(wrapped):
        draw.text((2, top + number * LINE_HEIGHT), line, INK, font)
    return card


def _scaled(image: ndarray) -> Image.Image:
    """The image at the sheet's height: pixels repeated if it is smaller, averaged if larger."""
    height, width = image.shape[:2]
    method = Image.Resampling.NEAREST if height <= TILE else Image.Resampling.BOX
    return Image.fromarray(image).resize((max(1, width * TILE // height), TILE), method)
