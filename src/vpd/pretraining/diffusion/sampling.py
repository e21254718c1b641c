"""Stable Diffusion pipeline folders, written and drawn from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from vpd.pretraining.diffusion.denoiser import build_scheduler
from vpd.pretraining.silence import quiet
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
    with quiet(), atomic_folder(folder) as temporary:
        pipeline.save_pretrained(temporary, safe_serialization=True)


def draw(
    folder: Path, prompts: tuple[str, ...], size: tuple[int, int], steps: int, guidance: float, seed: int
) -> list[np.ndarray]:
    """One uint8 (H,W,3) picture per prompt; the same seed gives every folder the same initial noise."""
    with quiet():
        pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    height, width = size
    generators = [torch.Generator().manual_seed(seed + index) for index in range(len(prompts))]
    pictures = pipeline(
        list(prompts),
        height=height,
        width=width,
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=generators,
        output_type="np",
    ).images
    return [(picture * 255).round().astype(np.uint8) for picture in pictures]
