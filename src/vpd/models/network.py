"""The VPD network: frozen encoder, U-Net or transformer, prompts, text adapter and decoder head (paper, section 3)."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vpd.config.schema import Spec, VPDModel
from vpd.models.base import Batch, Features, LatentCache, Network, own_stream
from vpd.models.diffusion import FrozenEncoder, check_texts, load_denoiser, load_vae
from vpd.models.heads import build_head, grid_stride
from vpd.models.necks import SimplePyramid
from vpd.models.prompts import (
    FROM_IMAGES,
    TextAdapter,
    context_of,
    encode_prompts,
    project_prompts,
    projection_of,
    token_count,
)
from vpd.models.text import load_text_encoder
from vpd.models.transformer import FeatureTransformer, feature_network
from vpd.utils.errors import UserError

LATENT_CACHE_BYTES = 1 << 30


class VPD(Network):
    """Visual perception with a pre-trained diffusion model, made of diffusers' networks on any device, ``meta`` included.

    ``unet`` is its U-Net or transformer, whose one level goes through a ``neck``. It has a ``text`` encoder where prompts come
    with the images, or else ``class_embeddings`` (tokens, width) and what they are told besides, ``class_projections``
    (prompts, width). UserError if the canvas does not fit the head or its grid, or the head the levels.
    """

    frozen = ("vae.", "text.")
    class_embeddings: Tensor | None
    class_projections: Tensor | None

    def __init__(
        self,
        spec: Spec,
        unet: Any,
        vae: Any,
        classes: int,
        *,
        text: nn.Module | None = None,
        class_embeddings: Tensor | None = None,
        class_projections: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.spec = model = vpd_model(spec)
        self.vae = FrozenEncoder(vae, model.latent_scale, model.posterior)
        self.unet = feature_network(unet, model.attention, model.transformer, spec.training.gradient_checkpointing)
        grid = grid_stride(self.vae.factor)
        if model.canvas is not None and model.head.kind != "depth-decoder":
            raise UserError(f"model.canvas={model.canvas} works only with head 'depth-decoder'; set it to null")
        if model.canvas is not None and model.canvas % grid:
            raise UserError(
                f"model.canvas={model.canvas} is no multiple of the depth decoder's grid of {grid} pixels; change it"
            )
        with own_stream():  # so that the head starts from the same weights with and without an adapter
            enabled = model.adapter.enabled
            self.adapter = TextAdapter(self.unet.context_width, model.adapter) if enabled else nn.Identity()
        tokens = token_count(model.prompt.strategy, classes, text, class_embeddings)
        channels = [c + tokens * (level in self.unet.recorded) for level, c in enumerate(self.unet.channels)]
        self.strides, self.neck = [self.vae.factor * stride for stride in self.unet.strides], None
        if isinstance(self.unet, FeatureTransformer):
            self.neck = SimplePyramid(channels[0], self.strides[0], model.transformer.pyramid_channels)
            channels, self.strides = self.neck.channels, self.neck.strides
        self.head, self.text = build_head(spec, channels, self.strides, classes), text
        self.register_buffer("class_embeddings", class_embeddings)
        self.register_buffer("class_projections", class_projections)
        self.latents = LatentCache(LATENT_CACHE_BYTES)

    def features(self, batch: Batch) -> Features:
        """Compute the features of a batch, fine to coarse, with recorded attention behind the network's own channels."""
        images = self._on_canvas(batch["image"])
        latents = self.vae(images, batch.get("key"), self.latents)
        projected = projection_of(self.spec.prompt.strategy, batch, self.text, self.class_projections)
        size = (images.shape[-2], images.shape[-1])
        maps, attention = self.unet(latents, self.spec.timestep, self.context(batch), projected, size)
        joined = [
            x if tokens is None else torch.cat([x, tokens.to(x.dtype)], dim=1)
            for x, tokens in zip(maps, attention, strict=True)
        ]
        if self.neck is not None:
            return Features(self.neck(joined, size), self.strides, [None] * len(self.strides))
        return Features(joined, self.strides, attention)

    def context(self, batch: Batch) -> Tensor:
        """Return the adapted text tokens (batch, tokens, width)."""
        return self.adapter(context_of(self.spec.prompt.strategy, batch, self.text, self.class_embeddings))

    def _on_canvas(self, images: Tensor) -> Tensor:
        """Put images top-left on the zero canvas (D10)."""
        canvas, (height, width) = self.spec.canvas, images.shape[-2:]
        if canvas is None or (height, width) == (canvas, canvas):
            return images
        smaller = canvas - grid_stride(self.vae.factor)
        if not {height, width} <= {canvas, smaller}:
            raise UserError(
                f"an image of {height}x{width} pixels does not fit model.canvas={canvas}: "
                f"sides must be {smaller} or {canvas}; change the crop, the window or the canvas"
            )
        placed = images.new_zeros(*images.shape[:2], canvas, canvas)
        placed[:, :, :height, :width] = images
        return placed


def build_vpd(spec: Spec, checkpoint: Path, classes: list[str]) -> VPD:
    """Build VPD from a diffusers pipeline folder; UserError if its parts are missing, or do not fit each other or the spec."""
    # Restoring the random state gives every checkpoint, and the random U-Net, the same initial adapter and head.
    prompt = vpd_model(spec).prompt
    with torch.random.fork_rng(devices=[]):
        unet, vae = load_denoiser(checkpoint, vpd_model(spec).unet), load_vae(checkpoint)
        text = load_text_encoder(checkpoint, prompt.length)
        check_texts(checkpoint, unet.config, text.width, text.projection_width)
        if prompt.strategy in FROM_IMAGES:
            given: dict[str, Any] = {"text": text}
        else:
            given = {
                f"class_{kind}": encode(prompt, text, classes)
                for kind, encode in (("embeddings", encode_prompts), ("projections", project_prompts))
            }
    return VPD(spec, unet, vae, len(classes), **given)


def vpd_model(spec: Spec) -> VPDModel:
    """Return the model settings of a spec of VPD."""
    assert isinstance(spec.model, VPDModel)
    return spec.model
