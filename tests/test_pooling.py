"""The autoencoder's start: pooled colours pass through both halves before any training."""

import pytest
import torch
from torch.nn import functional as F

from vpd.config.schema import AutoencoderSpec
from vpd.pretraining.diffusion.autoencoder import build_autoencoder
from vpd.pretraining.diffusion.pooling import initialise_as_pooling
from vpd.utils.errors import UserError


def autoencoder(channels):
    spec = AutoencoderSpec(channels=channels, layers_per_block=1, steps=1, batch_size=1, lr=1e-3, kl_weight=1e-6)
    return build_autoencoder(spec, (32, 32)).eval()


def correlation(a, b):
    return torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1].item()


@torch.no_grad()
def test_latents_are_pooled_colours():
    """Up to one offset and scale per image (the norm's), the first three latent channels are the averages of 4x4 blocks."""
    model = autoencoder((8, 16, 32))
    initialise_as_pooling(model)
    image = F.interpolate(torch.rand(1, 3, 8, 8), size=(32, 32), mode="bilinear") * 2 - 1
    latent, pooled = model.encode(image).latent_dist.mean[:, :3], F.avg_pool2d(image, 4)
    for channel in range(3):
        assert correlation(latent[:, channel], pooled[:, channel]) > 0.999
    decoded, repeated = model.decode(model.encode(image).latent_dist.mean).sample, F.interpolate(pooled, scale_factor=4)
    assert correlation(decoded, repeated) > 0.99


def test_every_parameter_of_the_residual_branches_still_learns():
    model = autoencoder((8, 16, 32)).train()
    initialise_as_pooling(model)
    image = torch.rand(2, 3, 32, 32) * 2 - 1
    F.mse_loss(model(image).sample, image).backward()
    silent = [name for name, p in model.named_parameters() if "conv2.weight" in name and not p.grad.abs().sum() > 0]
    assert silent == []


def test_too_narrow_a_level_is_named():
    with pytest.raises(UserError, match="has a level of 4; give each at least 6"):
        initialise_as_pooling(autoencoder((4, 8, 8)))
