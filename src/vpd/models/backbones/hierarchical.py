"""Backbones with four levels of strides 4 to 32: Swin Transformer (V1, V2) and ConvNeXt.

The maps are the outputs of the four stages; the public downstream recipes put a new norm behind each (LevelNorms).
"""

from __future__ import annotations

from timm.models.convnext import ConvNeXt
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from torch import Tensor, nn

from vpd.models.backbones.base import Backbone
from vpd.models.backbones.swin import shift_after_padding


class SwinBackbone(Backbone):
    """Swin Transformer; its blocks keep their native window at any image size and pad the map to whole windows."""

    def __init__(self, network: SwinTransformer | SwinTransformerV2) -> None:
        network.norm, network.head = nn.Identity(), nn.Identity()
        shift_after_padding(network)
        super().__init__(network, network.patch_embed, "NHWC", **_levels(network), multiple=_stride(network))

    def _maps(self, images: Tensor) -> list[Tensor]:
        x, maps = self.network.patch_embed(images), []
        for stage in self.network.layers:
            x = stage(x)
            maps.append(x.permute(0, 3, 1, 2).contiguous())
        return maps


class ConvNeXtBackbone(Backbone):
    """ConvNeXt; images are padded to whole pixels of the coarsest map."""

    def __init__(self, network: ConvNeXt) -> None:
        network.norm_pre, network.head = nn.Identity(), nn.Identity()
        multiple = network.feature_info[-1]["reduction"]
        super().__init__(network, network.stem, "NCHW", **_levels(network), multiple=multiple)

    def _maps(self, images: Tensor) -> list[Tensor]:
        x, maps = self.network.stem(images), []
        for stage in self.network.stages:
            x = stage(x)
            maps.append(x)
        return maps


def _stride(network: nn.Module) -> int:
    return network.feature_info[0]["reduction"]


def _levels(network: nn.Module) -> dict:
    levels = network.feature_info
    return {
        "channels": [level["num_chs"] for level in levels],
        "strides": [level["reduction"] for level in levels],
        "mask_stride": levels[0]["reduction"],
        "mask_width": levels[0]["num_chs"],
        "mean": network.pretrained_cfg["mean"],
        "std": network.pretrained_cfg["std"],
    }
