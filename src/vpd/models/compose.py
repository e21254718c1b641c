"""Composing VPD from the parts of a Stable Diffusion checkpoint, or from any parts."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn

from vpd.config.schema import Spec
from vpd.models.diffusion import FeatureUNet, FrozenEncoder, load_unet, load_vae
from vpd.models.heads import HEADS, grid_stride
from vpd.models.network import VPD
from vpd.models.prompts import FROM_IMAGES, TextAdapter, TextEncoder, encode_prompts, token_count
from vpd.utils.errors import UserError


def build_vpd(spec: Spec, checkpoint: Path, classes: list[str]) -> VPD:
    """Build VPD from a pipeline folder; ``classes`` are the names that prompts may be made of."""
    # Restoring the random state gives every checkpoint, and the random U-Net, the same initial adapter and head.
    with torch.random.fork_rng(devices=[]):
        unet, vae = load_unet(checkpoint, spec.model.unet), load_vae(checkpoint)
        text = TextEncoder(checkpoint, spec.model.prompt.length)
        check_widths(text.width, unet)
        fixed = None if spec.model.prompt.strategy in FROM_IMAGES else encode_prompts(spec.model.prompt, text, classes)
    return compose(spec, unet, vae, len(classes), text=text if fixed is None else None, class_embeddings=fixed)


def compose(
    spec: Spec,
    unet: UNet2DConditionModel,
    vae: AutoencoderKL,
    classes: int,
    *,
    text: TextEncoder | None = None,
    class_embeddings: Tensor | None = None,
) -> VPD:
    """Put VPD's network of one experiment together from its parts, on whatever device they are (``meta`` included).

    ``classes`` is their number. UserError if a canvas does not fit the head or its grid.
    """
    model = spec.model
    features = FeatureUNet(unet, model.attention, gradient_checkpointing=spec.training.gradient_checkpointing)
    encoder = FrozenEncoder(vae, model.latent_scale, model.posterior)
    check_canvas(spec, encoder.factor)
    tokens, width = token_count(model.prompt, classes), features.context_width
    channels = [c + (tokens if level in features.recorded else 0) for level, c in enumerate(features.channels)]
    strides = [encoder.factor * 2**level for level in range(len(channels))]
    outputs = {"segmentation": classes, "referring": 2, "depth": 1}[spec.task]
    return VPD(
        model,
        vae=encoder,
        unet=features,
        text=text,
        class_embeddings=class_embeddings,
        adapter=TextAdapter(width, model.adapter) if model.adapter.enabled else nn.Identity(),
        head=HEADS[model.head.kind](model.head, channels, strides, outputs),
    )


def check_widths(width: int, unet: UNet2DConditionModel) -> None:
    """UserError where the text encoder's width is not the one that the U-Net attends to."""
    wanted = unet.config.cross_attention_dim
    if width != wanted:
        raise UserError(
            f"the text encoder is {width} wide but the U-Net attends to {wanted} channels; "
            f"use parts of one Stable Diffusion checkpoint"
        )


def check_canvas(spec: Spec, factor: int) -> None:
    """UserError where the canvas does not fit the head or its grid."""
    canvas, unit = spec.model.canvas, grid_stride(factor)
    if canvas is None:
        return
    if spec.model.head.kind != "depth-decoder":
        raise UserError(f"model.canvas={canvas} works only with head 'depth-decoder'; set it to null")
    if canvas % unit:
        raise UserError(f"model.canvas={canvas} is no multiple of the depth decoder's grid of {unit} pixels; change it")
