"""timm's networks as backbones: Swin Transformer (V1, V2), ConvNeXt, plain vision transformers and BEiT."""

import inspect
from collections.abc import Callable
from typing import Any

import timm
from timm.models import is_model, list_models, model_entrypoint
from timm.models.beit import Beit
from timm.models.convnext import ConvNeXt
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vpd.config.schema import NetworkSpec
from vpd.models.backbones.any_size import beit_tokens, interpolate_biases, shift_after_padding
from vpd.models.backbones.base import Backbone, Layout, to_map
from vpd.models.base import Size
from vpd.utils.errors import UserError, nearest

OURS = ("self", "device", "dtype", "in_chans", "num_classes", "drop_path_rate")  # no options


class SwinBackbone(Backbone):
    """Swin Transformer; its blocks keep their native window at any image size and pad the map to whole windows.

    The maps are the outputs of the four stages; the public downstream recipes put a new norm behind each (LevelNorms).
    """

    def __init__(self, network: Any) -> None:
        network.norm, network.head = nn.Identity(), nn.Identity()
        shift_after_padding(network)
        super().__init__(network, network.patch_embed, "NHWC", *_levels(network))

    def _maps(self, images: Tensor) -> list[Tensor]:
        x, maps = self.network.patch_embed(images), []
        for stage in self.network.layers:
            x = stage(x)
            maps.append(x.permute(0, 3, 1, 2).contiguous())
        return maps


class ConvNeXtBackbone(Backbone):
    """ConvNeXt; images are padded to whole pixels of the coarsest map, the maps are the outputs of the four stages."""

    def __init__(self, network: Any) -> None:
        network.norm_pre, network.head = nn.Identity(), nn.Identity()
        coarsest = network.feature_info[-1]["reduction"]
        super().__init__(network, network.stem, "NCHW", *_levels(network), multiple=coarsest)

    def _maps(self, images: Tensor) -> list[Tensor]:
        x, maps = self.network.stem(images), []
        for stage in self.network.stages:
            x = stage(x)
            maps.append(x)
        return maps


def _levels(network: Any) -> tuple[list[int], list[int], tuple[float, ...], tuple[float, ...]]:
    channels, strides = ([level[key] for level in network.feature_info] for key in ("num_chs", "reduction"))
    return channels, strides, network.pretrained_cfg["mean"], network.pretrained_cfg["std"]


class PlainBackbone(Backbone):
    """A transformer with a single level at the stride of its patches.

    The map is the last block's patch tokens after the final norm; class, register and distillation tokens are left out.
    """

    def __init__(self, network: Any, layout: Layout) -> None:
        patches, pixels = network.patch_embed, network.pretrained_cfg
        channels, strides = [network.embed_dim], [patches.patch_size[0]]
        super().__init__(network, patches, layout, channels, strides, pixels["mean"], pixels["std"])

    def _maps(self, images: Tensor) -> list[Tensor]:
        grid = self.patch_grid(images)
        # The final norm stands before or behind a classifier's pooling; the other of the two is an identity.
        tokens = self.network.fc_norm(self._tokens(images, grid))
        return [to_map(tokens[:, self.network.num_prefix_tokens :], grid)]

    def _tokens(self, images: Tensor, grid: Size) -> Tensor:
        return self.network.forward_features(images)


class ViTBackbone(PlainBackbone):
    """Vision transformer (MAE, DINO, DINOv2, CLIP, ...); its position embedding is resampled to the image's grid."""

    def __init__(self, network: Any) -> None:
        network.attn_pool, network.head = None, nn.Identity()
        super().__init__(network, "NHWC")


class BeitBackbone(PlainBackbone):
    """BEiT and BEiT v2; their relative position biases are resampled to the image's grid."""

    def __init__(self, network: Any) -> None:
        interpolate_biases(network)
        network.patch_embed.strict_img_size = False
        super().__init__(network, "NLC")

    def _tokens(self, images: Tensor, grid: Size) -> Tensor:
        return beit_tokens(self.network, images, grid)


FAMILIES: dict[str, tuple[type[nn.Module], Callable[[Any], Backbone], dict[str, Any]]] = {
    "swin_transformer": (SwinTransformer, SwinBackbone, {"strict_img_size": False}),
    "swin_transformer_v2": (SwinTransformerV2, SwinBackbone, {"strict_img_size": False}),
    "convnext": (ConvNeXt, ConvNeXtBackbone, {}),
    "vision_transformer": (VisionTransformer, ViTBackbone, {"dynamic_img_size": True}),
    "beit": (Beit, BeitBackbone, {}),
}
"""Module of timm -> its network, our backbone, and the settings that images of any size need."""


def build(spec: NetworkSpec, drop_path: float, gradient_checkpointing: bool) -> Backbone:
    """Build a timm architecture; a tag, as in ``vit_large_patch16_224.mae``, says whose normalisation it has."""
    network_class, backbone_class, settings = FAMILIES[_family(spec.architecture)]
    known = {name for name in inspect.signature(network_class).parameters if name not in OURS} | {"pretrained_cfg"}
    for option in spec.options:
        if option not in known:
            raise UserError(f"timm's '{spec.architecture}' has no option '{option}'; {nearest(option, known)}")
    options = {**settings, "num_classes": 0, "drop_path_rate": drop_path, **spec.options}
    try:
        network: Any = timm.create_model(spec.architecture, pretrained=False, **options)
    except (AssertionError, IndexError, RuntimeError, TypeError, ValueError, ZeroDivisionError) as error:
        raise UserError(
            f"timm cannot build '{spec.architecture}' with options {spec.options}: {str(error) or type(error).__name__}; "
            f"correct the options"
        ) from error
    network.set_grad_checkpointing(gradient_checkpointing)
    return backbone_class(network)


def _family(architecture: str) -> str:
    if not is_model(architecture):
        known = [name for module in FAMILIES for name in list_models(module=module)]
        raise UserError(f"timm has no architecture '{architecture}'; {nearest(architecture, known)}")
    module = model_entrypoint(architecture).__module__.rpartition(".")[2]
    if module not in FAMILIES:
        raise UserError(
            f"timm's architecture '{architecture}' is of the family '{module}', which has no backbone here; "
            f"choose one of {', '.join(FAMILIES)}"
        )
    return module
