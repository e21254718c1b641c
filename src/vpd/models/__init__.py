"""Networks: ``build_model`` is the one place that composes them from a spec."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from vpd.errors import UserError
from vpd.models.diffusion import FeatureUNet, load_encoder, load_unet
from vpd.models.features import Features, LatentCache
from vpd.models.heads import HEADS, grid_stride
from vpd.models.network import VPD
from vpd.models.prompts import TextAdapter, TextEncoder, encode_prompts, token_count
from vpd.spec import Spec

__all__ = ["VPD", "Features", "LatentCache", "build_model"]


def build_model(spec: Spec, checkpoint: Path, classes: list[str]) -> VPD:
    """Build the network of one experiment from a Stable Diffusion folder; new weights come from torch's global seed.

    ``classes`` are the dataset's, in label order. UserError if checkpoint and spec do not fit each other.
    """
    model = spec.model
    # Restoring the random state gives every checkpoint, and the random U-Net, the same initial adapter and head.
    with torch.random.fork_rng(devices=[]):
        unet = FeatureUNet(
            load_unet(checkpoint, model.unet),
            model.attention,
            gradient_checkpointing=spec.training.gradient_checkpointing,
        )
        vae = load_encoder(checkpoint, model.latent_scale)
        text = TextEncoder(checkpoint, model.prompt.length)
        _check(spec, unet, vae.factor, text.width)
        fixed = None if model.prompt.strategy == "expression" else encode_prompts(model.prompt, text, classes)
    tokens = token_count(model.prompt, classes)
    channels = [c + (tokens if level in unet.recorded else 0) for level, c in enumerate(unet.channels)]
    outputs = {"segmentation": len(classes), "referring": 2, "depth": 1}[spec.task]
    return VPD(
        model,
        vae=vae,
        unet=unet,
        text=text if fixed is None else None,
        class_embeddings=fixed,
        adapter=TextAdapter(text.width, model.adapter.gamma) if model.adapter.enabled else nn.Identity(),
        head=HEADS[model.head.kind](model.head, channels, outputs, vae.factor),
    )


def _check(spec: Spec, unet: FeatureUNet, factor: int, width: int) -> None:
    """UserError where the checkpoint's parts or the canvas do not fit."""
    if width != unet.context_width:
        raise UserError(
            f"the text encoder is {width} wide but the U-Net attends to {unet.context_width} channels; "
            f"use parts of one Stable Diffusion checkpoint"
        )
    canvas, unit = spec.model.canvas, grid_stride(factor)
    if canvas is None:
        return
    if spec.model.head.kind != "depth-decoder":
        raise UserError(f"model.canvas={canvas} works only with head 'depth-decoder'; set it to null")
    if canvas % unit:
        raise UserError(f"model.canvas={canvas} is no multiple of the depth decoder's grid of {unit} pixels; change it")
