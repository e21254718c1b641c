"""A narrow pipeline with random weights of each family of Stable Diffusion, made of diffusers' own classes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from fixtures.parity.narrow import write_text_model
from vpd.pretrained.stable_diffusion import configs

LENGTH, TEXTS = 77, {"stable-diffusion-1": (32,), "stable-diffusion-2": (48,), "stable-diffusion-xl": (32, 48)}
UNETS: dict[str, dict[str, Any]] = {
    "stable-diffusion-1": {"block_out_channels": [16, 32, 64, 64], "attention_head_dim": 4},
    "stable-diffusion-2": {"block_out_channels": [16, 32, 64, 64], "attention_head_dim": [1, 2, 4, 4]},
    "stable-diffusion-xl": {
        "block_out_channels": [16, 32, 64],
        "attention_head_dim": [1, 2, 4],
        "transformer_layers_per_block": [1, 2, 3],
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 48 + 6 * 8,
    },
}
VAE = {"block_out_channels": [8, 8, 16, 16], "layers_per_block": 1, "norm_num_groups": 8}


def write_family(name: str, folder: Path) -> Path:
    """Write a pipeline that differs from the family's published configurations in its widths only."""
    torch.manual_seed(3)
    published = configs(name)
    own = {"cross_attention_dim": sum(TEXTS[name]), "norm_num_groups": 8}
    unet: Any = UNet2DConditionModel.from_config(published["unet"] | own | UNETS[name])
    vae: Any = AutoencoderKL.from_config(published["vae"] | VAE)
    parts = {"unet": unet, "vae": vae, "scheduler": DDIMScheduler.from_config(published["scheduler"])}
    for number, width in enumerate(TEXTS[name]):
        ending = f"_{number + 1}" if number else ""
        config = published[f"text_encoder{ending}"]
        tokenizer = _tokenizer(folder / "scratch", "!" if config["pad_token_id"] == 0 else None)
        sizes = {
            "hidden_size": width,
            "intermediate_size": 2 * width,
            "num_attention_heads": 4,
            "projection_dim": width,
        }
        tokens = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
        limits = {"num_hidden_layers": 3, "max_position_embeddings": LENGTH, "vocab_size": len(tokenizer)}
        text = CLIPTextModelWithProjection if number else CLIPTextModel
        parts |= {
            f"tokenizer{ending}": tokenizer,
            f"text_encoder{ending}": text(CLIPTextConfig.from_dict(config | sizes | tokens | limits)),
        }
    if "text_encoder_2" in parts:
        StableDiffusionXLPipeline(**parts).save_pretrained(folder)
    else:
        plain = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        StableDiffusionPipeline(**parts, **plain).save_pretrained(folder)
    shutil.rmtree(folder / "scratch")
    return folder


def _tokenizer(scratch: Path, padding: str | None) -> CLIPTokenizer:
    write_text_model(scratch, 8, LENGTH)
    options = {"pad_token": padding} if padding else {}
    return CLIPTokenizer.from_pretrained(scratch / "tokenizer", model_max_length=LENGTH, **options)
