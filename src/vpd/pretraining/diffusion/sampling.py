"""Stable Diffusion pipeline folders: written, sampled from, and their samples arranged in rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from vpd.config.schema import PretrainingSpec
from vpd.pretraining.captions import Captions
from vpd.pretraining.diffusion.denoiser import build_scheduler
from vpd.pretraining.loop import seed_of
from vpd.pretraining.outputs import turn_off_library_bars
from vpd.utils.files import atomic_folder


def save_pipeline(
    folder: Path, vae: AutoencoderKL, text: CLIPTextModel, tokenizer: CLIPTokenizer, unet: UNet2DConditionModel
) -> None:
    """Write ``folder``, complete or not at all, so that ``StableDiffusionPipeline.from_pretrained`` loads it."""
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    turn_off_library_bars()
    with atomic_folder(folder) as temporary:
        pipeline.save_pretrained(temporary, safe_serialization=True)


def sample_rows(
    spec: PretrainingSpec, captions: Captions, vae: AutoencoderKL, folder: Path
) -> dict[str, list[np.ndarray]]:
    """Images (H,W,3) uint8, one per milestone in each row: a row per sample prompt, then real images and reconstructions.

    ``folder`` holds a pipeline folder per milestone.
    """
    samples = [_sample(folder / name, spec, captions.size) for name in spec.milestones if spec.sample_prompts]
    rows = {prompt: [column[index] for column in samples] for index, prompt in enumerate(spec.sample_prompts)}
    images = captions.pixels(torch.arange(len(spec.milestones)) % len(captions.images))
    with torch.no_grad():
        decoded = vae.decode(vae.encode(images).latent_dist.mean).sample
    return rows | {"image": _bytes(images), "reconstruction": _bytes(decoded)}


def _sample(folder: Path, spec: PretrainingSpec, size: tuple[int, int]) -> list[np.ndarray]:
    """One image per prompt."""
    turn_off_library_bars()
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    # The same seeds for every folder: milestones start from the same noise, so that their columns can be compared.
    seed = seed_of(spec.seed, "samples")
    images = pipeline(
        list(spec.sample_prompts),
        height=size[0],
        width=size[1],
        num_inference_steps=spec.sample_steps,
        guidance_scale=spec.guidance,
        generator=[torch.Generator().manual_seed(seed + index) for index in range(len(spec.sample_prompts))],
        output_type="np",
    ).images
    return [(image * 255).round().astype(np.uint8) for image in images]


def _bytes(images: torch.Tensor) -> list[np.ndarray]:
    return list(((images.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy())
