"""The networks of the small diffusion models, with the designs of Stable Diffusion 2 and PixArt."""

from __future__ import annotations

from diffusers import DDIMScheduler, PixArtTransformer2DModel, UNet2DConditionModel
from torch import nn

from vpd.config.schema import SmallTransformerSpec, SmallUNetSpec
from vpd.pretraining.diffusion.autoencoder import LATENT_CHANNELS
from vpd.pretraining.diffusion.denoiser import VELOCITY, build_scheduler, build_unet
from vpd.utils.errors import UserError


def build_unet2(spec: SmallUNetSpec, context_width: int, latent_side: int) -> UNet2DConditionModel:
    """Build a fresh U-Net as Stable Diffusion 2's: linear projections, and heads of one width, so that wide levels have more."""
    heads = tuple(width // spec.head_width for width in spec.channels)
    return build_unet(spec, context_width, latent_side, heads, linear=True)


def build_transformer(spec: SmallTransformerSpec, latent_side: int) -> PixArtTransformer2DModel:
    """Build a fresh transformer as PixArt's, which predicts nothing at first; UserError if patches do not fill the latents."""
    if latent_side % spec.patch_size:
        raise UserError(f"diffusion: patch_size is {spec.patch_size}, which does not divide latents of {latent_side}")
    ends = {"sample_size": latent_side, "in_channels": LATENT_CHANNELS, "out_channels": LATENT_CHANNELS}
    heads = {"num_attention_heads": spec.heads, "attention_head_dim": spec.width // spec.heads}
    widths = {"cross_attention_dim": spec.width, "caption_channels": spec.language.width}
    model = PixArtTransformer2DModel(
        **ends, **heads, **widths, num_layers=spec.layers, patch_size=spec.patch_size, use_additional_conditions=False
    )
    nn.init.zeros_(model.proj_out.weight)  # as DiT and PixArt begin
    nn.init.zeros_(model.proj_out.bias)
    return model


def velocity_scheduler() -> DDIMScheduler:
    """Build Stable Diffusion 2's noise schedule: the levels of Stable Diffusion 1, and v prediction."""
    scheduler = build_scheduler()
    scheduler.register_to_config(prediction_type=VELOCITY)
    return scheduler
