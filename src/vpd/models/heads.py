"""Decoder heads; every width and stride comes from the backbone or the spec."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vpd.config.schema import HeadSpec
from vpd.models.features import Features
from vpd.models.layers import Size, bilinear, conv, conv_norm_relu
from vpd.models.upernet import UPerNet
from vpd.utils.errors import UserError


# ------------------------------------------------------------------------------------------------ semantic segmentation
class FPN(nn.Module):
    """Feature pyramid neck: 1x1 laterals, nearest top-down sums, 3x3 outputs; no norm, no activation."""

    def __init__(self, channels: list[int], width: int) -> None:
        super().__init__()
        self.lateral_convs = nn.ModuleList(conv(c, width, 1) for c in channels)
        self.fpn_convs = nn.ModuleList(conv(width, width, 3) for _ in channels)
        for layer in [*self.lateral_convs, *self.fpn_convs]:
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Maps fine to coarse, all of the neck's width on return."""
        laterals = [lateral(x) for lateral, x in zip(self.lateral_convs, maps, strict=True)]
        for fine in range(len(laterals) - 2, -1, -1):
            above = F.interpolate(laterals[fine + 1], size=laterals[fine].shape[-2:], mode="nearest")
            laterals[fine] = laterals[fine] + above
        return [smooth(x) for smooth, x in zip(self.fpn_convs, laterals, strict=True)]


class SemanticFPN(nn.Module):
    """Semantic FPN (Kirillov et al. 2019): per level as many doublings as it is coarser, sum, dropout, 1x1 (G10)."""

    def __init__(self, spec: HeadSpec, channels: list[int], strides: list[int], outputs: int) -> None:
        super().__init__()
        self.neck = FPN(channels, spec.channels)
        doublings = [(stride // strides[0]).bit_length() - 1 for stride in strides]
        self.scale_heads = nn.ModuleList(self._scale_head(times, spec.channels) for times in doublings)
        self.dropout = nn.Dropout2d(spec.dropout)
        self.conv_seg = conv(spec.channels, outputs, 1)
        nn.init.normal_(self.conv_seg.weight, std=0.01)
        nn.init.zeros_(self.conv_seg.bias)

    @staticmethod
    def _scale_head(doublings: int, width: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        for _ in range(max(1, doublings)):
            block = conv_norm_relu(width, width)
            nn.init.kaiming_normal_(block.conv.weight, mode="fan_out", nonlinearity="relu")
            layers.append(block)
            if doublings:
                layers.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))
        return nn.Sequential(*layers)

    def forward(self, features: Features, size: Size) -> Tensor:
        """Logits (batch, classes, h, w) at the finest level's size, whatever the image ``size``."""
        scaled = [head(x) for head, x in zip(self.scale_heads, self.neck(features.maps), strict=True)]
        total = scaled[0]
        for x in scaled[1:]:
            total = total + bilinear(x, total.shape[-2:])
        return self.conv_seg(self.dropout(total))


# ----------------------------------------------------------------------------------------------- referring segmentation
class Fuse(nn.Module):
    """Upsample the coarse map to the fine one, concatenate, and mix with two convolutions."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.mix = nn.Sequential(conv_norm_relu(inputs, width), conv_norm_relu(width, width))

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        """(batch, c, h, w) and (batch, d, H, W) -> (batch, width, H, W)."""
        coarse = F.interpolate(coarse, size=fine.shape[-2:], mode="bilinear", align_corners=True)
        return self.mix(torch.cat([coarse, fine], dim=1))


class SimpleDecoding(nn.Module):
    """The decoder of LAVT: coarse to fine fusion, then a 1x1 to two classes, resized with aligned corners."""

    def __init__(self, spec: HeadSpec, channels: list[int], strides: list[int], outputs: int) -> None:
        super().__init__()
        coarse = [channels[-1]] + [spec.channels] * (len(channels) - 2)
        self.fuse = nn.ModuleList(
            Fuse(c + fine, spec.channels) for c, fine in zip(coarse, channels[-2::-1], strict=True)
        )
        self.classify = conv(spec.channels, outputs, 1)

    def forward(self, features: Features, size: Size) -> Tensor:
        """Logits (batch, classes, H, W) at the image ``size``."""
        x = features.maps[-1]
        for fuse, fine in zip(self.fuse, features.maps[-2::-1], strict=True):
            x = fuse(x, fine)
        return F.interpolate(self.classify(x), size=tuple(size), mode="bilinear", align_corners=True)


# ---------------------------------------------------------------------------------------------------------------- depth
class DepthDecoder(nn.Module):
    """Merge the levels at the third one's stride (the grid), upsample by learned and bilinear doublings, sigmoid."""

    def __init__(self, spec: HeadSpec, channels: list[int], strides: list[int], outputs: int) -> None:
        super().__init__()
        first, second, third, fourth = _four_levels(channels, spec.norm_groups, spec.channels)
        self.grid, self.max_depth = strides[2], spec.max_depth
        self.doublings = _doublings_after_deconvolutions(self.grid)
        self.layer1 = nn.Sequential(
            conv(first, first, 3, 2), nn.GroupNorm(spec.norm_groups, first), nn.ReLU(), conv(first, first, 3, 2)
        )
        self.layer2 = nn.Sequential(conv(second, second, 3, 2))
        self.out_layer = nn.Sequential(
            conv(first + second + third + fourth, spec.channels, 1),
            nn.GroupNorm(spec.norm_groups, spec.channels),
            nn.ReLU(),
        )
        self.deconv_layers = self._deconvolutions(spec.channels, spec.deconv_channels)
        width = spec.final_channels
        self.conv_layers = nn.Sequential(conv(spec.deconv_channels, width, 3), nn.BatchNorm2d(width), nn.ReLU())
        self.last_layer_depth = nn.Sequential(conv(width, width, 3), nn.ReLU(), conv(width, outputs, 3))
        self._initialise()

    @staticmethod
    def _deconvolutions(inputs: int, width: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        for c in (inputs, width, width):
            layers += [nn.ConvTranspose2d(c, width, 2, 2, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        return nn.Sequential(*layers)

    def _initialise(self) -> None:
        for part in (self.layer1, self.layer2, self.out_layer):
            for layer in (m for m in part.modules() if isinstance(m, nn.Conv2d)):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        for part in (self.deconv_layers, self.conv_layers, self.last_layer_depth):
            for layer in (m for m in part.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)):
                nn.init.normal_(layer.weight, std=0.001)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, features: Features, size: Size) -> Tensor:
        """Metres (batch, 1, H, W); ``size`` is that of the image without its canvas, a multiple of the grid stride."""
        if size[0] % self.grid or size[1] % self.grid:
            raise UserError(
                f"the depth decoder takes image sides that are multiples of {self.grid} pixels, "
                f"found {size[0]}x{size[1]}; change the crop or the window"
            )
        first, second, third, fourth = features.maps
        fourth = F.interpolate(fourth, size=third.shape[-2:], mode="nearest")
        x = self.out_layer(torch.cat([self.layer1(first), self.layer2(second), third, fourth], dim=1))
        x = x[:, :, : size[0] // self.grid, : size[1] // self.grid]
        x = self.conv_layers(self.deconv_layers(x))
        for _ in range(self.doublings):
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        return torch.sigmoid(self.last_layer_depth(x)) * self.max_depth


def grid_stride(factor: int) -> int:
    """Image pixels per pixel of the depth decoder's grid, the third level, for a VAE of this factor."""
    return 4 * factor


def _doublings_after_deconvolutions(grid: int) -> int:
    doublings = (grid // 8).bit_length() - 1
    if 8 * 2**doublings != grid:
        raise UserError(
            f"head 'depth-decoder' needs a third level of stride 8, 16, 32 or so on, found {grid}; choose another checkpoint"
        )
    return doublings


def _four_levels(channels: list[int], groups: int, width: int) -> list[int]:
    if len(channels) != 4:
        raise UserError(
            f"head 'depth-decoder' needs a backbone of four levels, found {len(channels)}; choose another checkpoint"
        )
    for c in (channels[0], width):
        if c % groups:
            raise UserError(f"model.head.norm_groups is {groups}, which does not divide {c} channels; choose a divisor")
    return channels


HEADS = {
    "semantic-fpn": SemanticFPN,
    "upernet": UPerNet,
    "simple-decoding": SimpleDecoding,
    "depth-decoder": DepthDecoder,
}
