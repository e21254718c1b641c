"""Names of the original Stable Diffusion files (LDM) and those of diffusers and transformers."""

from __future__ import annotations

import re

from vpd.pretrained.keymap import VAE_ATTENTION, rename

UNET, VAE, TEXT, EMA = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer.", "model_ema."
UNUSED = re.compile(
    r"betas|alphas_cumprod(_prev)?|(sqrt_|log_|posterior_).+|logvar|lvlb_weights|scale_factor|model_ema\.(decay|num_updates)"
    r"|first_stage_model\.loss\..+|.+\.embeddings\.position_ids|cond_stage_model\.(logit_scale|text_projection)"
)
"""Noise schedules, the VAE's training loss and counters: in the files, but no weights."""
DECODER_LEVELS = 4
"""The original numbers the decoder's levels from fine to coarse, diffusers from coarse to fine."""


def _level(number: str) -> int:
    return DECODER_LEVELS - 1 - int(number)


DECODER = (
    (
        r"up\.(\d)\.block\.(\d)\.nin_shortcut\.(\w+)",
        lambda i, j, x: f"up_blocks.{_level(i)}.resnets.{j}.conv_shortcut.{x}",
    ),
    (r"up\.(\d)\.block\.(\d)\.(\w+\.\w+)", lambda i, j, x: f"up_blocks.{_level(i)}.resnets.{j}.{x}"),
    (r"up\.(\d)\.upsample\.conv\.(\w+)", lambda i, x: f"up_blocks.{_level(i)}.upsamplers.0.conv.{x}"),
    (r"mid\.block_([12])\.(\w+\.\w+)", lambda i, x: f"mid_block.resnets.{int(i) - 1}.{x}"),
    (r"mid\.attn_1\.(\w+)\.(\w+)", lambda i, x: f"mid_block.attentions.0.{VAE_ATTENTION[i]}.{x}"),
    (r"norm_out\.(\w+)", lambda x: f"conv_norm_out.{x}"),
    (r"(conv_in|conv_out)\.(\w+)", lambda name, x: f"{name}.{x}"),
)
UNET_OUTPUT = {"0": "conv_norm_out", "2": "conv_out"}
"""The U-Net's last layers, which VPD and therefore ``vpd.pretrained.keymap`` does without."""


def target_of(name: str) -> str | None:
    """Name in the pipeline, after ``unet/``, ``vae/`` or ``text_encoder/``; None for what no network has.

    KeyError for an unknown name. The averaged weights (``model_ema.``) have none of their own, see ``averaged_name``.
    """
    if UNUSED.fullmatch(name):
        return None
    if name.startswith(UNET):
        return "unet/" + _unet(name.removeprefix(UNET))
    if name.startswith(VAE):
        return "vae/" + _vae(name.removeprefix(VAE))
    if name.startswith(TEXT):
        bare = name.removeprefix(TEXT)
        return "text_encoder/" + (bare if bare.startswith("text_model.") else f"text_model.{bare}")
    raise KeyError(name)


def averaged_name(name: str) -> str:
    """Where a full file keeps the moving average of the U-Net's tensor ``name``: without its dots."""
    return EMA + name.removeprefix("model.").replace(".", "")


def _unet(name: str) -> str:
    if match := re.fullmatch(r"out\.([02])\.(\w+)", name):
        return f"{UNET_OUTPUT[match[1]]}.{match[2]}"
    return (rename(f"unet.unet.diffusion_model.{name}") or "").removeprefix("unet.")


def _vae(name: str) -> str:
    if name.startswith("post_quant_conv."):
        return name
    if name.startswith("decoder."):
        return f"decoder.{_decoder(name.removeprefix('decoder.'))}"
    return (rename(f"encoder_vq.{name}") or "").removeprefix("vae.")


def _decoder(name: str) -> str:
    for pattern, target in DECODER:
        if match := re.fullmatch(pattern, name):
            return target(*match.groups())
    raise KeyError(name)
