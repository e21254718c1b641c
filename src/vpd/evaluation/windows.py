"""Windows over images: where they lie, and the mean of network outputs where they overlap."""

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vpd.config.schema import SegmentationEvaluation
from vpd.datasets.transforms import resized_size
from vpd.utils.errors import UserError


def window_starts(length: int, crop: int, stride: int) -> list[int]:
    """Return where windows start along a side of ``length`` pixels, the last one shifted back to end at the border."""
    if stride > crop:
        raise UserError(f"evaluation.stride {stride} leaves gaps between windows of {crop}; make it at most {crop}")
    count = max(length - crop + stride - 1, 0) // stride + 1
    return [max(min(index * stride, length - crop), 0) for index in range(count)]


def depth_windows(width: int, side: int, windows: int) -> list[int]:
    """Return the starts of ``windows`` windows spread evenly over the width; UserError if they leave a gap."""
    starts = [int(start) for start in np.linspace(0, width - side, windows)]
    if any(start > end for start, end in zip([*starts, width], [0, *(start + side for start in starts)], strict=True)):
        cure = f"raise evaluation.windows to at least {-(-width // side)}"
        raise UserError(f"{windows} windows of {side} pixels do not cover a width of {width}; {cure}")
    return starts


def scaled_image(image: Tensor, settings: SegmentationEvaluation, ratio: float) -> Tensor:
    """Resize a uint8 image (3, H, W) by mmseg's rule at a scale ``ratio`` and normalise it to [-1, 1]."""
    pixels = image.permute(1, 2, 0).contiguous().numpy()
    own_height, own_width = pixels.shape[:2]
    height, width = resized_size(own_height, own_width, settings.short_side, settings.long_side, ratio)
    if (height, width) != (own_height, own_width):
        pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR)
    return torch.from_numpy((pixels.astype(np.float32) - 127.5) / 127.5).permute(2, 0, 1).contiguous()


def resize(maps: Tensor, height: int, width: int) -> Tensor:
    """Bring maps (K, h, w) to a size bilinearly."""
    return F.interpolate(maps[None], size=(height, width), mode="bilinear", align_corners=False)[0]


class SlidingWindow:
    """Windows over one normalised image (3, h, w), and the mean of their outputs where they overlap.

    Sides shorter than the window are padded with zeros (mid-grey) at the bottom and right, and cut off again (S13).
    """

    def __init__(self, image: Tensor, crop: int, stride: int) -> None:
        self.height, self.width = image.shape[-2:]
        self.crop = crop
        self.image = F.pad(image, (0, max(crop - self.width, 0), 0, max(crop - self.height, 0)))
        rows, columns = window_starts(self.height, crop, stride), window_starts(self.width, crop, stride)
        self.corners = [(top, left) for top in rows for left in columns]
        self.missing = len(self.corners)
        self.total: Tensor | None = None
        self.count = torch.zeros(self.image.shape[-2:])

    def area(self, corner: tuple[int, int]) -> tuple[slice, slice]:
        """Return the rows and columns of the window at ``corner``."""
        top, left = corner
        return slice(top, top + self.crop), slice(left, left + self.crop)

    def window(self, corner: tuple[int, int]) -> Tensor:
        """Return the window (3, crop, crop) at ``corner``."""
        return self.image[:, *self.area(corner)]

    def add(self, corner: tuple[int, int], output: Tensor) -> None:
        """Add the output (K, any height, any width) of one window, brought to the window's size bilinearly."""
        if self.total is None:
            self.total = output.new_zeros(len(output), *self.image.shape[-2:])
        self.total[:, *self.area(corner)] += resize(output, self.crop, self.crop)
        self.count[self.area(corner)] += 1
        self.missing -= 1

    def mean(self) -> Tensor:
        """Return the mean output (K, h, w)."""
        assert self.total is not None
        mean = self.total / self.count.to(self.total.device)
        return mean[:, : self.height, : self.width]
