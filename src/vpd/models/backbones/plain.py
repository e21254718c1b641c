"""Backbones with a single level at the stride of their patches: plain vision transformers and BEiT.

The map is the last block's patch tokens after the final norm; class, register and distillation tokens are left out.
"""

from __future__ import annotations

from timm.models.beit import Beit
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vpd.models.backbones.base import Backbone, Layout
from vpd.models.backbones.beit import beit_tokens, interpolate_biases


class PlainBackbone(Backbone):
    """A timm transformer on a fixed grid of patches."""

    layout_of_patches: Layout

    def __init__(self, network: VisionTransformer | Beit) -> None:
        patch = network.patch_embed.patch_size[0]
        super().__init__(
            network,
            network.patch_embed,
            self.layout_of_patches,
            channels=[network.embed_dim],
            strides=[patch],
            multiple=patch,
            mask_stride=patch,
            mask_width=network.embed_dim,
            mean=network.pretrained_cfg["mean"],
            std=network.pretrained_cfg["std"],
        )

    def _maps(self, images: Tensor) -> list[Tensor]:
        grid = tuple(side // self.multiple for side in images.shape[-2:])
        # The final norm stands before or behind a classifier's pooling; the other of the two is an identity.
        tokens = self.network.fc_norm(self._tokens(images, grid))
        return [to_map(tokens[:, self.network.num_prefix_tokens :], grid)]

    def _tokens(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        raise NotImplementedError


class ViTBackbone(PlainBackbone):
    """Vision transformer (MAE, DINO, DINOv2, CLIP, ...); its position embedding is resampled to the image's grid."""

    layout_of_patches = "NHWC"

    def __init__(self, network: VisionTransformer) -> None:
        network.attn_pool, network.head = None, nn.Identity()
        super().__init__(network)

    def _tokens(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        return self.network.forward_features(images)


class BeitBackbone(PlainBackbone):
    """BEiT and BEiT v2; their relative position biases are resampled to the image's grid."""

    layout_of_patches = "NLC"

    def __init__(self, network: Beit) -> None:
        interpolate_biases(network)
        network.patch_embed.strict_img_size = False
        super().__init__(network)

    def _tokens(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        return beit_tokens(self.network, images, grid)


def to_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """(batch, patches, channels) -> (batch, channels, h, w)."""
    return tokens.transpose(1, 2).unflatten(2, grid).contiguous()
