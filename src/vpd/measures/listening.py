"""Whether the text matters: how much more the noise of an image is mistaken with another scene's caption than with its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vpd.pretraining.diffusion.denoiser import build_scheduler
from vpd.pretraining.loop import generator_of
from vpd.utils.progress import track

CHUNK = 64  # images at a time
Denoise = Callable[
    [Tensor, Tensor, Tensor], Tensor
]  # noisy latents (B,4,h,w), times (B,), contexts (B,L,C) -> the noise


@torch.no_grad()
def listening(denoise: Denoise, latents: Tensor, contexts: Tensor, times: Sequence[int], seed: int) -> dict[str, float]:
    """Compare contexts (N,L,C) of scaled latents (N,4,h,w) with those of the next image, under the same noise.

    Returns ``text_matters``, the share of images whose own caption costs less over all ``times``, and by time the
    ``extra_cost`` of the wrong ones, relative to the right ones.
    """
    wrong = contexts.roll(-1, dims=0)
    right_cost, wrong_cost = (_costs(denoise, latents, given, times, seed) for given in (contexts, wrong))
    matters = (wrong_cost.sum(dim=0) > right_cost.sum(dim=0)).float().mean().item()
    extra = (wrong_cost - right_cost).mean(dim=1) / right_cost.mean(dim=1)
    return {"text_matters": matters} | {
        f"extra_cost_{t}": value for t, value in zip(times, extra.tolist(), strict=True)
    }


def _costs(denoise: Denoise, latents: Tensor, contexts: Tensor, times: Sequence[int], seed: int) -> Tensor:
    """Mean squared error by time and image, (T,N)."""
    scheduler, rows = build_scheduler(), []
    for time in track(times, len(times), "costs of captions", "time steps"):
        noise = torch.randn(latents.shape, generator=generator_of(seed, "listening", time))
        steps = torch.full((len(latents),), time)
        noisy = scheduler.add_noise(latents, noise, steps)
        chunks = zip(*(values.split(CHUNK) for values in (noisy, steps, contexts, noise)), strict=True)
        rows.append(torch.cat([(denoise(*given) - truth).square().mean(dim=(1, 2, 3)) for *given, truth in chunks]))
    return torch.stack(rows)
