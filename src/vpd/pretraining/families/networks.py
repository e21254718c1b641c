"""The networks of the small diffusion models, with the designs of Stable Diffusion 2 and PixArt, and what they predict."""

from __future__ import annotations

from typing import Any

from diffusers import DDIMScheduler, PixArtTransformer2DModel, UNet2DConditionModel
from torch import Tensor, nn

from vpd.config.schema import SmallTransformerSpec, SmallUNetSpec
from vpd.pretraining.diffusion.autoencoder import LATENT_CHANNELS
from vpd.pretraining.diffusion.denoiser import build_scheduler
from vpd.utils.errors import UserError

VELOCITY = "v_prediction"


def build_unet2(spec: SmallUNetSpec, context_width: int, latent_side: int) -> UNet2DConditionModel:
    """Build a fresh U-Net as Stable Diffusion 2's: linear projections, and heads of one width, so that wide levels have more."""
    crossed = len(spec.channels) - 1
    down, up = ("CrossAttnDownBlock2D",) * crossed, ("CrossAttnUpBlock2D",) * crossed
    blocks: dict[str, Any] = {"down_block_types": (*down, "DownBlock2D"), "up_block_types": ("UpBlock2D", *up)}
    sizes: dict[str, Any] = {"block_out_channels": spec.channels, "layers_per_block": spec.layers_per_block}
    ends = {"sample_size": latent_side, "in_channels": LATENT_CHANNELS, "out_channels": LATENT_CHANNELS}
    # As in Stable Diffusion 2's configuration, attention_head_dim has the number of heads of each level.
    heads = {"attention_head_dim": tuple(width // spec.head_width for width in spec.channels)}
    more = {"cross_attention_dim": context_width, "use_linear_projection": True, "norm_num_groups": spec.norm_groups}
    return UNet2DConditionModel(**blocks, **sizes, **ends, **heads, **more)


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


def target_of(scheduler: DDIMScheduler, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
    """What a network is to predict at ``times`` (B,): the noise (B,4,h,w), or v = a noise - s latents where a² + s² = 1."""
    if scheduler.config.prediction_type == VELOCITY:
        return scheduler.get_velocity(latents, noise, times)
    return noise
