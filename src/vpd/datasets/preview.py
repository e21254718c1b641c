"""preview.png: a contact sheet of a dataset's first samples beside their labels."""

from __future__ import annotations

import colorsys
import textwrap
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from numpy import ndarray
from PIL import Image, ImageDraw, ImageFont

from vpd.datasets import layouts
from vpd.datasets.images import read_depth, read_image, read_labels

TILE = 192
"""Height of an image on the sheet, in pixels."""
SAMPLES, SHEET = 12, 1600
"""Most samples, and most pixels across."""
GAP, LINE_HEIGHT, FONT_SIZE, LETTER = 8, 16, 12, 6.4
PAPER, INK = (250, 250, 248), (40, 40, 44)
MARK = (255, 60, 40)
NO_CLASS = (0, 0, 0)
GOLDEN = 0.618034
Sample = tuple[list[ndarray], list[str]]
"""Images side by side and the lines of text under them."""


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


def _ade20k(root: Path) -> Iterator[Sample]:
    names = layouts.ade20k.class_names(root)
    colours = palette(len(names))
    split = next(split for split in layouts.ade20k.SPLITS if layouts.ade20k.pairs(root, split))
    for image_path, label_path in layouts.ade20k.pairs(root, split):
        labels = read_labels(label_path, len(names))
        present = [names[label - 1][0] for label in np.unique(labels) if label]
        yield [read_image(image_path), colours[labels]], [", ".join(present)]


def _nyuv2(root: Path) -> Iterator[Sample]:
    split = next(split for split in layouts.nyuv2.SPLITS if layouts.nyuv2.frames(root, split))
    for frame in layouts.nyuv2.frames(root, split):
        depth = read_depth(frame.depth)
        valid = depth[depth > 0]
        near, far = (float(valid.min()), float(valid.max())) if valid.size else (0.0, 1.0)
        yield [read_image(frame.image), colour_depth(depth, near, far)], [f"{frame.scene}: {near:.1f} to {far:.1f} m"]


def _refcoco(root: Path) -> Iterator[Sample]:
    variants = layouts.refcoco.present_variants(root)
    found = {}
    for variant in variants:
        split = layouts.refcoco.load_refs(layouts.refcoco.refs_path(root, variant))[0]["split"]
        found[variant] = layouts.refcoco.references(root, variant, split)
    texts = {(v, r.image_id, str(r.segmentation)): r.sentences[0][1] for v in variants for r in found[v]}
    by_image: dict[int, list] = {}
    for reference in found[variants[0]]:
        by_image.setdefault(reference.image_id, []).append(reference)
    for number, group in enumerate(by_image.values()):
        reference = group[-1 - number % len(group)]
        keys = [(variant, reference.image_id, str(reference.segmentation)) for variant in variants]
        image = read_image(reference.image)
        lines = [f"{key[0]}: {texts[key]}" for key in keys if key in texts]
        yield [image, mark_object(image, layouts.refcoco.object_mask(reference))], lines


def _captions(root: Path) -> Iterator[Sample]:
    for entry in layouts.captions.entries(root):
        yield [read_image(root / entry["file"])], [entry["caption"]]


def _objects(root: Path) -> Iterator[Sample]:
    colours = palette(layouts.objects.MOST_INSTANCES)
    for entry in layouts.objects.entries(root):
        mask = layouts.objects.read_mask(root / entry["mask"])
        yield [read_image(root / entry["file"]), colours[mask]], [", ".join(entry["classes"])]


SAMPLERS = {"ade20k": _ade20k, "nyuv2": _nyuv2, "refcoco": _refcoco, "captions": _captions, "objects": _objects}


def write_preview(root: Path, layout: str, path: Path) -> None:
    """Write the contact sheet of the dataset in ``root``."""
    samples = (
        list(islice(SAMPLERS[layout](root), SAMPLES)) if sum(layouts.LAYOUTS[layout].counts(root).values()) else []
    )
    cards = [_card(images, lines) for images, lines in samples] or [_card([], ["no samples"])]
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
