"""Building transformers' image encoders: SAM and BLIP, whose maps have one level at the stride of the patches."""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from timm.layers import DropPath
from torch import Tensor, nn
from transformers import BlipVisionConfig, BlipVisionModel
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.models.sam.configuration_sam import SamVisionConfig
from transformers.models.sam.modeling_sam import SamVisionEncoder

from vpd.config.schema import NetworkSpec
from vpd.models.backbones.base import Backbone, to_map
from vpd.utils.errors import UserError, nearest, pick

FRESH_STD = 0.02  # of fresh weights; the configurations' own 1e-10 is meant for weights that are then loaded


class SamBackbone(Backbone):
    """Image encoder and neck of SAM; position embeddings are resampled to the image's grid."""

    def __init__(self, network: Any) -> None:
        config, pixels = network.config, (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
        patches, channels, strides = network.patch_embed.projection, [config.output_channels], [config.patch_size]
        super().__init__(network, patches, "NCHW", channels, strides, *pixels, mask_width=config.hidden_size)

    def _maps(self, images: Tensor) -> list[Tensor]:
        # The encoder's own forward refuses any size but the native one.
        x, positions = self.network.patch_embed.projection(images).permute(0, 2, 3, 1), self.network.pos_embed
        if positions is not None:
            grid = self.patch_grid(images)
            if positions.shape[1:3] != grid:
                positions = F.interpolate(positions.permute(0, 3, 1, 2), grid, mode="bicubic").permute(0, 2, 3, 1)
            x = x + positions
        for layer in self.network.layers:
            x = layer(x)
        return [self.network.neck(x)]


class BlipBackbone(Backbone):
    """Image encoder of BLIP; position embeddings are resampled to the image's grid."""

    def __init__(self, network: Any) -> None:
        config = network.config
        patches, channels, strides = network.embeddings.patch_embedding, [config.hidden_size], [config.patch_size]
        super().__init__(network, patches, "NCHW", channels, strides, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)

    def _maps(self, images: Tensor) -> list[Tensor]:
        tokens = self.network(pixel_values=images, interpolate_pos_encoding=True).last_hidden_state
        return [to_map(tokens[:, 1:], self.patch_grid(images))]


ARCHITECTURES: dict[str, tuple[Any, Any, Callable[[nn.Module], Backbone]]] = {
    "sam": (SamVisionConfig, SamVisionEncoder, SamBackbone),
    "blip": (BlipVisionConfig, BlipVisionModel, BlipBackbone),
}


class _BlockDrop(DropPath):
    """Stochastic depth of a whole block: in training it is skipped at random, image by image."""

    def hook(self, _block: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        # Without a drop the sum would only round differently.
        return inputs[0] + self(output - inputs[0]) if self.training and self.drop_prob else output


def build(spec: NetworkSpec, drop_path: float, gradient_checkpointing: bool) -> Backbone:
    """Build an image encoder of transformers; options are keys of its vision configuration."""
    config_class, network_class, backbone_class = pick(spec.architecture, ARCHITECTURES, "architecture of transformers")
    known = {name for cls in config_class.__mro__ for name in vars(cls).get("__annotations__", {})}
    for option in spec.options:
        if option not in known or option.startswith("_"):
            raise UserError(f"transformers' '{spec.architecture}' has no option '{option}'; {nearest(option, known)}")
    try:
        network = network_class(config_class(**{"initializer_range": FRESH_STD, **spec.options}))
    except (StrictDataclassError, RuntimeError, TypeError, ValueError, ZeroDivisionError) as error:
        raise UserError(
            f"transformers cannot build '{spec.architecture}' with options {spec.options}: {' '.join(str(error).split())}; "
            f"correct the options"
        ) from error
    if gradient_checkpointing:
        network.gradient_checkpointing_enable({"use_reentrant": False})
    backbone = backbone_class(network)
    if drop_path > 0.0:
        layers = network.layers if spec.architecture == "sam" else network.encoder.layers
        rates = [drop_path * block / max(1, len(layers) - 1) for block in range(len(layers))]
        backbone.drop_paths = nn.ModuleList(_BlockDrop(rate) for rate in rates)
        for layer, drop in zip(layers, backbone.drop_paths, strict=True):
            layer.register_forward_hook(drop.hook)
    return backbone
