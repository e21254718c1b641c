"""A small U-Net shaped like Stable Diffusion 1.x's, and its training on latents and captions encoded beforehand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from vpd.config.schema import DenoiserSpec
from vpd.pretraining.diffusion.autoencoder import LATENT_CHANNELS
from vpd.pretraining.diffusion.ema import EMA
from vpd.pretraining.loop import Phase, constant_after, initialised_by
from vpd.pretraining.workdir import Workplace


def build_unet(spec: DenoiserSpec, context_width: int, latent_side: int) -> UNet2DConditionModel:
    """A fresh U-Net with cross-attention at every level but the coarsest, as in Stable Diffusion 1.x."""
    crossed = len(spec.channels) - 1
    return UNet2DConditionModel(
        sample_size=latent_side,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("CrossAttnDownBlock2D",) * crossed + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * crossed,
        block_out_channels=spec.channels,
        layers_per_block=spec.layers_per_block,
        # Stable Diffusion 1.x's configuration calls the number of heads by this name.
        attention_head_dim=spec.heads,
        norm_num_groups=spec.norm_groups,
        cross_attention_dim=context_width,
    )


def build_scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise: 1000 steps, scaled-linear betas from 0.00085 to 0.012, epsilon prediction."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="epsilon",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


@dataclass(frozen=True)
class Encoded:
    """What the U-Net sees of the dataset.

    means, stds: (N,4,h,w) of the latents, already scaled; contexts: (T,L,C), one per distinct caption;
    image_of, text_of: (P,) latent and context of each pair; empty: (L,C), the context of the empty prompt.
    """

    means: Tensor
    stds: Tensor
    contexts: Tensor
    image_of: Tensor
    text_of: Tensor
    empty: Tensor

    def draw(self, batch_size: int, dropout: float, generator: Generator) -> tuple[Tensor, Tensor]:
        """Sample latents (B,4,h,w) and contexts (B,L,C); each context is the empty one with probability ``dropout``."""
        pair = torch.randint(len(self.image_of), (batch_size,), generator=generator)
        mean, std = self.means[self.image_of[pair]], self.stds[self.image_of[pair]]
        noise = torch.randn(mean.shape, generator=generator)
        dropped = torch.rand(batch_size, generator=generator) < dropout
        contexts = torch.where(dropped[:, None, None], self.empty, self.contexts[self.text_of[pair]])
        return mean + std * noise, contexts


@torch.no_grad()
def encode_texts(text: nn.Module, tokens: Tensor, chunk: int = 256) -> Tensor:
    """Final hidden states (T,L,C) of token numbers (T,L)."""
    return torch.cat([text(part).last_hidden_state for part in tokens.split(chunk)])


def train_denoiser(
    spec: DenoiserSpec,
    steps: int,
    encoded: Encoded,
    place: Workplace,
    keep: Callable[[int, dict[str, Tensor]], None],
) -> list[float]:
    """Train for ``steps`` steps and return the losses; after each, ``keep`` gets the steps done and the EMA weights."""
    latent_side = max(encoded.means.shape[-2:])
    with initialised_by(place.seed, "denoiser"):
        unet = build_unet(spec, encoded.contexts.shape[-1], latent_side)
    scheduler = build_scheduler()
    ema = EMA(unet.to(place.device), spec.ema_decay)

    def loss_of(generator: Generator) -> Tensor:
        latents, contexts = encoded.draw(spec.batch_size, spec.caption_dropout, generator)
        noise = torch.randn(latents.shape, generator=generator)
        times = torch.randint(scheduler.config.num_train_timesteps, (spec.batch_size,), generator=generator)
        noisy = scheduler.add_noise(latents, noise, times)
        predicted = unet(noisy.to(place.device), times.to(place.device), contexts.to(place.device)).sample
        return F.mse_loss(predicted, noise.to(place.device))

    phase = Phase("denoiser", "pretraining.denoiser", unet, steps, spec.lr, constant_after(spec.warmup_steps), ema=ema)
    return phase.train(place, loss_of, after=lambda step: keep(step, ema.weights))
