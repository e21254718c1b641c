"""Building timm's networks: names and options checked, and what makes each family take images of any size."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any

import timm
from timm.models import is_model, list_models, model_entrypoint
from timm.models.beit import Beit
from timm.models.convnext import ConvNeXt
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.vision_transformer import VisionTransformer

from vpd.config.schema import NetworkSpec
from vpd.models.backbones.base import Backbone
from vpd.models.backbones.hierarchical import ConvNeXtBackbone, SwinBackbone
from vpd.models.backbones.plain import BeitBackbone, ViTBackbone
from vpd.utils.errors import UserError, nearest

OURS = ("self", "device", "dtype", "in_chans", "num_classes", "drop_path_rate")
"""Parameters of timm's constructors that are no options."""


@dataclass(frozen=True)
class Family:
    """A module of timm: its network, our backbone, and the settings that any image size needs."""

    network: type
    backbone: type[Backbone]
    settings: dict[str, Any] = field(default_factory=dict)


FAMILIES = {
    "swin_transformer": Family(SwinTransformer, SwinBackbone, {"strict_img_size": False}),
    "swin_transformer_v2": Family(SwinTransformerV2, SwinBackbone, {"strict_img_size": False}),
    "convnext": Family(ConvNeXt, ConvNeXtBackbone),
    "vision_transformer": Family(VisionTransformer, ViTBackbone, {"dynamic_img_size": True}),
    "beit": Family(Beit, BeitBackbone),
}


def build(spec: NetworkSpec, drop_path: float, gradient_checkpointing: bool) -> Backbone:
    """Build a timm architecture; a tag, as in ``vit_large_patch16_224.mae``, says whose normalisation it has."""
    family = find_family(spec.architecture)
    check_options(spec, family)
    options = {**family.settings, "num_classes": 0, "drop_path_rate": drop_path, **spec.options}
    try:
        network = timm.create_model(spec.architecture, pretrained=False, **options)
    except (AssertionError, IndexError, RuntimeError, TypeError, ValueError, ZeroDivisionError) as error:
        raise UserError(
            f"timm cannot build '{spec.architecture}' with options {spec.options}: {str(error) or type(error).__name__}; "
            f"correct the options"
        ) from error
    if gradient_checkpointing:
        network.set_grad_checkpointing(True)
    return family.backbone(network)


def find_family(architecture: str) -> Family:
    """Family of an architecture; UserError if timm, or this module, does not know it."""
    if not is_model(architecture):
        known = [name for module in FAMILIES for name in list_models(module=module)]
        raise UserError(f"timm has no architecture '{architecture}'; {nearest(architecture, known)}")
    module = model_entrypoint(architecture).__module__.rpartition(".")[2]
    if module not in FAMILIES:
        raise UserError(
            f"timm's architecture '{architecture}' is of the family '{module}', which has no backbone here; "
            f"choose one of {', '.join(FAMILIES)}"
        )
    return FAMILIES[module]


def check_options(spec: NetworkSpec, family: Family) -> None:
    """UserError if an option is none of the family's."""
    known = {name for name in inspect.signature(family.network).parameters if name not in OURS} | {"pretrained_cfg"}
    for option in spec.options:
        if option not in known:
            raise UserError(f"timm's '{spec.architecture}' has no option '{option}'; {nearest(option, known)}")
