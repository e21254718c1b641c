"""What a network says about one picture, at the picture's size."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy import ndarray
from PIL import Image

from vpd.datasets.images import MILLIMETRES
from vpd.evaluation.drawing import palette

FARTHEST = 2**16 - 1
ARRAYS = ({"labels", "names"}, {"probability", "text"}, {"depth"})  # of segments, referred objects and depths


@dataclass(frozen=True, eq=False)
class Prediction:
    """The prediction for one picture: a class, a mask or a depth for every pixel."""

    image: ndarray
    """The picture, (H, W, 3) uint8 RGB."""

    @property
    def values(self) -> ndarray:
        """The prediction itself, (H, W)."""
        raise NotImplementedError

    @property
    def arrays(self) -> dict[str, ndarray]:
        """Everything that was predicted, by name."""
        raise NotImplementedError

    @property
    def png(self) -> Image.Image:
        """The prediction as an image that keeps every value."""
        raise NotImplementedError

    def panel(self, title: str = "") -> Image.Image:
        """Draw the picture beside its prediction, with a legend, an outline or a colour scale."""
        from vpd.predict.panels import draw_panel, plain_text

        with plain_text():
            return draw_panel(self, title).picture()


@dataclass(frozen=True, eq=False)
class Segments(Prediction):
    """The class of every pixel."""

    labels: ndarray
    """Numbers of classes, (H, W) uint8."""
    names: list[str]
    """Their names, by number."""

    @property
    def values(self) -> ndarray:
        """Numbers of classes, (H, W) uint8."""
        return self.labels

    @property
    def arrays(self) -> dict[str, ndarray]:
        """``labels`` and ``names``."""
        return {"labels": self.labels, "names": np.array(self.names)}

    @property
    def png(self) -> Image.Image:
        """Numbers of classes with a palette of colours."""
        png = Image.fromarray(self.labels)
        png.putpalette((255 * palette(len(self.names))).round().astype(np.uint8).tobytes())
        return png


@dataclass(frozen=True, eq=False)
class ReferredObject(Prediction):
    """The object that a text describes."""

    mask: ndarray
    """Where it is, (H, W) bool."""
    probability: ndarray
    """That a pixel belongs to it, (H, W) float16."""
    text: str

    @property
    def values(self) -> ndarray:
        """Where the object is, (H, W) bool."""
        return self.mask

    @property
    def arrays(self) -> dict[str, ndarray]:
        """``probability`` and ``text``."""
        return {"probability": self.probability, "text": np.array(self.text)}

    @property
    def png(self) -> Image.Image:
        """The mask, 0 and 255."""
        return Image.fromarray(self.mask.astype(np.uint8) * 255)


@dataclass(frozen=True, eq=False)
class DepthMap(Prediction):
    """The distance of every pixel."""

    depth: ndarray
    """Metres, (H, W) float32."""
    scene: str
    """Kind of room that the network was told."""

    @property
    def values(self) -> ndarray:
        """Metres, (H, W) float32."""
        return self.depth

    @property
    def arrays(self) -> dict[str, ndarray]:
        """``depth``."""
        return {"depth": self.depth}

    @property
    def png(self) -> Image.Image:
        """Millimetres with 16 bits."""
        return Image.fromarray(np.rint(self.depth * MILLIMETRES).clip(0, FARTHEST).astype(np.uint16))
