"""Networks: ``build_model`` is the one place that makes them from a spec."""

from __future__ import annotations

import importlib
from pathlib import Path

from torch import nn

from vpd.config.schema import Spec
from vpd.models.features import Features, LatentCache

__all__ = ["Features", "LatentCache", "build_model"]

BUILDERS = {
    "vpd": ("vpd.models.compose", "build_vpd"),
    "backbone": ("vpd.models.baseline", "build_baseline"),
    "lavt": ("vpd.models.lavt", "build_lavt"),
}
"""Kind of model -> module and function; diffusers, transformers and timm take seconds each, so only what is used is imported."""


def build_model(spec: Spec, checkpoint: Path, classes: list[str]) -> nn.Module:
    """Build the network of one experiment from a checkpoint folder; new weights come from torch's global seed.

    ``classes`` are the dataset's, in label order. UserError if checkpoint and spec do not fit each other.
    """
    module, function = BUILDERS[spec.model.kind]
    return getattr(importlib.import_module(module), function)(spec, checkpoint, classes)
