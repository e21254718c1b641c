"""UPerNet (Xiao et al. 2018), the semantic segmentation head of the hierarchical baselines."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vpd.config.schema import HeadSpec
from vpd.models.features import Features
from vpd.models.layers import Size, bilinear, conv, conv_norm_relu
from vpd.utils.errors import UserError


class PyramidPooling(nn.Module):
    """Pyramid pooling module (Zhao et al. 2017): averages over grids of several sides, beside the map itself.

    A grid finer than the map repeats its pixels.
    """

    def __init__(self, channels: int, width: int, scales: tuple[int, ...]) -> None:
        super().__init__()
        self.scales = scales
        self.branches = nn.ModuleList(conv_norm_relu(channels, width, 1) for _ in scales)
        self.bottleneck = conv_norm_relu(channels + len(scales) * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, h, w) -> (batch, width, h, w); UserError if batch norm would see a single pixel."""
        size = x.shape[-2:]
        if self.training and len(x) * min(size.numel(), *(scale**2 for scale in self.scales)) == 1:
            raise UserError(
                "head 'upernet' cannot be trained on one image at a time, for batch norm then sees one pixel; "
                "raise training.batch_size, lower training.accumulate or set training.drop_last"
            )
        pooled = [
            bilinear(branch(F.adaptive_avg_pool2d(x, scale)), size)
            for branch, scale in zip(self.branches, self.scales, strict=True)
        ]
        return self.bottleneck(torch.cat([x, *pooled], dim=1))


class UPerNet(nn.Module):
    """Pyramid pooling on the coarsest level, a feature pyramid over all, their fusion at the finest, a 1x1 classifier.

    As the public recipes of Swin and ConvNeXt set it up, but without their auxiliary head.
    """

    def __init__(self, spec: HeadSpec, channels: list[int], strides: list[int], outputs: int) -> None:
        super().__init__()
        width, finer = spec.channels, channels[:-1]
        self.pooling = PyramidPooling(channels[-1], width, spec.pool_scales)
        self.lateral_convs = nn.ModuleList(conv_norm_relu(c, width, 1) for c in finer)
        self.fpn_convs = nn.ModuleList(conv_norm_relu(width, width) for _ in finer)
        self.fuse = conv_norm_relu(len(channels) * width, width)
        self.dropout = nn.Dropout2d(spec.dropout)
        self.conv_seg = conv(width, outputs, 1)
        self._initialise()

    def _initialise(self) -> None:
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d) and layer is not self.conv_seg:
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.conv_seg.weight, std=0.01)
        nn.init.zeros_(self.conv_seg.bias)

    def forward(self, features: Features, size: Size) -> Tensor:
        """Logits (batch, classes, h, w) at the finest level's size, whatever the image ``size``."""
        maps = self._pyramid(features.maps)
        finest = maps[0].shape[-2:]
        fused = self.fuse(torch.cat([maps[0], *(bilinear(x, finest) for x in maps[1:])], dim=1))
        return self.conv_seg(self.dropout(fused))

    def _pyramid(self, maps: list[Tensor]) -> list[Tensor]:
        """All levels at the head's width, each with the coarser ones added."""
        sums = [lateral(x) for lateral, x in zip(self.lateral_convs, maps[:-1], strict=True)]
        sums.append(self.pooling(maps[-1]))
        for fine in range(len(sums) - 2, -1, -1):
            sums[fine] = sums[fine] + bilinear(sums[fine + 1], sums[fine].shape[-2:])
        return [smooth(x) for smooth, x in zip(self.fpn_convs, sums[:-1], strict=True)] + [sums[-1]]
