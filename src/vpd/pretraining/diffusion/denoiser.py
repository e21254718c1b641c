"""A small U-Net with the design of Stable Diffusion's, and how any network is trained to denoise encoded latents."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Generator, Tensor, nn

from vpd.config.schema import DenoiserSpec, Denoising, UNetSizes
from vpd.pretraining.diffusion.autoencoder import LATENT_CHANNELS
from vpd.pretraining.loop import LossOf, Phase, constant_after, initialised_by
from vpd.pretraining.workdir import Workdir

VELOCITY = "v_prediction"
MAX_GRADIENT_NORM = 1.0
Read = Callable[[Tensor], dict[str, Tensor]]  # gets drawn texts and returns what the network is told of them
Save = Callable[
    [str, UNet2DConditionModel], None
]  # gets a milestone's name and a U-Net with averaged weights, on the CPU


def build_unet(
    spec: UNetSizes, context_width: int, latent_side: int, heads: int | tuple[int, ...], linear: bool = False
) -> UNet2DConditionModel:
    """Build a fresh U-Net with cross-attention at every level but the coarsest, as in Stable Diffusion 1 and 2.

    ``heads`` are those of all levels or of each; with ``linear`` they are projected by matrices instead of convolutions.
    """
    crossed = len(spec.channels) - 1
    down, up = ("CrossAttnDownBlock2D",) * crossed, ("CrossAttnUpBlock2D",) * crossed
    blocks: dict[str, Any] = {"down_block_types": (*down, "DownBlock2D"), "up_block_types": ("UpBlock2D", *up)}
    sizes: dict[str, Any] = {"block_out_channels": spec.channels, "layers_per_block": spec.layers_per_block}
    ends = {"sample_size": latent_side, "in_channels": LATENT_CHANNELS, "out_channels": LATENT_CHANNELS}
    # Stable Diffusion's configurations call the number of heads attention_head_dim.
    attention: dict[str, Any] = {"attention_head_dim": heads, "cross_attention_dim": context_width}
    more = {"use_linear_projection": linear, "norm_num_groups": spec.norm_groups}
    return UNet2DConditionModel(**blocks, **sizes, **ends, **attention, **more)


def build_scheduler() -> DDIMScheduler:
    """Build Stable Diffusion's noise schedule: 1000 steps, scaled-linear betas from 0.00085 to 0.012, epsilon prediction."""
    betas: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    ends: dict[str, Any] = {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
    return DDIMScheduler(num_train_timesteps=1000, **betas, **ends, prediction_type="epsilon")


def target_of(scheduler: DDIMScheduler, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
    """What a network is to predict at ``times`` (B,): the noise (B,4,h,w), or v = a noise - s latents where a² + s² = 1."""
    if scheduler.config.prediction_type == VELOCITY:
        return scheduler.get_velocity(latents, noise, times)
    return noise


def noise_weights(scheduler: DDIMScheduler, power: float) -> Tensor:
    """Weight of the loss at each of the 1000 steps, of mean 1: (1 - alpha_bar)^power.

    It is 1 / (1 + SNR)^power, the weighting of Choi et al. 2022 ("Perception prioritized training") with their k = 1.
    """
    weights = (1.0 - scheduler.alphas_cumprod) ** power
    return weights / weights.mean()


@dataclass(frozen=True)
class Encoded:
    """The dataset as the network sees it, encoded once: latents' posteriors, texts, and which of them each pair has.

    Texts are contexts (L,C), or token numbers (L,) where the text encoder has to read them anew.
    """

    means: Tensor  # (N,4,h,w), scaled
    stds: Tensor  # (N,4,h,w), scaled
    texts: Tensor  # (T,...), one per distinct caption
    image_of: Tensor  # (P,)
    text_of: Tensor  # (P,)
    empty: Tensor  # (...), of the empty prompt

    def draw(self, batch_size: int, dropout: float, generator: Generator) -> tuple[Tensor, Tensor]:
        """Draw latents (B,4,h,w) and texts (B,...); each text is the empty one with probability ``dropout``."""
        pair = torch.randint(len(self.image_of), (batch_size,), generator=generator)
        mean, std = self.means[self.image_of[pair]], self.stds[self.image_of[pair]]
        noise = torch.randn(mean.shape, generator=generator)
        # Classifier-free guidance needs the unconditional noise, too.
        dropped = torch.rand(batch_size, generator=generator) < dropout
        dropped = dropped.reshape(-1, *[1] * self.empty.ndim)
        return mean + std * noise, torch.where(dropped, self.empty, self.texts[self.text_of[pair]])


def denoising_phase(
    network: nn.Module,
    scheduler: DDIMScheduler,
    read: Read,
    encoded: Encoded,
    spec: Denoising,
    settings: str,
    steps: int,
    workdir: Workdir,
) -> tuple[Phase, LossOf]:
    """Prepare the training of ``network`` to denoise latents; ``settings`` is the key of ``spec`` in params.yaml.

    All diffusion models with batches of one size see the same images, captions, noises and times at each step.
    """
    weights = noise_weights(scheduler, spec.noise_weighting)

    def loss_of(generator: Generator) -> Tensor:
        drawn, texts = encoded.draw(spec.batch_size, spec.caption_dropout, generator)
        latents = drawn.repeat_interleave(spec.noises, dim=0)
        noise = torch.randn(latents.shape, generator=generator)
        times = torch.randint(scheduler.config.num_train_timesteps, (len(latents),), generator=generator)
        noisy, target = scheduler.add_noise(latents, noise, times), target_of(scheduler, latents, noise, times)
        told = {name: x.repeat_interleave(spec.noises, dim=0) for name, x in read(texts.to(workdir.device)).items()}
        predicted = network(noisy.to(workdir.device), timestep=times.to(workdir.device), **told).sample
        errors = (predicted - target.to(workdir.device)).square().mean(dim=(1, 2, 3))
        return (weights[times].to(errors) * errors).mean()

    factor = constant_after(spec.warmup_steps)  # constant: milestones are prefixes of one run, which a decay would bend
    limits: dict[str, Any] = {"max_gradient_norm": MAX_GRADIENT_NORM, "ema_decay": spec.ema_decay}
    return Phase("denoiser", settings, network, steps, spec.lr, factor, **limits), loss_of


def train_denoiser(
    spec: DenoiserSpec, milestones: Mapping[str, int], encoded: Encoded, workdir: Workdir, save: Save
) -> tuple[UNet2DConditionModel, list[float]]:
    """Train on epsilon prediction up to the last milestone (images seen); return the U-Net with the loss of every step."""
    latent_side = max(encoded.means.shape[-2:])
    with initialised_by(workdir.seed, "denoiser"):
        unet = build_unet(spec, encoded.texts.shape[-1], latent_side, spec.heads)

    def read(contexts: Tensor) -> dict[str, Tensor]:
        return {"encoder_hidden_states": contexts}

    def after(step: int) -> None:
        for name in (name for name, images in milestones.items() if step * spec.batch_size == images):
            # As the published checkpoints do: averaged weights draw and represent better than the last ones (S12).
            averaged = copy.deepcopy(unet)
            averaged.load_state_dict(phase.average)
            save(name, averaged.cpu().eval())

    steps = max(milestones.values()) // spec.batch_size
    given = build_scheduler(), read, encoded, spec, "pretraining.denoiser", steps, workdir
    phase, loss_of = denoising_phase(unet, *given)
    return unet, phase.train(workdir, loss_of, after)
