"""Augmented views of whole batches, every image with its own chances."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

ASPECT = 4 / 3
"""Most a crop is stretched, as in the common random resized crop."""
GREY = (0.299, 0.587, 0.114)


def flipped(images: Tensor, generator: Generator) -> Tensor:
    """Images (B,3,H,W), each mirrored left to right with probability one half."""
    mirrored = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(mirrored.to(images.device)[:, None, None, None], images.flip(-1), images)


def crops(images: Tensor, size: tuple[int, int], areas: tuple[float, float], generator: Generator) -> Tensor:
    """Random resized crops (B,3,*size) that cover a share within ``areas`` of their images, bilinear."""
    low, high = areas
    draws = torch.rand(4, len(images), generator=generator)
    area, stretch = low + (high - low) * draws[0], (2 * draws[1] - 1) * math.log(ASPECT) / 2
    # Half the crop's sides, where the image spans [-1, 1].
    width, height = ((area.sqrt() * (sign * stretch).exp()).clamp(max=1.0) for sign in (1, -1))
    across, down = ((1 - half) * (2 * place - 1) for half, place in ((width, draws[2]), (height, draws[3])))
    zero = torch.zeros_like(width)
    rows = [torch.stack([width, zero, across], dim=1), torch.stack([zero, height, down], dim=1)]
    grid = F.affine_grid(torch.stack(rows, dim=1), (len(images), 3, *size), align_corners=False)
    return F.grid_sample(images, grid.to(images), padding_mode="border", align_corners=False)


def jittered(images: Tensor, strength: float, grey: float, generator: Generator) -> Tensor:
    """Images in [-1,1] with brightness, contrast and saturation each changed by a factor within 1 +- ``strength``.

    With probability ``grey`` an image loses its colours.
    """
    factors = 1 + strength * (2 * torch.rand(3, len(images), 1, 1, 1, generator=generator) - 1)
    factors[2][torch.rand(len(images), generator=generator) < grey] = 0.0
    bright, contrast, saturation = factors.to(images)
    images = ((images + 1) * bright - 1).clamp(-1, 1)
    mean = luminance(images).mean(dim=(2, 3), keepdim=True)
    images = (mean + (images - mean) * contrast).clamp(-1, 1)
    light = luminance(images)
    return (light + (images - light) * saturation).clamp(-1, 1)


def luminance(images: Tensor) -> Tensor:
    """(B,1,H,W) weighted mean of the colours."""
    return (images * torch.tensor(GREY).to(images)[:, None, None]).sum(dim=1, keepdim=True)
