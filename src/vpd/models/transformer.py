"""Diffusion transformers as backbones: PixArt and Stable Diffusion 3, run block by block up to the last one that is read."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import PixArtTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel
from diffusers.models.normalization import AdaLayerNormZero
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from vpd.config.schema import AttentionSpec, TransformerSpec
from vpd.models.attention import CrossAttention, JointAttention, Recorder, SelfAttention
from vpd.models.base import Size
from vpd.models.diffusion import FeatureUNet, token_width
from vpd.utils.errors import UserError

MASKED = -10000.0  # added to the scores of padding, as in diffusers


class FeatureTransformer(nn.Module):
    """The blocks of a diffusion transformer that ``reading`` needs, and no others; parameter names are those of diffusers.

    It has one level: ``channels`` is the width of all hidden states that are read, ``strides`` the side of a patch in latent
    pixels, ``recorded`` the level if it has attention maps. UserError if ``spec`` asks for smaller maps than there are.
    """

    def __init__(
        self, model: Any, spec: AttentionSpec, reading: TransformerSpec, gradient_checkpointing: bool = False
    ) -> None:
        super().__init__()
        count, self.patch = len(model.transformer_blocks), model.config.patch_size
        self.read = sorted({math.ceil(depth * count) - 1 for depth in reading.blocks})
        if spec.places and 1 / self.patch > spec.limit:
            raise UserError(
                f"model.attention records no map: a transformer's have 1/{self.patch} of the latent side, more than "
                f"limit={spec.limit}; raise the limit or remove all places"
            )
        self.recorded = [0] if spec.places else []
        self.gradient_checkpointing = gradient_checkpointing
        self.context_width = token_width(model.config)
        self.channels, self.strides = [len(self.read) * model.inner_dim], [self.patch]
        self.pos_embed, self.transformer_blocks = model.pos_embed, model.transformer_blocks[: self.read[-1] + 1]
        for number, block in enumerate(self.transformer_blocks):
            level = 0 if spec.places and number in self.read else None
            self._set_processors(block, level, spec.gradient == "detached")

    def forward(
        self,
        latents: Tensor,
        timestep: int,
        context: Tensor,
        projected: Tensor | None = None,
        size: Size | None = None,
    ) -> tuple[list[Tensor], list[Tensor | None]]:
        """Run one step on latents (batch, channels, h, w) without noise (U6) and text tokens (batch, tokens, width).

        Latents that are no whole number of patches are continued by their last row and column. ``projected`` is what the
        text encoder tells besides tokens (U7), ``size`` that of the images in pixels.

        Returns the hidden states behind the blocks that are read, side by side (batch, channels, rows, columns), and the mean
        of these blocks' recorded attention (batch, tokens, rows, columns) or None, each in a list.
        """
        recorder = Recorder()
        latents = F.pad(latents, (0, -latents.shape[-1] % self.patch, 0, -latents.shape[-2] % self.patch), "replicate")
        grid = torch.Size(side // self.patch for side in latents.shape[-2:])
        steps = torch.full((len(latents),), timestep, device=latents.device)
        hidden, states = self._embed(latents), []
        condition, context = self._condition(steps, context, projected, size, hidden)
        for number, block in enumerate(self.transformer_blocks):
            arguments = block, hidden, context, condition, recorder
            if self.gradient_checkpointing and torch.is_grad_enabled():
                hidden, context = recompute(self._run, *arguments, use_reentrant=False)
            else:
                hidden, context = self._run(*arguments)
            if number in self.read:
                states.append(hidden.transpose(1, 2).unflatten(2, grid))
        return [torch.cat(states, dim=1)], recorder.collect([grid])

    def _embed(self, latents: Tensor) -> Tensor:
        return self.pos_embed(latents).contiguous()

    def _set_processors(self, block: Any, level: int | None, detached: bool) -> None:
        raise NotImplementedError

    def _condition(
        self, steps: Tensor, context: Tensor, projected: Tensor | None, size: Size | None, hidden: Tensor
    ) -> tuple[Any, Tensor]:
        """Return what all blocks are told, and the projected context."""
        raise NotImplementedError

    def _run(
        self, block: Any, hidden: Tensor, context: Tensor, condition: Any, recorder: Recorder
    ) -> tuple[Tensor, Any]:
        """Run one block; return hidden states and context."""
        raise NotImplementedError


class FeaturePixArt(FeatureTransformer):
    """PixArt: blocks of self-attention and cross-attention to T5's tokens; ``projected`` is the mask (batch, tokens) of words."""

    def __init__(self, model: Any, *settings: Any) -> None:
        super().__init__(model, *settings)
        self.adaln_single, self.caption_projection = model.adaln_single, model.caption_projection

    def _set_processors(self, block: Any, level: int | None, detached: bool) -> None:
        block.attn1.set_processor(SelfAttention())
        block.attn2.set_processor(CrossAttention(level, detached))

    def _condition(
        self, steps: Tensor, context: Tensor, projected: Tensor | None, size: Size | None, hidden: Tensor
    ) -> tuple[Any, Tensor]:
        added = None
        if self.adaln_single.emb.use_additional_conditions and size is not None:
            added = {
                "resolution": hidden.new_tensor(size).repeat(len(hidden), 1),
                "aspect_ratio": hidden.new_tensor([size[0] / size[1]]).repeat(len(hidden), 1),
            }
        time, _ = self.adaln_single(steps, added, batch_size=len(hidden), hidden_dtype=hidden.dtype)
        mask = None if projected is None else ((1 - projected) * MASKED)[:, None, None]
        return (time, mask), self.caption_projection(context)

    def _run(
        self, block: Any, hidden: Tensor, context: Tensor, condition: Any, recorder: Recorder
    ) -> tuple[Tensor, Any]:
        time, mask = condition
        text = {"encoder_hidden_states": context, "encoder_attention_mask": mask, "timestep": time}
        return block(hidden, **text, cross_attention_kwargs={"recorder": recorder}), context


class FeatureSD3(FeatureTransformer):
    """Stable Diffusion 3: image and text attend to both and change both; ``projected`` is the pooled text (batch, width)."""

    def __init__(self, model: Any, *settings: Any) -> None:
        super().__init__(model, *settings)
        self.time_text_embed, self.context_embedder = model.time_text_embed, model.context_embedder
        if not (last := self.transformer_blocks[-1]).context_pre_only:
            _end_context(last)

    def _set_processors(self, block: Any, level: int | None, detached: bool) -> None:
        for attention in filter(None, (block.attn, block.attn2)):
            attention.set_processor(JointAttention(level, detached))

    def _embed(self, latents: Tensor) -> Tensor:
        limit = self.pos_embed.pos_embed_max_size * self.patch
        if max(latents.shape[-2:]) > limit:
            size = "x".join(str(side) for side in latents.shape[-2:])
            raise UserError(
                f"the transformer knows positions of {limit}x{limit} latents, found {size}; use smaller images"
            )
        return super()._embed(latents)

    def _condition(
        self, steps: Tensor, context: Tensor, projected: Tensor | None, size: Size | None, hidden: Tensor
    ) -> tuple[Any, Tensor]:
        return self.time_text_embed(steps, projected), self.context_embedder(context)

    def _run(
        self, block: Any, hidden: Tensor, context: Tensor, condition: Any, recorder: Recorder
    ) -> tuple[Tensor, Any]:
        context, hidden = block(hidden, context, condition, joint_attention_kwargs={"recorder": recorder})
        return hidden, context


class _NormAlone(AdaLayerNormZero):
    """The norm without the gates of what follows it."""

    def forward(self, x: Tensor, emb: Tensor) -> Any:
        return super().forward(x, emb=emb)[0]


def _end_context(block: Any) -> None:
    """Make a block of joint attention the last one: its text is attended to, but what it becomes is not computed."""
    block.context_pre_only = block.attn.context_pre_only = True
    block.norm1_context.__class__ = _NormAlone  # the same weights under the same names
    block.attn.to_add_out = block.norm2_context = block.ff_context = None


def feature_network(
    denoiser: Any, spec: AttentionSpec, reading: TransformerSpec, gradient_checkpointing: bool = False
) -> FeatureUNet | FeatureTransformer:
    """Wrap diffusers' U-Net or transformer for its features; UserError if it is of another design."""
    check_design(denoiser)
    if isinstance(denoiser, UNet2DConditionModel):
        return FeatureUNet(denoiser, spec, gradient_checkpointing)
    network = FeaturePixArt if isinstance(denoiser, PixArtTransformer2DModel) else FeatureSD3
    return network(denoiser, spec, reading, gradient_checkpointing)


def check_design(denoiser: Any) -> None:
    """UserError unless features of this network are known."""
    if not isinstance(denoiser, UNet2DConditionModel | PixArtTransformer2DModel | SD3Transformer2DModel):
        name = type(denoiser).__name__
        raise UserError(f"a {name} gives no features here; use Stable Diffusion 1, 2, XL or 3, or PixArt")
