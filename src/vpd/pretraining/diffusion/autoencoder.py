"""A small AutoencoderKL, Stable Diffusion's first stage (Rombach et al. 2022): architecture, start, training and scale."""

from __future__ import annotations

import math

import torch
from diffusers import AutoencoderKL
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from vpd.config.schema import AutoencoderSpec
from vpd.pretraining.captions import Captions
from vpd.pretraining.loop import Phase, initialised_by, rise_and_fall
from vpd.pretraining.workdir import Workdir
from vpd.utils.errors import UserError
from vpd.utils.progress import track

LATENT_CHANNELS = 4
CHUNK = 64  # images encoded at a time
COLOURS = 3
SIGNED = 2 * COLOURS  # channels of the colours and their negatives: SiLU(x) - SiLU(-x) = x passes it unchanged
CONTRAST = 0.4  # standard deviation to which the decoder's last norm is undone; about that of the synthetic images
LOG_VARIANCE = -6.0  # of the posterior at first: little noise, so that the means are used


def build_autoencoder(spec: AutoencoderSpec, size: tuple[int, int]) -> AutoencoderKL:
    """Build a fresh AutoencoderKL that reduces each side by 2^(levels - 1)."""
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


def train_autoencoder(spec: AutoencoderSpec, captions: Captions, workdir: Workdir) -> tuple[AutoencoderKL, list[float]]:
    """Train on reconstruction, without the paper's LPIPS and discriminator; also return the loss of every step."""
    with initialised_by(workdir.seed, "autoencoder"):
        model = build_autoencoder(spec, captions.size)
    initialise_as_pooling(model)

    def loss_of(generator: Generator) -> Tensor:
        index = torch.randint(len(captions.images), (spec.batch_size,), generator=generator)
        images = captions.pixels(index).to(workdir.device)
        posterior = model.encode(images).latent_dist
        # CPU generators give the same noise on every device.
        noise = torch.randn(posterior.mean.shape, generator=generator).to(workdir.device)
        decoded = model.decode(posterior.mean + posterior.std * noise).sample
        divergence = posterior.kl().mean() / posterior.mean[0].numel()
        return F.l1_loss(decoded, images) + F.mse_loss(decoded, images) + spec.kl_weight * divergence

    phase = Phase("autoencoder", "pretraining.autoencoder", model, spec.steps, spec.lr, rise_and_fall(spec.steps))
    return model, phase.train(workdir, loss_of)


@torch.no_grad()
def encode_images(model: AutoencoderKL, captions: Captions, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every image's latent, (N,4,h,w) each, unscaled."""
    starts = range(0, len(captions.images), CHUNK)
    means, stds = [], []
    for start in track(starts, len(starts), "encoding images", "batches"):
        posterior = model.encode(captions.pixels(slice(start, start + CHUNK)).to(device)).latent_dist
        means.append(posterior.mean.cpu())
        stds.append(posterior.std.cpu())
    return torch.cat(means), torch.cat(stds)


def scaling_factor(means: Tensor, stds: Tensor) -> float:
    """Factor that gives latents drawn from N(mean, std^2) a standard deviation of 1, which the noise schedule assumes."""
    # Law of total variance: of the means, plus the mean of the variances.
    variance = means.double().var(correction=0) + stds.double().square().mean()
    return 1.0 / math.sqrt(variance.item())


@torch.no_grad()
def reconstruction_psnr(model: AutoencoderKL, captions: Captions, device: torch.device) -> float:
    """Peak signal-to-noise ratio in dB of the first CHUNK images, encoded and decoded."""
    images = captions.pixels(slice(0, CHUNK)).to(device)
    decoded = model.decode(model.encode(images).latent_dist.mean).sample.clamp(-1, 1)
    return 10.0 * math.log10(4.0 / F.mse_loss(decoded, images).item())  # the pixels' range is 2, its square 4


def as_bytes(images: Tensor) -> Tensor:
    """Images in [-1,1] as uint8."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().byte()


@torch.no_grad()
def initialise_as_pooling(model: AutoencoderKL) -> None:
    """Set ``model`` so that three latent channels are the pooled image: 23.5 dB after 200 steps; from a random start 19.0."""
    narrowest = min(model.config.block_out_channels)
    if narrowest < SIGNED:
        raise UserError(f"pretraining.autoencoder.channels has a level of {narrowest}; give each at least {SIGNED}")
    centre, corner = torch.zeros(3, 3), torch.zeros(3, 3)
    centre[1, 1] = 1.0
    corner[:2, :2] = 0.25  # the encoder pads right and below, so this averages each 2x2 block
    wiring = {
        "conv_in": (SIGNED, COLOURS, centre),
        "downsamplers.0.conv": (SIGNED, SIGNED, corner),
        "upsamplers.0.conv": (SIGNED, SIGNED, centre),
        "conv_shortcut": (SIGNED, SIGNED, torch.ones(1, 1)),
        "encoder.conv_out": (COLOURS, SIGNED, centre),
        "decoder.conv_out": (COLOURS, SIGNED, centre * CONTRAST),
    }
    for name, part in model.named_modules():
        for ending in wiring:
            if name.endswith(ending):
                _wire(part, *wiring[ending])
        if name.endswith(("conv2", "to_out.0")):  # residual branches start at zero
            nn.init.zeros_(part.weight)
            nn.init.zeros_(part.bias)
    for quantise in (model.quant_conv, model.post_quant_conv):
        quantise.weight.copy_(torch.eye(*quantise.weight.shape[:2])[..., None, None])
        quantise.bias.zero_()
    model.quant_conv.bias[LATENT_CHANNELS:] = LOG_VARIANCE


def _wire(conv: nn.Conv2d, outputs: int, inputs: int, kernel: Tensor) -> None:
    """Set the first ``outputs`` channels to filter the first ``inputs``; six are three colours and their negatives."""
    for parameter in conv.parameters():
        parameter[:outputs] = 0.0
    for channel in range(SIGNED):
        negative = outputs != inputs and channel >= COLOURS
        conv.weight[channel % outputs, channel % inputs] = -kernel if negative else kernel
