"""A narrow pipeline with random weights of each family of diffusion models, made of diffusers' own classes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL
from transformers import CLIPTextConfig, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

from fixtures.parity.narrow import WORDS, write_text_model
from vpd.pretrained.stable_diffusion import FAMILIES, configs
from vpd.utils.files import read_json

LENGTH = 77
PIPELINES = {
    "stable-diffusion-1": "StableDiffusionPipeline",
    "stable-diffusion-2": "StableDiffusionPipeline",
    "stable-diffusion-xl": "StableDiffusionXLPipeline",
    "stable-diffusion-3": "StableDiffusion3Pipeline",
    "pixart-alpha": "PixArtAlphaPipeline",
}
T5_WIDTH = 96
TEXTS = {
    "stable-diffusion-1": (32,),
    "stable-diffusion-2": (48,),
    "stable-diffusion-xl": (32, 48),
    "stable-diffusion-3": (32, 48, T5_WIDTH),
    "pixart-alpha": (T5_WIDTH,),
}
DENOISERS: dict[str, dict[str, Any]] = {
    "stable-diffusion-1": {"block_out_channels": [16, 32, 64, 64], "attention_head_dim": 4},
    "stable-diffusion-2": {"block_out_channels": [16, 32, 64, 64], "attention_head_dim": [1, 2, 4, 4]},
    "stable-diffusion-xl": {
        "block_out_channels": [16, 32, 64],
        "attention_head_dim": [1, 2, 4],
        "transformer_layers_per_block": [1, 2, 3],
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 48 + 6 * 8,
    },
    "stable-diffusion-3": {
        "num_layers": 4,
        "num_attention_heads": 4,
        "attention_head_dim": 8,
        "caption_projection_dim": 32,
        "joint_attention_dim": T5_WIDTH,
        "pooled_projection_dim": 32 + 48,
        "sample_size": 8,
        "pos_embed_max_size": 16,
    },
    "pixart-alpha": {
        "num_layers": 4,
        "num_attention_heads": 4,
        "attention_head_dim": 12,
        "cross_attention_dim": 48,
        "caption_channels": T5_WIDTH,
        "sample_size": 8,
    },
}
VAE = {"block_out_channels": [8, 8, 16, 16], "layers_per_block": 1, "norm_num_groups": 8}


def write_family(name: str, folder: Path, t5: bool = True, **denoiser: Any) -> Path:
    """Write a pipeline that differs from the family's published configurations in its widths and depth only.

    ``t5`` is whether a third text encoder is there; ``denoiser`` replaces settings of the U-Net or transformer.
    """
    torch.manual_seed(3)
    published, family = configs(name), FAMILIES[name]
    own: dict[str, Any] = DENOISERS[name] | denoiser
    if family.denoiser == "unet":
        own = {"cross_attention_dim": sum(TEXTS[name]), "norm_num_groups": 8} | own
    parts: dict[str, Any] = {
        family.denoiser: _class(family, family.denoiser).from_config(published[family.denoiser] | own),
        "vae": AutoencoderKL.from_config(published["vae"] | VAE),
        "scheduler": getattr(diffusers, published["scheduler"]["_class_name"]).from_config(published["scheduler"]),
    }
    for number, width in enumerate(TEXTS[name]):
        ending = f"_{number + 1}" if number else ""
        config, kind = published[f"text_encoder{ending}"], _class(family, f"text_encoder{ending}")
        make = _t5 if kind is T5EncoderModel else _clip
        found = make(folder / "scratch", kind, config, width) if t5 or number < 2 else (None, None)
        parts[f"tokenizer{ending}"], parts[f"text_encoder{ending}"] = found
    plain = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    checked = PIPELINES[name] == "StableDiffusionPipeline"
    getattr(diffusers, PIPELINES[name])(**parts, **(plain if checked else {})).save_pretrained(folder)
    shutil.rmtree(folder / "scratch", ignore_errors=True)
    return folder


def _class(family: Any, part: str) -> Any:
    library, name = family.components[part]
    return getattr({"diffusers": diffusers, "transformers": transformers}[library], name)


def _clip(scratch: Path, kind: Any, config: dict[str, Any], width: int) -> tuple[Any, Any]:
    write_text_model(scratch, 8, LENGTH)
    options = {"pad_token": "!"} if config["pad_token_id"] == 0 else {}
    tokenizer = CLIPTokenizer.from_pretrained(scratch / "tokenizer", model_max_length=LENGTH, **options)
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_attention_heads": 4, "projection_dim": width}
    tokens = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
    limits = {"num_hidden_layers": 3, "max_position_embeddings": LENGTH, "vocab_size": len(tokenizer)}
    return tokenizer, kind(CLIPTextConfig.from_dict(config | sizes | tokens | limits))


def _t5(_scratch: Path, kind: Any, config: dict[str, Any], width: int) -> tuple[Any, Any]:
    letters = [chr(code) for code in range(33, 127)]
    pieces = ["<pad>", "</s>", "<unk>", "▁", *letters, *(f"▁{word}" for word in WORDS)]
    vocabulary = [(piece, -5.0 if len(piece.strip("▁")) < 2 else -1.0) for piece in pieces]
    tokenizer = T5Tokenizer(vocab=vocabulary, extra_ids=0)
    sizes = {"d_model": width, "d_ff": 2 * width, "d_kv": 8, "num_heads": 4, "num_layers": 2}
    return tokenizer, kind(T5Config.from_dict(config | sizes | {"vocab_size": len(tokenizer)}))


def read_parts(pipeline: Path) -> dict[str, dict[str, Any]]:
    """The configurations of a folder's networks, from which planning builds them."""
    folders = (path.parent for path in sorted(pipeline.glob("*/config.json")))
    return {folder.name: read_json(folder / "config.json") for folder in folders}
