"""VPD's features of any Stable Diffusion or PixArt: maps of one or more scales, and where each word looks."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn
from torch.nn import functional as F

from vpd.config.schema import AttentionSpec, PromptSpec, TransformerSpec
from vpd.datasets.pictures import Pictures, as_batch
from vpd.models.base import Features
from vpd.models.diffusion import TRANSFORMER, check_texts, load_denoiser, load_vae, shifted, token_width
from vpd.models.prompts import encode_prompts, project_prompts
from vpd.models.text import TextEncoder, build_text_encoder, load_text_encoder
from vpd.models.transformer import check_design, feature_network
from vpd.utils.errors import UserError, nearest
from vpd.utils.validation import checked


@dataclass(frozen=True)
class DiffusionFeatures(Features):
    """What the network computes for a batch of images; ``attention`` is apart from ``maps``."""

    words: list[list[str]]
    """For each image the word or class that each token belongs to; empty for tokens that are no words."""
    size: tuple[int, int]
    """Height and width of the images."""

    def attention_of(self, word: str, size: tuple[int, int] | None = None) -> Tensor:
        """Return where a word or class looks: the mean over its tokens and over the recorded levels.

        Args:
            word: a class, or one or more words of the text.
            size: height and width of the result, by default that of the images.

        Returns:
            (batch, H, W), non-negative; at each pixel the shares of all tokens sum to one.

        Raises:
            UserError: the text has no such word, or no maps were recorded.
        """
        levels = [maps for maps in self.attention if maps is not None]
        if not levels:
            raise UserError("no attention was recorded; give a text or classes, and places")
        tokens = torch.stack([self._share(word, words) for words in self.words]).to(levels[0])
        maps = [torch.einsum("bthw,bt->bhw", level, tokens) for level in levels]
        size = size or self.size
        resized = [F.interpolate(one[:, None], size, mode="bilinear", align_corners=False)[:, 0] for one in maps]
        return torch.stack(resized).mean(dim=0)

    def _share(self, word: str, words: list[str]) -> Tensor:
        wanted = {word} if word in words else set(word.lower().split())
        if not wanted <= set(words) or not wanted:
            known = dict.fromkeys(name for name in words if name)
            raise UserError(f"the text has no word '{word}'; {nearest(word, known)}")
        found = torch.tensor([name in wanted for name in words], dtype=torch.float32)
        return found / found.sum()


class FeatureExtractor(nn.Module):
    """A Stable Diffusion that gives its features instead of an image (paper, section 3.1).

    Its weights are those of the pipeline itself, not copies, and the pipeline stays as it is. U-Net and VAE are not frozen,
    so use ``torch.no_grad()`` where only the features matter; the text encoder computes without gradients. ``.to(...)`` moves
    it, and with it the weights of the pipeline, to any device and precision.

    Args:
        pipeline: a ``StableDiffusionPipeline``, ``StableDiffusionXLPipeline``, ``StableDiffusion3Pipeline`` or
            ``PixArtAlphaPipeline``, the folder of one, or the name of a repository for diffusers to download.
        timestep: step of the noise schedule that the network is told, 0 to 999; no noise is added (S1, U6).
        latent_scale: factor of the latents; 1.0 as in the released code (S2), or None for the pipeline's own.
        places: blocks of the U-Net whose cross-attention is recorded: of ``down``, ``mid`` and ``up``; empty for none. Of a
            transformer, any of them stands for the blocks that are read.
        limit: largest recorded map relative to the latents; 0.5 is the paper's A32, 1.0 its A64 (S6).
        blocks: depths at which a transformer is read: 0.5 is after half its blocks (U5). Its one map has their hidden states
            side by side.
        gradient_checkpointing: compute each block again during the backward pass instead of keeping what it computed.

    Raises:
        UserError: the pipeline is none, its parts do not fit each other, or the U-Net needs more than a text.
    """

    def __init__(
        self,
        pipeline: Any,
        *,
        timestep: int = 1,
        latent_scale: float | None = 1.0,
        places: Sequence[str] = ("down", "up"),
        limit: float = 0.5,
        blocks: Sequence[float] = (0.5,),
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        denoiser, self.vae, self.text = _parts(pipeline)
        spec = checked(AttentionSpec, {"places": places, "limit": limit, "gradient": "attached"}, "the options")
        reading = checked(TransformerSpec, {"blocks": blocks}, "the options")
        self.unet = feature_network(_with_shared_weights(denoiser), spec, reading, gradient_checkpointing)
        check_texts("the pipeline", denoiser.config, self.text.width, self.text.projection_width)
        if not 0 <= timestep < 1000:
            raise UserError(f"timestep is {timestep}; give 0 to 999")
        self.timestep = timestep
        self.latent_scale = self.vae.config.scaling_factor if latent_scale is None else latent_scale
        factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        self.strides = [factor * stride for stride in self.unet.strides]

    def forward(
        self, images: Pictures, texts: str | Sequence[str] | None = None, *, classes: Sequence[str] | None = None
    ) -> DiffusionFeatures:
        """Compute the features of images of one size.

        Args:
            images: one or several: paths, Pillow images, arrays or tensors (``vpd.datasets.pictures``). Floating-point
                tensors, from 0 to 1, get gradients.
            texts: a sentence for all images, or one for each; the U-Net attends to all its tokens (R4). A warning says so if
                one is too long to be seen whole.
            classes: names instead of sentences; the U-Net attends to one token for each (G3), as in segmentation.

        Returns:
            Maps (batch, channels, h, w) and recorded attention (batch, tokens, h, w) per level, fine to coarse.

        Raises:
            UserError: images or texts are not as described.
        """
        weight = next(self.unet.parameters())
        pixels = as_batch(images).to(weight)
        mode = self.vae.encode(pixels).latent_dist.mode()
        latents = shifted(mode, self.vae.config.shift_factor) * self.latent_scale
        context, projected, words = self._context(texts, classes, len(pixels))
        size = (pixels.shape[-2], pixels.shape[-1])
        projected = None if projected is None else projected.to(weight)
        maps, attention = self.unet(latents, self.timestep, context.to(weight), projected, size)
        told = texts is not None or classes is not None
        recorded = attention if told else [None] * len(maps)
        return DiffusionFeatures(maps, self.strides, recorded, words, size)

    def _context(
        self, texts: str | Sequence[str] | None, classes: Sequence[str] | None, count: int
    ) -> tuple[Tensor, Tensor | None, list[list[str]]]:
        """Return the tokens that each image attends to (batch, tokens, width), its projected text, and the tokens' words."""
        if texts is not None and classes is not None:
            raise UserError("both texts and classes are given; give one")
        if isinstance(classes, str):
            raise UserError(f"classes are the text '{classes}'; give a list of names, such as ['{classes}']")
        if classes is not None:
            settings = {"strategy": "class-names", "templates": "single", "length": self.text.length}
            spec, names = PromptSpec.model_validate(settings), list(classes)
            projections = project_prompts(spec, self.text, names)
            mean = None if projections is None else projections.mean(0).expand(count, -1)
            return encode_prompts(spec, self.text, names).expand(count, -1, -1), mean, [names] * count
        sentences = [texts or ""] * count if texts is None or isinstance(texts, str) else list(texts)
        if len(sentences) != count:
            raise UserError(f"there are {len(sentences)} texts for {count} images; give one, or one for each")
        for said in filter(None, map(self.text.unseen, dict.fromkeys(sentences))):
            warnings.warn(said, stacklevel=2)
        words = [self.text.words(sentence) for sentence in sentences]
        return self.text(sentences), self.text.projected(sentences), words


def _parts(pipeline: Any) -> tuple[Any, Any, TextEncoder]:
    """Return U-Net or transformer, VAE and text encoder of a pipeline, a folder, or a repository."""
    if isinstance(pipeline, str | Path) and Path(pipeline).is_dir():
        folder = Path(pipeline)
        return load_denoiser(folder, "pretrained"), load_vae(folder), load_text_encoder(folder)
    if isinstance(pipeline, Path):
        raise UserError(f"{pipeline} does not exist; name the folder of a pipeline")
    if isinstance(pipeline, str):
        try:
            pipeline = DiffusionPipeline.from_pretrained(pipeline, use_safetensors=True)  # never a pickle
        except (OSError, ValueError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise UserError(
                f"{pipeline} is no folder, and diffusers cannot load it as a repository ({reason}); check the name"
            ) from None
    try:
        denoiser = pipeline.transformer if hasattr(pipeline, TRANSFORMER) else pipeline.unet
        check_design(denoiser)
        width = token_width(denoiser.config) if hasattr(pipeline, TRANSFORMER) else None
        found = [(pipeline.tokenizer, pipeline.text_encoder)] + [
            (getattr(pipeline, f"tokenizer_{number}"), model)
            for number in (2, 3)
            if (model := getattr(pipeline, f"text_encoder_{number}", None)) is not None
        ]
        return denoiser, pipeline.vae, build_text_encoder(found, width)
    except AttributeError as error:
        raise UserError(f"this {type(pipeline).__name__} is no Stable Diffusion pipeline ({error})") from None


def _with_shared_weights(denoiser: Any) -> Any:
    """Copy the modules of a network around the same weights: its attention layers get processors of our own."""
    shared = {id(tensor): tensor for tensor in (*denoiser.parameters(), *denoiser.buffers())}
    return copy.deepcopy(denoiser, shared)
