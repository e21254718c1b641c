"""Necks: they give a head maps of strides 4, 8, 16 and 32, whatever the backbone's own levels are."""

import math

import torch
from torch import Tensor, nn

from vpd.models.base import Size
from vpd.models.resize import resize

STRIDES = [4, 8, 16, 32]


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of a map (batch, channels, h, w)."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each pixel."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1).contiguous()


class LevelNorms(nn.Module):
    """One new LayerNorm behind each level of a hierarchical backbone, as in Swin's and ConvNeXt's downstream recipes."""

    def __init__(self, channels: list[int], strides: list[int]) -> None:
        super().__init__()
        self.channels, self.strides = list(channels), list(strides)
        self.norms = nn.ModuleList(ChannelNorm(c) for c in channels)

    def forward(self, maps: list[Tensor], size: Size) -> list[Tensor]:
        """Normalise maps of any shapes; ``size`` (of the image) is not needed."""
        return [norm(x) for norm, x in zip(self.norms, maps, strict=True)]


class SimplePyramid(nn.Module):
    """Simple feature pyramid (Li et al. 2022, ViTDet): one map of any stride to strides 4, 8, 16 and 32.

    Doublings are transposed convolutions that halve the channels, with LayerNorm and GELU between them; halvings are
    max pooling; then come a 1x1 and a 3x3 convolution to ``width``, each with a LayerNorm. A stride that is no power of
    two (DINOv2's 14) is first resampled bilinearly to the nearest one that is.
    """

    def __init__(self, channels: int, stride: int, width: int) -> None:
        super().__init__()
        low = 1 << (stride.bit_length() - 1)
        self.stride, self.base = stride, low if stride * stride <= 2 * low * low else 2 * low
        self.channels, self.strides = [width] * len(STRIDES), list(STRIDES)
        self.levels = nn.ModuleList(_level(channels, self.base, target, width) for target in STRIDES)

    def forward(self, maps: list[Tensor], size: Size) -> list[Tensor]:
        """Make of one map four (batch, width, ceil(H / s), ceil(W / s)) of strides s for an image of ``size``."""
        (x,) = maps
        if self.stride != self.base:
            x = _resample(x, self.stride, self.base, size)
        return [
            level(x)[:, :, : -(-size[0] // stride), : -(-size[1] // stride)].contiguous()
            for level, stride in zip(self.levels, self.strides, strict=True)
        ]


def _resample(x: Tensor, stride: int, base: int, size: Size) -> Tensor:
    """Resample a map from one stride to another so that image positions stay what they are, to cover ``size``."""
    # The last row and column are repeated until both strides divide the map's extent in pixels.
    unit = math.lcm(stride, base)
    extents = [-(-side // unit) * unit for side in size]
    for axis, extent in enumerate(extents, start=2):
        last = x.narrow(axis, x.shape[axis] - 1, 1)
        x = torch.cat([x] + [last] * (extent // stride - x.shape[axis]), dim=axis)
    x = resize(x, [extent // base for extent in extents])
    return x[:, :, : -(-size[0] // base), : -(-size[1] // base)]


def _level(channels: int, base: int, target: int, width: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    while base > target:
        if layers:
            layers += [ChannelNorm(channels), nn.GELU()]
        layers.append(nn.ConvTranspose2d(channels, channels // 2, 2, 2))
        base, channels = base // 2, channels // 2
    while base < target:
        layers.append(nn.MaxPool2d(2, 2, ceil_mode=True))
        base *= 2
    layers += [nn.Conv2d(channels, width, 1, bias=False), ChannelNorm(width)]
    layers += [nn.Conv2d(width, width, 3, padding=1, bias=False), ChannelNorm(width)]
    return nn.Sequential(*layers)
