"""Images drawn by a finished pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from vpd.config.schema import PretrainingSpec
from vpd.pretraining.loop import seed_of, turn_off_library_bars
from vpd.utils.progress import Progress

BATCH = 32  # images drawn at a time; another number would change their last bits


def load_pipeline(folder: Path, device: torch.device) -> StableDiffusionPipeline:
    """Load the pipeline in ``folder`` without progress bars of its own."""
    turn_off_library_bars()
    pipeline = StableDiffusionPipeline.from_pretrained(folder).to(device)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(
    folder: Path, prompts: Sequence[str], spec: PretrainingSpec, size: tuple[int, int], device: torch.device
) -> Tensor:
    """Draw an image (N,3,H,W) uint8 of height and width ``size`` for every prompt, with the pipeline in ``folder``.

    Prompt i starts from the same noise in every pipeline, so that milestones can be compared.
    """
    pipeline = load_pipeline(folder, device)
    seed, parts = seed_of(spec.seed, "samples"), list[Tensor]()
    options = {"height": size[0], "width": size[1], "output_type": "pt"}
    options |= {"num_inference_steps": spec.sample_steps, "guidance_scale": spec.guidance}
    with Progress(len(prompts), f"drawing with {folder.name}", "images") as progress:
        for start in range(0, len(prompts), BATCH):
            texts = list(prompts[start : start + BATCH])
            # CPU generators give the same noise on every device.
            generators = [torch.Generator().manual_seed(seed + start + index) for index in range(len(texts))]
            images = pipeline(texts, generator=generators, **options).images
            parts.append((images.cpu() * 255).round().to(torch.uint8))
            progress.advance(len(texts))
    return torch.cat(parts)
