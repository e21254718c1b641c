"""Image encoders other than Stable Diffusion's: one interface over timm and transformers, for images of any size."""

from vpd.models.backbones.base import Backbone
from vpd.models.backbones.build import build_backbone
from vpd.models.backbones.storage import load_backbone, save_backbone

__all__ = ["Backbone", "build_backbone", "load_backbone", "save_backbone"]
