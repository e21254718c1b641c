"""Bilinear resizing of maps in training, deterministic on a GPU without the time that PyTorch takes for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def resize(x: Tensor, size: Sequence[int], corners: bool = False) -> Tensor:
    """Resize (batch, c, h, w) bilinearly to ``size``, height and width; ``corners``: corner pixels keep their centres."""
    # Where algorithms have to be deterministic, a GPU's gradient of F.interpolate adds up one pixel after another: more than half
    # of a segmentation step (docs/log.md, 2026-11-27).
    if x.is_cuda and torch.are_deterministic_algorithms_enabled():
        return Bilinear.apply(x, tuple(size), corners)
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=corners)


class Bilinear(torch.autograd.Function):
    """The same resizing, whose gradient is a matrix product along each axis."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, size: tuple[int, int], corners: bool) -> Tensor:
        """Resize as ``F.interpolate`` does; only its gradient has no deterministic kernel."""
        ctx.shape, ctx.corners = x.shape[-2:], corners
        return torch.ops.aten.upsample_bilinear2d(x, size, corners)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """Multiply by the weights that each pixel has in the result, in single precision at least."""
        (gradient,) = gradients
        exact = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
        sides = zip(ctx.shape, gradient.shape[-2:], strict=True)
        down, across = (_weights(given, made, ctx.corners, exact) for given, made in sides)
        return (down @ (exact @ across.T)).to(gradient.dtype), None, None


def _weights(given: int, made: int, corners: bool, like: Tensor) -> Tensor:
    """Return what each of ``given`` pixels in a row contributes to each of ``made``: (given, made)."""
    pixels = torch.eye(given, dtype=like.dtype, device=like.device)
    return torch.ops.aten.upsample_linear1d(pixels[None], [made], corners)[0]
