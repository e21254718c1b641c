"""Image encoders other than Stable Diffusion's: one interface over timm and transformers, for images of any size."""

from __future__ import annotations

from vpd.config.schema import NetworkSpec
from vpd.models.backbones.base import Backbone
from vpd.models.backbones.storage import load_backbone, save_backbone

__all__ = ["Backbone", "build_backbone", "load_backbone", "save_backbone"]


def build_backbone(spec: NetworkSpec, *, drop_path: float = 0.0, gradient_checkpointing: bool = False) -> Backbone:
    """Build a backbone with fresh weights from torch's global seed, on torch's current default device.

    Args:
        spec: library, architecture and options.
        drop_path: stochastic depth of the last block, from 0 at the first one.
        gradient_checkpointing: recompute activations in the backward pass.

    Raises:
        UserError: the library has no such architecture, or the architecture no such option.
    """
    if spec.library == "timm":
        from vpd.models.backbones.from_timm import build
    else:
        from vpd.models.backbones.from_transformers import build
    return build(spec, drop_path, gradient_checkpointing)
