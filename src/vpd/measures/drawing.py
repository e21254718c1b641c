"""Images drawn by a finished pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
from torch import Tensor
from transformers import CLIPTokenizer

from vpd.config.schema import MeasuresSpec
from vpd.pretraining.clip import WORD_END
from vpd.pretraining.loop import seed_of, turn_off_library_bars
from vpd.utils.errors import UserError
from vpd.utils.files import read_json
from vpd.utils.progress import Progress

BATCH = 32  # images drawn at a time; another number would change their last bits


def load_pipeline(folder: Path, device: torch.device) -> StableDiffusionPipeline:
    """Load the pipeline in ``folder`` without progress bars of its own."""
    turn_off_library_bars()
    pipeline = StableDiffusionPipeline.from_pretrained(folder).to(device)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def image_size(folder: Path) -> tuple[int, int]:
    """Height and width in pixels that the pipeline in ``folder`` draws."""
    vae, unet = (read_json(folder / part / "config.json") for part in ("vae", "unet"))
    side = unet["sample_size"] * 2 ** (len(vae["block_out_channels"]) - 1)
    return side, side


def check_prompts(prompts: Sequence[str], folder: Path, where: str) -> None:
    """Check that the pipeline in ``folder`` reads every word; UserError with ``where`` the prompts are if it does not."""
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    vocabulary, parts = tokenizer.get_vocab(), tokenizer.backend_tokenizer
    most = tokenizer.model_max_length - 2  # beside [BOS] and [EOS]
    for prompt in prompts:
        text = parts.normalizer.normalize_str(prompt)
        words = parts.pre_tokenizer.pre_tokenize_str(text)
        if not words:
            raise UserError(f"{where} has an empty prompt; say what to draw, such as 'a photo of a kitchen'")
        # A word that captions showed often is a token by itself.
        unknown = dict.fromkeys(text[slice(*place)] for word, place in words if word + WORD_END not in vocabulary)
        if unknown:
            lacking = f"'{prompt}' has words that the vocabulary of {folder} lacks ({', '.join(unknown)})"
            raise UserError(f"{where}: {lacking}; use words of the captions that it was trained on")
        if len(words) > most:
            raise UserError(f"{where}: '{prompt}' has {len(words)} words, but {folder} reads {most}; shorten it")


def draw(folder: Path, prompts: Sequence[str], spec: MeasuresSpec, device: torch.device, label: str) -> Tensor:
    """Draw an image (N,3,H,W) uint8 for every prompt with the pipeline in ``folder``; ``label`` names the progress.

    Prompt i starts from the same noise in every pipeline, so that checkpoints can be compared.
    """
    pipeline = load_pipeline(folder, device)
    # DPM-Solver++ (Lu et al. 2022) needs half of DDIM's steps for the same images.
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    seed, parts = seed_of(spec.seed, "samples"), list[Tensor]()
    options = {"num_inference_steps": spec.sample_steps, "guidance_scale": spec.guidance, "output_type": "pt"}
    with Progress(len(prompts), label, "images") as progress:
        for start in range(0, len(prompts), BATCH):
            texts = list(prompts[start : start + BATCH])
            # CPU generators give the same noise on every device.
            generators = [torch.Generator().manual_seed(seed + start + index) for index in range(len(texts))]
            images = pipeline(texts, generator=generators, **options).images
            parts.append((images.cpu() * 255).round().to(torch.uint8))
            progress.advance(len(texts))
    return torch.cat(parts)
