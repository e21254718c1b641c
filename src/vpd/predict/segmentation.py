"""Semantic segmentation of any picture."""

from __future__ import annotations

from functools import partial

import numpy as np
from matplotlib.patches import Patch
from numpy import ndarray
from PIL import Image

from vpd.config.schema import SegmentationEvaluation
from vpd.datasets.dataset import image_tensor
from vpd.datasets.images import save_png
from vpd.datasets.transforms import resized_size
from vpd.evaluation.drawing import palette
from vpd.evaluation.inference import Predict
from vpd.evaluation.windows import SlidingWindow, scaled_image
from vpd.predict.inputs import Job
from vpd.predict.maps import answer_all, enlarged
from vpd.predict.panel import Panel, drawn, outline, printable
from vpd.utils.errors import UserError
from vpd.utils.files import atomic_path

COLOURS = 256
"""A palette PNG has no more."""
OPACITY = 0.62
ENTRY = 0.195
"""Inches per line of the legend."""
LONGEST_NAME = 26


class Segmentation:
    """Class ids by sliding windows at a single scale, as they are evaluated (G8)."""

    def __init__(self, predict: Predict, settings: SegmentationEvaluation, names: list[str]) -> None:
        self.predict, self.settings, self.names = predict, settings, names

    def infer(self, image: ndarray, name: str) -> ndarray:
        """Class of every pixel of an image (H, W, 3): (H, W) uint8, or uint16 for more than 256 classes."""
        pixels, settings = image_tensor(image), self.settings
        height, width = image.shape[:2]
        if min(resized_size(height, width, settings.short_side, settings.long_side)) < 1:
            raise UserError(f"{name} is too elongated for a longest side of {settings.long_side} pixels; crop it")
        window = SlidingWindow(scaled_image(pixels, settings, 1.0), settings.crop, settings.stride)
        requests = [
            ({"image": window.window(corner), "id": name, "key": f"{name}/{corner}"}, partial(window.add, corner))
            for corner in window.corners
        ]
        answer_all(self.predict, requests, settings.batch_size)
        labels = np.empty((height, width), np.uint8 if len(self.names) <= COLOURS else np.uint16)
        for rows, logits in enlarged(window.mean(), height, width):
            # Not the largest logit: probabilities may tie where logits do not, and evaluation takes these.
            labels[rows] = logits.softmax(0).argmax(0).cpu().numpy()
        return labels

    def save(self, labels: ndarray, job: Job) -> None:
        """Write class ids as a PNG with the colours of the panels, and as ``labels`` beside ``names``."""
        with atomic_path(job.picture) as path:
            if labels.dtype == np.uint8:
                picture = Image.fromarray(labels)
                picture.putpalette((255 * palette(len(self.names))).round().astype(np.uint8).tobytes())
                picture.save(path)
            else:
                save_png(path, labels)
        with atomic_path(job.arrays) as path:
            np.savez_compressed(path, labels=labels, names=np.array(self.names))

    def panel(self, image: ndarray, labels: ndarray, title: str) -> Panel:
        """Draw the segments over the picture, with a legend of the largest."""
        areas = np.bincount(labels.ravel(), minlength=len(self.names))
        order = [int(number) for number in np.argsort(-areas, kind="stable") if areas[number]]
        shares = [f"{_short(self.names[number])}  {_percent(areas[number] / labels.size)}" for number in order]
        count = "1 class" if len(order) == 1 else f"{len(order)} classes"
        panel = Panel(image, title, count, margin=0.7 + 0.085 * max(map(len, shares)))
        colours = palette(len(self.names))
        small, picture = drawn(labels, smooth=False), drawn(image, smooth=True) / 255
        grey = picture.mean(-1, keepdims=True)
        overlay = OPACITY * colours[small] + (1 - OPACITY) * grey
        overlay[outline(small)] = 1.0
        panel.draw(picture, overlay)
        self._legend(panel, order, shares, colours)
        return panel

    def _legend(self, panel: Panel, order: list[int], shares: list[str], colours: ndarray) -> None:
        room = max(3, int((panel.top - panel.bottom) / ENTRY))
        shown = room if len(order) <= room else room - 1
        handles = [Patch(color=colours[n], label=text) for n, text in zip(order[:shown], shares, strict=False)]
        if len(order) > shown:
            handles.append(Patch(color="none", label=f"and {len(order) - shown} more"))
        place = (panel.sheet.right_edge / panel.sheet.width, panel.top / panel.sheet.height)
        panel.sheet.figure.legend(
            handles=handles, loc="upper left", bbox_to_anchor=place, fontsize=9, frameon=False, borderpad=0
        )


def _short(name: str) -> str:
    text = printable(name)
    return text if len(text) <= LONGEST_NAME else text[: LONGEST_NAME - 1] + "…"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.01 else "< 1 %"
