"""Decoder heads of the three tasks; every width and stride comes from the backbone or the spec."""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vpd.config.schema import HeadSpec, Spec
from vpd.models.base import Features, Size, own_stream
from vpd.models.resize import resize
from vpd.utils.errors import UserError


def build_head(spec: Spec, channels: list[int], strides: list[int], classes: int) -> nn.Module:
    """Build an experiment's head with fresh weights from torch's global seed; UserError if the levels do not fit it."""
    outputs = {"segmentation": classes, "referring": 2, "depth": 1}[spec.task]
    return HEADS[spec.model.head.kind](spec.model.head, channels, strides, outputs)


def conv(inputs: int, outputs: int, side: int, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    """Make a convolution whose output has the input's size over ``stride``, rounded up; ``side`` is odd."""
    with own_stream():
        return nn.Conv2d(inputs, outputs, side, stride, side // 2, bias=bias)


def conv_norm_relu(inputs: int, outputs: int, side: int = 3) -> nn.Sequential:
    """Make a convolution without bias, batch norm and ReLU."""
    layers = OrderedDict(conv=conv(inputs, outputs, side, bias=False), bn=nn.BatchNorm2d(outputs), relu=nn.ReLU())
    return nn.Sequential(layers)


def _initialise(part: nn.Module, rule: str = "kaiming", std: float = 0.01) -> None:
    """Draw the weights of all convolutions in the order of their modules; biases become zero."""
    for layer in part.modules():
        if not isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            continue
        with own_stream():
            _draw(layer, rule, std)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


@torch.no_grad()
def _draw(layer: nn.Conv2d | nn.ConvTranspose2d, rule: str, std: float) -> None:
    """Draw input by input: a layer with more inputs starts from the same weights, but for their scale, of those before."""
    weight = layer.weight if isinstance(layer, nn.ConvTranspose2d) else layer.weight.transpose(0, 1)
    drawn = torch.empty_like(weight, memory_format=torch.contiguous_format)  # (inputs, outputs, side, side)
    if rule == "kaiming":
        nn.init.kaiming_normal_(drawn, mode="fan_in", nonlinearity="relu")  # the convolution's fan out
    elif rule == "xavier":
        nn.init.xavier_uniform_(drawn)
    else:
        (nn.init.normal_ if rule == "normal" else nn.init.trunc_normal_)(drawn, std=std)
    weight.copy_(drawn)


class FPN(nn.Module):
    """Feature pyramid neck: 1x1 laterals, nearest top-down sums, 3x3 outputs; no norm, no activation."""

    def __init__(self, channels: list[int], width: int) -> None:
        super().__init__()
        self.lateral_convs = nn.ModuleList(conv(c, width, 1) for c in channels)
        self.fpn_convs = nn.ModuleList(conv(width, width, 3) for _ in channels)
        _initialise(self, "xavier")

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Bring maps, fine to coarse, to the neck's width."""
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
        _initialise(self.conv_seg, "normal")

    @staticmethod
    def _scale_head(doublings: int, width: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        for _ in range(max(1, doublings)):
            block = conv_norm_relu(width, width)
            _initialise(block)
            layers.append(block)
            if doublings:
                layers.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))
        return nn.Sequential(*layers)

    def forward(self, features: Features, size: Size) -> Tensor:
        """Return logits (batch, classes, h, w) at the finest level's size, whatever the image ``size``."""
        total, *coarser = (head(x) for head, x in zip(self.scale_heads, self.neck(features.maps), strict=True))
        for x in coarser:
            total = total + resize(x, total.shape[-2:])
        return self.conv_seg(self.dropout(total))


class PyramidPooling(nn.Module):
    """Pyramid pooling module (Zhao et al. 2017); a grid finer than the map repeats its pixels."""

    def __init__(self, channels: int, width: int, scales: tuple[int, ...]) -> None:
        super().__init__()
        self.scales = scales
        self.branches = nn.ModuleList(conv_norm_relu(channels, width, 1) for _ in scales)
        self.bottleneck = conv_norm_relu(channels + len(scales) * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Pool (batch, channels, h, w) to (batch, width, h, w); UserError if batch norm would see a single pixel."""
        size = x.shape[-2:]
        if self.training and len(x) * min(size.numel(), *(scale**2 for scale in self.scales)) == 1:
            raise UserError(
                "head 'upernet' cannot be trained on one image at a time, for batch norm then sees one pixel; "
                "raise training.batch_size, lower training.accumulate or set training.drop_last"
            )
        pooled = [
            resize(branch(F.adaptive_avg_pool2d(x, scale)), size)
            for branch, scale in zip(self.branches, self.scales, strict=True)
        ]
        return self.bottleneck(torch.cat([x, *pooled], dim=1))


class UPerNet(nn.Module):
    """UPerNet (Xiao et al. 2018) as in the public recipes of Swin and ConvNeXt, but without their auxiliary head."""

    def __init__(self, spec: HeadSpec, channels: list[int], strides: list[int], outputs: int) -> None:
        super().__init__()
        width, finer = spec.channels, channels[:-1]
        self.pooling = PyramidPooling(channels[-1], width, spec.pool_scales)
        self.lateral_convs = nn.ModuleList(conv_norm_relu(c, width, 1) for c in finer)
        self.fpn_convs = nn.ModuleList(conv_norm_relu(width, width) for _ in finer)
        self.fuse = conv_norm_relu(len(channels) * width, width)
        self.dropout = nn.Dropout2d(spec.dropout)
        self.conv_seg = conv(width, outputs, 1)
        for part in (self.pooling, self.lateral_convs, self.fpn_convs, self.fuse):
            _initialise(part)
        _initialise(self.conv_seg, "normal")

    def forward(self, features: Features, size: Size) -> Tensor:
        """Return logits (batch, classes, h, w) at the finest level's size, whatever the image ``size``."""
        maps = features.maps
        sums = [lateral(x) for lateral, x in zip(self.lateral_convs, maps[:-1], strict=True)]
        sums.append(self.pooling(maps[-1]))
        for fine in range(len(sums) - 2, -1, -1):
            sums[fine] = sums[fine] + resize(sums[fine + 1], sums[fine].shape[-2:])
        levels = [smooth(x) for smooth, x in zip(self.fpn_convs, sums[:-1], strict=True)] + [sums[-1]]
        finest = levels[0].shape[-2:]
        fused = self.fuse(torch.cat([levels[0], *(resize(x, finest) for x in levels[1:])], dim=1))
        return self.conv_seg(self.dropout(fused))


class _Fuse(nn.Module):
    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.mix = nn.Sequential(conv_norm_relu(inputs, width), conv_norm_relu(width, width))

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        return self.mix(torch.cat([resize(coarse, fine.shape[-2:], corners=True), fine], dim=1))


class SimpleDecoding(nn.Module):
    """The decoder of LAVT (Yang et al. 2022): coarse to fine fusion, a 1x1 to two classes, resized with aligned corners."""

    def __init__(self, spec: HeadSpec, channels: list[int], strides: list[int], outputs: int) -> None:
        super().__init__()
        coarse = [channels[-1]] + [spec.channels] * (len(channels) - 2)
        self.fuse = nn.ModuleList(
            _Fuse(c + fine, spec.channels) for c, fine in zip(coarse, channels[-2::-1], strict=True)
        )
        self.classify = conv(spec.channels, outputs, 1)

    def forward(self, features: Features, size: Size) -> Tensor:
        """Return logits (batch, classes, H, W) at the image ``size``."""
        x = features.maps[-1]
        for fuse, fine in zip(self.fuse, features.maps[-2::-1], strict=True):
            x = fuse(x, fine)
        return resize(self.classify(x), size, corners=True)


class DepthDecoder(nn.Module):
    """VPD's depth head: levels merged at the third one's stride (the grid), learned and bilinear doublings, sigmoid (D10)."""

    def __init__(self, spec: HeadSpec, channels: list[int], strides: list[int], outputs: int) -> None:
        super().__init__()
        _check_levels(channels, strides, spec)
        first, second, *_ = channels
        groups, width = spec.norm_groups, spec.final_channels
        self.grid, self.max_depth = strides[2], spec.max_depth
        self.doublings = (self.grid // 8).bit_length() - 1
        halving, norm = conv(first, first, 3, 2), nn.GroupNorm(groups, first)
        self.layer1 = nn.Sequential(halving, norm, nn.ReLU(), conv(first, first, 3, 2))
        self.layer2 = nn.Sequential(conv(second, second, 3, 2))
        merge = conv(sum(channels), spec.channels, 1)
        self.out_layer = nn.Sequential(merge, nn.GroupNorm(groups, spec.channels), nn.ReLU())
        layers: list[nn.Module] = []
        for c in (spec.channels, spec.deconv_channels, spec.deconv_channels):
            deconvolution = nn.ConvTranspose2d(c, spec.deconv_channels, 2, 2, bias=False)
            layers += [deconvolution, nn.BatchNorm2d(spec.deconv_channels), nn.ReLU()]
        self.deconv_layers = nn.Sequential(*layers)
        self.conv_layers = nn.Sequential(conv(spec.deconv_channels, width, 3), nn.BatchNorm2d(width), nn.ReLU())
        self.last_layer_depth = nn.Sequential(conv(width, width, 3), nn.ReLU(), conv(width, outputs, 3))
        for part in (self.layer1, self.layer2, self.out_layer):
            _initialise(part, "truncated normal", 0.02)
        for part in (self.deconv_layers, self.conv_layers, self.last_layer_depth):
            _initialise(part, "normal", 0.001)

    def forward(self, features: Features, size: Size) -> Tensor:
        """Return metres (batch, 1, H, W); ``size`` is that of the image without its canvas, a multiple of the grid."""
        if size[0] % self.grid or size[1] % self.grid:
            raise UserError(
                f"the depth decoder takes image sides that are multiples of {self.grid} pixels, "
                f"found {size[0]}x{size[1]}; change the crop or the window"
            )
        first, second, third, *coarser = features.maps
        enlarged = [F.interpolate(x, size=third.shape[-2:], mode="nearest") for x in coarser]
        x = self.out_layer(torch.cat([self.layer1(first), self.layer2(second), third, *enlarged], dim=1))
        x = x[:, :, : size[0] // self.grid, : size[1] // self.grid]
        x = self.conv_layers(self.deconv_layers(x))
        for _ in range(self.doublings):
            x = resize(x, [2 * side for side in x.shape[-2:]])
        return torch.sigmoid(self.last_layer_depth(x)) * self.max_depth


def grid_stride(factor: int) -> int:
    """Return the image pixels per pixel of the depth decoder's grid, the third level, for a VAE of this factor."""
    return 4 * factor


def _check_levels(channels: list[int], strides: list[int], spec: HeadSpec) -> None:
    if len(channels) < 3:
        raise UserError(
            f"head 'depth-decoder' needs a backbone of three levels, found {len(channels)}; choose another checkpoint"
        )
    if strides[2] < 8 or strides[2] & (strides[2] - 1):
        raise UserError(
            f"head 'depth-decoder' needs a third level of stride 8, 16, 32 or so on, found {strides[2]}; "
            "choose another checkpoint"
        )
    for c in (channels[0], spec.channels):
        if c % spec.norm_groups:
            raise UserError(
                f"model.head.norm_groups is {spec.norm_groups}, which does not divide {c} channels; choose a divisor"
            )


HEADS = {
    "semantic-fpn": SemanticFPN,
    "upernet": UPerNet,
    "simple-decoding": SimpleDecoding,
    "depth-decoder": DepthDecoder,
}
