"""Backbones by library."""

from __future__ import annotations

from vpd.config.schema import NetworkSpec
from vpd.models.backbones.base import Backbone


def build_backbone(spec: NetworkSpec, *, drop_path: float = 0.0, gradient_checkpointing: bool = False) -> Backbone:
    """Build a backbone with fresh weights, drawn from torch's global seed, on torch's current default device.

    ``drop_path`` is the stochastic depth of the last block. UserError if the library has no such architecture or the
    architecture no such option.
    """
    if spec.library == "timm":
        from vpd.models.backbones.from_timm import build
    else:
        from vpd.models.backbones.from_transformers import build
    return build(spec, drop_path, gradient_checkpointing)
