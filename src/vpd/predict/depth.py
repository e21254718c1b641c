"""Depth of any picture.

A network learns the camera along with the scenes: metres mean metres only for cameras like that of the training set, and
for other focal lengths are off by about the ratio of the two.
"""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.ticker import MaxNLocator
from numpy import ndarray
from PIL import Image
from torch import Tensor

from vpd.config.schema import DepthEvaluation
from vpd.datasets.dataset import image_tensor
from vpd.datasets.images import MILLIMETRES, save_png
from vpd.datasets.transforms import normalise
from vpd.evaluation.inference import Predict, Request, Sink
from vpd.evaluation.windows import depth_windows
from vpd.predict.inputs import Job
from vpd.predict.maps import answer_all, enlarged
from vpd.predict.panel import Panel, drawn
from vpd.utils.files import atomic_path

FARTHEST = 2**16 - 1
FLAT = 0.1
"""Metres that a colour scale spans at least."""
LABELLED = 0.9
"""Inches from which on the colour scale is long enough for its full label."""


class Depth:
    """Mean of windows along the longer side and of their mirror images, as in evaluation (D11).

    The shorter side is brought to the window's. ``scene`` is the class id of the prompt, -1 the mean of all.
    """

    def __init__(self, predict: Predict, settings: DepthEvaluation, scene: int, scene_name: str) -> None:
        self.predict, self.settings = predict, settings
        self.scene, self.scene_name = scene, scene_name

    def infer(self, image: ndarray, name: str) -> ndarray:
        """Metres of every pixel of an image (H, W, 3): (H, W) float32."""
        height, width = image.shape[:2]
        metres = self._windows(image_tensor(normalise(fitted(image, self.settings.window))), name)
        whole = np.empty((height, width), np.float32)
        for rows, part in enlarged(metres[None], height, width):
            whole[rows] = part[0].numpy()
        return whole

    def _windows(self, image: Tensor, name: str) -> Tensor:
        """Metres (h, w) of a normalised image whose shorter side is the window's."""
        side, (height, width) = self.settings.window, image.shape[-2:]
        total, count = torch.zeros(height, width), torch.zeros(height, width)
        requests: list[Request] = []
        for start in window_places(max(height, width), self.settings):
            top, left = (start, 0) if height > width else (0, start)
            area = (slice(top, top + side), slice(left, left + side))
            for mirrored in (False, True) if self.settings.flip else (False,):
                window = image[:, *area].flip(-1) if mirrored else image[:, *area]
                key = f"{name}/{top},{left}/{mirrored}"
                inputs = {"image": window, "class_id": torch.tensor(self.scene), "id": name, "key": key}
                requests.append((inputs, _adder(total[area], count[area], mirrored)))
        answer_all(self.predict, requests, self.settings.batch_size)
        return total / count

    def save(self, metres: ndarray, job: Job) -> None:
        """Write millimetres as a 16-bit PNG, and ``depth`` in metres."""
        with atomic_path(job.picture) as path:
            save_png(path, np.rint(metres * MILLIMETRES).clip(0, FARTHEST).astype(np.uint16))
        with atomic_path(job.arrays) as path:
            np.savez_compressed(path, depth=metres)

    def panel(self, image: ndarray, metres: ndarray, title: str) -> Panel:
        """Draw depth in colours with a scale in metres."""
        low, high = float(metres.min()), float(metres.max())
        rest = max(0.0, FLAT - (high - low)) / 2
        scale, colours = Normalize(max(0.0, low - rest), high + rest), mpl.colormaps["magma_r"]
        panel = Panel(image, title, f"{low:.1f} to {high:.1f} m, {self.scene_name}", margin=0.9)
        panel.draw(drawn(image, smooth=True), drawn(metres, smooth=True), cmap=colours, norm=scale)
        sheet, height = panel.sheet, panel.top - panel.bottom
        bar = sheet.axes(sheet.right_edge + 0.12, panel.bottom, 0.14, height)
        ticks = MaxNLocator(max(1, min(8, int(height / 0.3))))
        sheet.figure.colorbar(ScalarMappable(scale, colours), cax=bar, ticks=ticks)
        bar.set_ylabel("depth (m)" if height >= LABELLED else "m")
        return panel


def fitted(image: ndarray, side: int) -> ndarray:
    """Resize an image so that its shorter side is ``side``, smoothing where it shrinks."""
    height, width = image.shape[:2]
    factor = side / min(height, width)
    size = (max(side, round(width * factor)), max(side, round(height * factor)))
    if size == (width, height):
        return image
    return np.array(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))


def window_places(length: int, settings: DepthEvaluation) -> list[int]:
    """Where windows start along the longer side: at least as many as in evaluation, each half over the one before."""
    side = settings.window
    if length == side:
        return [0]
    return depth_windows(length, side, max(settings.windows, 1 - (2 * (side - length) // side)))


def _adder(total: Tensor, count: Tensor, mirrored: bool) -> Sink:
    """Add one window's output to the views of the sums that it covers."""

    def take(output: Tensor) -> None:
        metres = output[0].cpu()
        total.add_(metres.flip(-1) if mirrored else metres)
        count.add_(1)

    return take
