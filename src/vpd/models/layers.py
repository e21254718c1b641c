"""Small pieces that decoder heads share."""

from __future__ import annotations

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn

Size = tuple[int, int]


def conv(inputs: int, outputs: int, side: int, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    """Convolution whose output has the input's size over ``stride``, rounded up; ``side`` is odd."""
    return nn.Conv2d(inputs, outputs, side, stride, side // 2, bias=bias)


def conv_norm_relu(inputs: int, outputs: int, side: int = 3) -> nn.Sequential:
    """Convolution without bias, batch norm, ReLU."""
    layers = {"conv": conv(inputs, outputs, side, bias=False), "bn": nn.BatchNorm2d(outputs), "relu": nn.ReLU()}
    return nn.Sequential(OrderedDict(layers))


def bilinear(x: Tensor, size: Size) -> Tensor:
    """Resize (batch, c, h, w) to ``size``, corners not aligned."""
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)
