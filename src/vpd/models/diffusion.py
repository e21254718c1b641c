"""The diffusion backbone: a frozen VAE encoder, a U-Net walked block by block for its features, and what all families share."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, PixArtTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from vpd.config.schema import AttentionSpec
from vpd.models.attention import Recorder, set_processors
from vpd.models.base import LatentCache, Size
from vpd.utils.errors import UserError
from vpd.utils.tensors import load_folder

CONDITIONS = ("class_embed_type", "num_class_embeds", "encoder_hid_dim_type", "addition_embed_type")
"""Settings of U-Nets that are told more than tokens."""
SDXL = ("addition_embed_type", "text_time")  # the only one known here
TRANSFORMER = "transformer"  # the part of a pipeline that stands where others have a U-Net
JOINT = "joint_attention_dim"  # width of tokens, a setting that only SD3's transformer has
SIZES = 6
"""Numbers that SDXL is told of an image: height and width at first, the crop's top and left, height and width now."""


class FrozenEncoder(nn.Module):
    """The VAE's encoder without its decoder, never trained.

    ``scale`` is the factor of the latents, 1.0 in the released code where Stable Diffusion has 0.18215; ``posterior`` says
    whether the latent is the posterior's ``mode`` or a ``sample`` (S2). A VAE's own shift comes off first (U8).
    """

    def __init__(self, vae: Any, scale: float, posterior: str = "mode") -> None:
        super().__init__()
        self.encoder, self.quant_conv, self.scale, self.posterior = vae.encoder, vae.quant_conv, scale, posterior
        self.shift = vae.config.shift_factor
        self.factor = 2 ** (len(vae.config.block_out_channels) - 1)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> FrozenEncoder:
        """Stay in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor, keys: list[str] | None = None, cache: LatentCache | None = None) -> Tensor:
        """Encode images (batch, 3, H, W) in [-1, 1] to latents (batch, channels, H / factor, W / factor).

        Images with ``keys`` always look the same: they are encoded one at a time and stored in ``cache``; samples never are.
        """
        if keys is None or cache is None or self.posterior == "sample":
            return self._encode(images)
        form = tuple(images.shape[-2:]), images.dtype  # the network may be moved to another precision
        latents = [
            cache.get((key, form), partial(self._encode, image[None])) for key, image in zip(keys, images, strict=True)
        ]
        return torch.cat([latent.to(images.device) for latent in latents])

    def _encode(self, images: Tensor) -> Tensor:
        moments = self.encoder(images) if self.quant_conv is None else self.quant_conv(self.encoder(images))
        sampled = self.posterior == "sample"
        latents = DiagonalGaussianDistribution(moments).sample() if sampled else moments.chunk(2, dim=1)[0]
        return shifted(latents, self.shift) * self.scale


def shifted(latents: Tensor, shift: float | None) -> Tensor:
    """Take a VAE's own shift, if it has one, off latents (U8)."""
    return latents - shift if shift else latents


class FeatureUNet(nn.Module):
    """The U-Net of Stable Diffusion 1, 2 or XL without its output layer; parameter names are those of diffusers.

    ``channels`` are the levels' widths, fine to coarse, and ``strides`` their latent pixels per pixel; ``recorded`` the levels
    with attention maps, which ``spec`` selects.
    UserError if it needs more than tokens and, as SDXL's, a projected text and sizes.
    """

    def __init__(self, unet: Any, spec: AttentionSpec, gradient_checkpointing: bool = False) -> None:
        super().__init__()
        projection_width(unet.config)
        self.recorded = set_processors(unet, spec)
        self.gradient_checkpointing = gradient_checkpointing
        if gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        self.conv_in, self.time_proj, self.time_embedding = unet.conv_in, unet.time_proj, unet.time_embedding
        self.add_time_proj: Any = getattr(unet, "add_time_proj", None)
        self.add_embedding: Any = getattr(unet, "add_embedding", None)
        self.down_blocks, self.mid_block, self.up_blocks = unet.down_blocks, unet.mid_block, unet.up_blocks
        self.channels = list(unet.config.block_out_channels)
        self.strides = [2**level for level in range(len(self.channels))]
        self.context_width = unet.config.cross_attention_dim

    def forward(
        self,
        latents: Tensor,
        timestep: int,
        context: Tensor,
        projected: Tensor | None = None,
        size: Size | None = None,
    ) -> tuple[list[Tensor], list[Tensor | None]]:
        """Run one denoising step on latents (batch, 4, h, w) without noise (S1, U1) and text tokens (batch, tokens, width).

        SDXL is also told the ``projected`` text (batch, width) and the images' ``size`` in pixels (U2, U3).

        Returns per level, fine to coarse, a feature map (batch, channels, h, w) and recorded attention (batch, tokens, h, w)
        or None. The feature of a level is the output of the last but one block, before the last block and the upsampler; at
        the finest level that of the last (S4).
        """
        recorder = Recorder()
        text = {"encoder_hidden_states": context, "cross_attention_kwargs": {"recorder": recorder}}
        steps = torch.full((len(latents),), timestep, device=latents.device)
        time = self.time_embedding(self.time_proj(steps).to(latents.dtype))
        if self.add_embedding is not None:
            if projected is None or size is None:
                raise UserError(
                    "SDXL's U-Net needs a projected text and sizes, which nothing gives here; use Stable Diffusion 1 or 2"
                )
            time = time + self._embed(projected, size)
        hidden = self.conv_in(latents)
        skips = [hidden]
        for block in self.down_blocks:
            hidden, outputs = block(hidden, time, **(text if _attends(block) else {}))
            skips += outputs
        hidden = self.mid_block(hidden, time, **text)
        maps: list[Tensor] = []
        for block in self.up_blocks:
            hidden, feature = self._up(block, hidden, skips, time, text)
            maps.insert(0, feature)
        return maps, recorder.collect([feature.shape[-2:] for feature in maps])

    def _embed(self, projected: Tensor, size: Size) -> Tensor:
        """Embed a projected text, and an image that was never resized and is cropped at its corner (U3)."""
        sizes = torch.tensor([*size, 0, 0, *size], device=projected.device).repeat(len(projected))
        embedded = self.add_time_proj(sizes).to(projected).reshape(len(projected), -1)
        return self.add_embedding(torch.cat([projected, embedded], dim=1))

    def _up(self, block: Any, hidden: Tensor, skips: list[Tensor], time: Tensor, text: dict) -> tuple[Tensor, Tensor]:
        """Run one level, using up its ``skips``; return the input of the next level and this level's feature."""
        attentions = block.attentions if _attends(block) else [None] * len(block.resnets)
        outputs = []
        for resnet, attention in zip(block.resnets, attentions, strict=True):
            hidden = self._residual(resnet, torch.cat([hidden, skips.pop()], dim=1), time)
            if attention is not None:
                hidden = attention(hidden, **text, return_dict=False)[0]
            outputs.append(hidden)
        if block.upsamplers is None:
            return hidden, hidden
        # The next skip's size: twice this level's, or one pixel less where an odd size was halved.
        return block.upsamplers[0](hidden, skips[-1].shape[-2:]), outputs[-2]

    def _residual(self, resnet: nn.Module, hidden: Tensor, time: Tensor) -> Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return recompute(resnet, hidden, time, use_reentrant=False)
        return resnet(hidden, time)


def _attends(block: nn.Module) -> bool:
    return getattr(block, "has_cross_attention", False)


def projection_width(config: Mapping[str, Any]) -> int:
    """Return the width of the projected text that a network is told, 0 if it is told tokens alone; UserError if more."""
    if JOINT in config:
        return config["pooled_projection_dim"]
    needed = [name for name in CONDITIONS if config.get(name)]
    if needed and (needed[0], config[needed[0]]) != SDXL:
        name = needed[0]
        raise UserError(f"the U-Net needs more than a text ({name}={config[name]}); use Stable Diffusion 1, 2 or XL")
    return config["projection_class_embeddings_input_dim"] - SIZES * config["addition_time_embed_dim"] if needed else 0


def token_width(config: Mapping[str, Any]) -> int:
    """Return the width of the text tokens that a network takes: SD3's, PixArt's before their projection, or a U-Net's."""
    return config.get(JOINT) or config.get("caption_channels") or config["cross_attention_dim"]


def check_texts(where: object, config: Mapping[str, Any], width: int, projected: int) -> None:
    """UserError, which names ``where``, if a network takes tokens, or projected texts (0: none), of another width."""
    wanted = {"tokens": token_width(config), "projections": projection_width(config)}
    network = "U-Net" if "block_out_channels" in config else "transformer"
    for kind, own in (("tokens", width), ("projections", projected)):
        if own != wanted[kind]:
            raise UserError(
                f"{where}: the text encoder makes {kind} {own} wide, but the {network} takes {wanted[kind]}; use parts of one "
                "pipeline"
            )


def load_vae(checkpoint: Path) -> Any:
    """Load the VAE of a diffusers pipeline folder in single precision."""
    folder = component(checkpoint, "vae")
    with load_folder(folder):
        return AutoencoderKL.from_pretrained(folder, local_files_only=True).float()


def load_denoiser(checkpoint: Path, weights: str) -> Any:
    """Load the U-Net or transformer of a diffusers pipeline folder in single precision; ``random``: with fresh weights."""
    folder = component(checkpoint, denoiser_part(checkpoint))
    with load_folder(folder):
        config = UNet2DConditionModel.load_config(folder, local_files_only=True)
        network = network_class(config)
        if weights == "random":
            return network.from_config(config)
        return network.from_pretrained(folder, local_files_only=True).float()


def denoiser_part(checkpoint: Path) -> str:
    """Return which part of a pipeline folder features come from, ``transformer`` or ``unet``."""
    return TRANSFORMER if (Path(checkpoint) / TRANSFORMER).is_dir() else "unet"


def network_class(config: Mapping[str, Any]) -> Any:
    """Return diffusers' class of the U-Net or transformer that a configuration describes."""
    if JOINT in config:
        return SD3Transformer2DModel
    return PixArtTransformer2DModel if config.get("norm_type") == "ada_norm_single" else UNet2DConditionModel


def component(checkpoint: Path, name: str) -> Path:
    """Return the folder of one part of a pipeline; UserError if it does not exist."""
    folder = Path(checkpoint) / name
    if not folder.is_dir():
        raise UserError(f"{checkpoint} has no folder {name}/; make or download this Stable Diffusion checkpoint first")
    return folder
