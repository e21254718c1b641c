"""The VPD network: frozen encoder, U-Net, prompts, text adapter and decoder head."""

from __future__ import annotations

from torch import Tensor, nn

from vpd.config.schema import VPDModel
from vpd.models.diffusion import FeatureUNet, FrozenEncoder
from vpd.models.features import Features, LatentCache, join
from vpd.models.heads import grid_stride
from vpd.models.prompts import STRATEGIES, TextEncoder
from vpd.models.state import load_trained_state, trained_state
from vpd.utils.errors import UserError

LATENT_CACHE_BYTES = 1 << 30
FROZEN = ("vae.", "text.")


class VPD(nn.Module):
    """Visual perception with a pre-trained diffusion model.

    ``text`` is present only where prompts come with the images; otherwise ``class_embeddings`` (tokens, width) is.
    ``latents`` keeps the latents of batches whose images have keys; None turns that off.
    """

    def __init__(
        self,
        spec: VPDModel,
        *,
        vae: FrozenEncoder,
        unet: FeatureUNet,
        adapter: nn.Module,
        head: nn.Module,
        text: TextEncoder | None = None,
        class_embeddings: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.vae, self.unet, self.adapter, self.head, self.text = vae, unet, adapter, head, text
        self.register_buffer("class_embeddings", class_embeddings)
        self.latents: LatentCache | None = LatentCache(LATENT_CACHE_BYTES)

    def forward(self, batch: dict) -> Tensor:
        """Predict: segmentation and referring logits (batch, classes, h, w), or metres (batch, 1, H, W).

        ``batch["image"]`` (batch, 3, H, W) in [-1, 1]; ``text`` or ``class_id`` where the prompts need them; ``key``
        names images that are never augmented.
        """
        return self.head(self.features(batch), batch["image"].shape[-2:])

    def features(self, batch: dict) -> Features:
        """Features of a batch, fine to coarse, attention maps included."""
        latents = self.vae(self._place(batch["image"]), batch.get("key"), self.latents)
        maps, attention = self.unet(latents, self.spec.timestep, self.context(batch))
        return join(maps, [self.vae.factor * 2**level for level in range(len(maps))], attention)

    def context(self, batch: dict) -> Tensor:
        """Adapted text tokens (batch, tokens, width)."""
        return self.adapter(STRATEGIES[self.spec.prompt.strategy](self, batch))

    def _place(self, images: Tensor) -> Tensor:
        """Put images top-left on the zero canvas (D10)."""
        canvas, size = self.spec.canvas, tuple(images.shape[-2:])
        if canvas is None or size == (canvas, canvas):
            return images
        smaller = canvas - grid_stride(self.vae.factor)
        if not set(size) <= {canvas, smaller}:
            raise UserError(
                f"an image of {size[0]}x{size[1]} pixels does not fit model.canvas={canvas}: "
                f"sides must be {smaller} or {canvas}; change the crop, the window or the canvas"
            )
        placed = images.new_zeros(*images.shape[:2], canvas, canvas)
        placed[:, :, : size[0], : size[1]] = images
        return placed

    def trained_state(self) -> dict[str, Tensor]:
        """Copies of all tensors but those of the frozen encoders, contiguous and in main memory."""
        return trained_state(self, FROZEN)

    def load_trained_state(self, state: dict[str, Tensor]) -> None:
        """Load what ``trained_state`` gave; UserError if any tensor is missing, unexpected or of another shape."""
        load_trained_state(self, state, FROZEN)
