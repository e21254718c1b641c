"""Configurations of Stable Diffusion 1's networks, which all its versions share."""

from __future__ import annotations

import json
from importlib.resources import files

DATA = "stable_diffusion_1.json"


def sd1_configs() -> dict[str, dict]:
    """Configurations of ``unet``, ``vae``, ``text_encoder`` and ``scheduler``, as diffusers and transformers write them."""
    return json.loads(files("vpd.pretrained").joinpath(DATA).read_text(encoding="utf-8"))
