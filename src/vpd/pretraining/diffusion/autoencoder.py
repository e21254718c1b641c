"""A small AutoencoderKL: architecture, training and the scale of its latents."""

from __future__ import annotations

import math

import torch
from diffusers import AutoencoderKL
from torch import Generator, Tensor
from torch.nn import functional as F

from vpd.config.schema import AutoencoderSpec
from vpd.pretraining.captions import Captions
from vpd.pretraining.diffusion.pooling import initialise_as_pooling
from vpd.pretraining.loop import Phase, initialised_by, rise_and_fall
from vpd.pretraining.workdir import Workplace
from vpd.utils.progress import track

LATENT_CHANNELS = 4
CHUNK = 64
"""Images encoded at a time."""


def build_autoencoder(spec: AutoencoderSpec, size: tuple[int, int]) -> AutoencoderKL:
    """A fresh AutoencoderKL that reduces each side by 2^(levels - 1)."""
    levels = len(spec.channels)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=spec.channels,
        layers_per_block=spec.layers_per_block,
        latent_channels=LATENT_CHANNELS,
        # As in Stable Diffusion, four channels share a norm at the widest resolution.
        norm_num_groups=max(1, math.gcd(*spec.channels) // 4),
        sample_size=max(size),
    )


def train_autoencoder(spec: AutoencoderSpec, captions: Captions, place: Workplace) -> tuple[AutoencoderKL, list[float]]:
    """Train on reconstruction and return the autoencoder with its losses.

    The loss is the mean of L1 and squared error over pixels plus ``kl_weight`` times the mean KL divergence per latent.
    """
    with initialised_by(place.seed, "autoencoder"):
        model = build_autoencoder(spec, captions.size)
    initialise_as_pooling(model)

    def loss_of(generator: Generator) -> Tensor:
        index = torch.randint(len(captions.images), (spec.batch_size,), generator=generator)
        images = captions.pixels(index).to(place.device)
        posterior = model.encode(images).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator).to(place.device)
        decoded = model.decode(posterior.mean + posterior.std * noise).sample
        divergence = posterior.kl().mean() / posterior.mean[0].numel()
        return F.l1_loss(decoded, images) + F.mse_loss(decoded, images) + spec.kl_weight * divergence

    phase = Phase("autoencoder", "pretraining.autoencoder", model, spec.steps, spec.lr, rise_and_fall(spec.steps))
    return model, phase.train(place, loss_of)


@torch.no_grad()
def encode_images(model: AutoencoderKL, captions: Captions, place: Workplace) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every image's latent, (N,4,h,w) each, unscaled."""
    starts = range(0, len(captions.images), CHUNK)
    means, stds = [], []
    for start in track(starts, len(starts), "encoding images", "batches"):
        posterior = model.encode(captions.pixels(slice(start, start + CHUNK)).to(place.device)).latent_dist
        means.append(posterior.mean.cpu())
        stds.append(posterior.std.cpu())
    return torch.cat(means), torch.cat(stds)


def scaling_factor(means: Tensor, stds: Tensor) -> float:
    """One over the standard deviation of latents drawn from N(mean, std^2), which makes theirs 1."""
    # Law of total variance: of the means, plus the mean of the variances.
    variance = means.double().var(correction=0) + stds.double().square().mean()
    return 1.0 / math.sqrt(variance.item())


@torch.no_grad()
def reconstruction_psnr(model: AutoencoderKL, captions: Captions, place: Workplace) -> float:
    """Peak signal-to-noise ratio in dB of the first images, encoded and decoded."""
    images = captions.pixels(slice(0, CHUNK)).to(place.device)
    decoded = model.decode(model.encode(images).latent_dist.mean).sample.clamp(-1, 1)
    return 10.0 * math.log10(4.0 / F.mse_loss(decoded, images).item())
