"""The object that an expression means, in any picture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy import ndarray

from vpd.datasets.dataset import image_tensor
from vpd.datasets.images import save_png
from vpd.datasets.transforms import normalise, resize_square
from vpd.evaluation.inference import Predict
from vpd.evaluation.panels import MASK, masked
from vpd.predict.inputs import Job
from vpd.predict.maps import answer_all, enlarged
from vpd.predict.panel import Panel, drawn, outline, printable
from vpd.utils.files import atomic_path

TEXT_LINES = 3
EDGE = 0.6 * MASK


@dataclass(frozen=True)
class Mask:
    """What an expression means, at the picture's size."""

    inside: ndarray
    """bool (H, W)."""
    probability: ndarray
    """float16 (H, W)."""


class Referring:
    """The mask of one expression, found at the training size and brought back to the picture's (R2)."""

    def __init__(self, predict: Predict, size: int, text: str) -> None:
        self.predict, self.size, self.text = predict, size, text

    def infer(self, image: ndarray, name: str) -> Mask:
        """Mask of an image (H, W, 3); a pixel is inside where that is the likelier of the two."""
        height, width = image.shape[:2]
        square, _ = resize_square(image, image[:1, :1, 0], self.size)  # there is no mask to resize yet
        answers: list[torch.Tensor] = []
        inputs = {"image": image_tensor(normalise(square)), "text": self.text, "id": name, "key": name}
        answer_all(self.predict, [(inputs, answers.append)], 1)
        mask = Mask(np.empty((height, width), bool), np.empty((height, width), np.float16))
        for rows, logits in enlarged(answers[0], height, width):
            mask.inside[rows] = logits.argmax(0).bool().cpu().numpy()
            mask.probability[rows] = logits.softmax(0)[1].cpu().numpy()
        return mask

    def save(self, mask: Mask, job: Job) -> None:
        """Write the mask as a PNG of 0 and 255, and ``probability`` with the ``text``."""
        with atomic_path(job.picture) as path:
            save_png(path, mask.inside.astype(np.uint8) * 255)
        with atomic_path(job.arrays) as path:
            np.savez_compressed(path, probability=mask.probability, text=np.array(self.text))

    def panel(self, image: ndarray, mask: Mask, title: str) -> Panel:
        """Draw the object in colour on a grey picture, outlined, under its expression."""
        text = f"“{printable(self.text)}”" + ("" if mask.inside.any() else ": nothing found")
        panel = Panel(image, title, text, lines=TEXT_LINES)
        picture, inside = drawn(image, smooth=True), drawn(mask.inside.astype(np.uint8), smooth=False)
        overlay = masked(image_tensor(picture), torch.from_numpy(inside))
        overlay[outline(inside)] = EDGE
        panel.draw(picture, overlay)
        return panel
