"""A small U-Net shaped like Stable Diffusion 1.x's, and its training on latents and captions encoded beforehand."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Generator, Tensor

from vpd.config.schema import DenoiserSpec
from vpd.pretraining.diffusion.autoencoder import LATENT_CHANNELS
from vpd.pretraining.loop import Phase, constant_after, initialised_by
from vpd.pretraining.workdir import Workdir

MAX_GRADIENT_NORM = 1.0
Save = Callable[
    [str, UNet2DConditionModel], None
]  # gets a milestone's name and a U-Net with averaged weights, on the CPU


def build_unet(spec: DenoiserSpec, context_width: int, latent_side: int) -> UNet2DConditionModel:
    """Build a fresh U-Net with cross-attention at every level but the coarsest, as in Stable Diffusion 1.x."""
    crossed = len(spec.channels) - 1
    down, up = ("CrossAttnDownBlock2D",) * crossed, ("CrossAttnUpBlock2D",) * crossed
    blocks: dict[str, Any] = {"down_block_types": (*down, "DownBlock2D"), "up_block_types": ("UpBlock2D", *up)}
    sizes: dict[str, Any] = {"block_out_channels": spec.channels, "layers_per_block": spec.layers_per_block}
    ends = {"sample_size": latent_side, "in_channels": LATENT_CHANNELS, "out_channels": LATENT_CHANNELS}
    # Stable Diffusion 1.x's configuration calls the number of heads attention_head_dim.
    heads = {"attention_head_dim": spec.heads, "cross_attention_dim": context_width}
    return UNet2DConditionModel(**blocks, **sizes, **ends, **heads, norm_num_groups=spec.norm_groups)


def build_scheduler() -> DDIMScheduler:
    """Build Stable Diffusion's noise schedule: 1000 steps, scaled-linear betas from 0.00085 to 0.012, epsilon prediction."""
    betas: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    ends: dict[str, Any] = {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
    return DDIMScheduler(num_train_timesteps=1000, **betas, **ends, prediction_type="epsilon")


def noise_weights(scheduler: DDIMScheduler, power: float) -> Tensor:
    """Weight of the loss at each of the 1000 steps, of mean 1: (1 - alpha_bar)^power.

    It is 1 / (1 + SNR)^power, the weighting of Choi et al. 2022 ("Perception prioritized training") with their k = 1.
    """
    weights = (1.0 - scheduler.alphas_cumprod) ** power
    return weights / weights.mean()


@dataclass(frozen=True)
class Encoded:
    """The dataset as the U-Net sees it, encoded once: latents' posteriors, contexts, and which of them each pair has."""

    means: Tensor  # (N,4,h,w), scaled
    stds: Tensor  # (N,4,h,w), scaled
    contexts: Tensor  # (T,L,C), one per distinct caption
    image_of: Tensor  # (P,)
    text_of: Tensor  # (P,)
    empty: Tensor  # (L,C), of the empty prompt

    def draw(self, batch_size: int, dropout: float, generator: Generator) -> tuple[Tensor, Tensor]:
        """Draw latents (B,4,h,w) and contexts (B,L,C); each context is the empty one with probability ``dropout``."""
        pair = torch.randint(len(self.image_of), (batch_size,), generator=generator)
        mean, std = self.means[self.image_of[pair]], self.stds[self.image_of[pair]]
        noise = torch.randn(mean.shape, generator=generator)
        # Classifier-free guidance needs the unconditional noise, too.
        dropped = torch.rand(batch_size, generator=generator) < dropout
        contexts = torch.where(dropped[:, None, None], self.empty, self.contexts[self.text_of[pair]])
        return mean + std * noise, contexts


def train_denoiser(
    spec: DenoiserSpec, milestones: Mapping[str, int], encoded: Encoded, workdir: Workdir, save: Save
) -> tuple[UNet2DConditionModel, list[float]]:
    """Train on epsilon prediction up to the last milestone (images seen); return the U-Net with the loss of every step."""
    latent_side = max(encoded.means.shape[-2:])
    with initialised_by(workdir.seed, "denoiser"):
        unet = build_unet(spec, encoded.contexts.shape[-1], latent_side)
    scheduler = build_scheduler()
    weights = noise_weights(scheduler, spec.noise_weighting)

    def loss_of(generator: Generator) -> Tensor:
        drawn = encoded.draw(spec.batch_size, spec.caption_dropout, generator)
        latents, contexts = (part.repeat_interleave(spec.noises, dim=0) for part in drawn)
        noise = torch.randn(latents.shape, generator=generator)
        times = torch.randint(scheduler.config.num_train_timesteps, (len(latents),), generator=generator)
        noisy = scheduler.add_noise(latents, noise, times)
        predicted = unet(noisy.to(workdir.device), times.to(workdir.device), contexts.to(workdir.device)).sample
        errors = (predicted - noise.to(workdir.device)).square().mean(dim=(1, 2, 3))
        return (weights[times].to(errors) * errors).mean()

    def after(step: int) -> None:
        for name in (name for name, images in milestones.items() if step * spec.batch_size == images):
            # As the published checkpoints do: averaged weights draw and represent better than the last ones (S12).
            averaged = copy.deepcopy(unet)
            averaged.load_state_dict(phase.average)
            save(name, averaged.cpu().eval())

    factor = constant_after(spec.warmup_steps)  # constant: milestones are prefixes of one run, which a decay would bend
    steps = max(milestones.values()) // spec.batch_size
    limits: dict[str, Any] = {"max_gradient_norm": MAX_GRADIENT_NORM, "ema_decay": spec.ema_decay}
    phase = Phase("denoiser", "pretraining.denoiser", unet, steps, spec.lr, factor, **limits)
    return unet, phase.train(workdir, loss_of, after)
