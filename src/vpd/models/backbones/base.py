"""What all backbones share: normalisation, padding, masking and cropping around a library's network."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vpd.models.base import Size

Layout = Literal["NCHW", "NHWC", "NLC"]
"""Axes of a patch embedding's output: N images, C channels, H x W patches, or L patches in one row."""


class Backbone(nn.Module):
    """A library's image network without its classifier; one subclass per kind of network.

    ``channels`` and ``strides`` (in input pixels) are those of the native levels, fine to coarse; a plain transformer has one
    level. Sides of images are padded to multiples of ``multiple``. ``network`` holds all trained tensors under the library's
    own names; its part ``patches`` embeds patches of ``strides[0]`` pixels a side in ``mask_width`` channels.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        patches: nn.Module,
        layout: Layout,
        channels: list[int],
        strides: list[int],
        mean: Sequence[float],
        std: Sequence[float],
        multiple: int | None = None,
        mask_width: int | None = None,
    ) -> None:
        super().__init__()
        self.network: Any = network
        self.layout, self.channels, self.strides = layout, channels, strides
        self.patches_name = next(name for name, module in network.named_modules() if module is patches)
        self.multiple, self.mask_stride, self.mask_width = multiple or strides[0], strides[0], mask_width or channels[0]
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor, mask: Tensor | None = None, mask_token: Tensor | None = None) -> list[Tensor]:
        """Compute the native levels (batch, channels[i], ceil(H / strides[i]), ceil(W / strides[i])), fine to coarse.

        ``images`` are (batch, 3, H, W) in [-1, 1]. Where ``mask`` (batch, ceil(H / mask_stride), ceil(W / mask_stride)) is
        true, ``mask_token`` replaces the patch's embedding, as in SimMIM (Xie et al. 2022).
        """
        height, width = images.shape[-2:]
        with self._hidden(mask, mask_token):
            maps = self._maps(self.prepare(images))
        return [
            x[:, :, : -(-height // stride), : -(-width // stride)] for x, stride in zip(maps, self.strides, strict=True)
        ]

    def _maps(self, images: Tensor) -> list[Tensor]:
        """Compute the levels of normalised images whose sides are multiples of ``multiple``."""
        raise NotImplementedError

    def prepare(self, images: Tensor) -> Tensor:
        """Normalise as in pre-training, and pad with zeros (the mean colour) at the bottom and on the right."""
        images = (images * 0.5 + 0.5 - self.mean) / self.std
        bottom, right = (-side % self.multiple for side in images.shape[-2:])
        return F.pad(images, (0, right, 0, bottom)) if bottom or right else images

    def patch_grid(self, images: Tensor) -> Size:
        """Return the rows and columns of ``multiple`` pixels in padded images."""
        return images.shape[-2] // self.multiple, images.shape[-1] // self.multiple

    @contextlib.contextmanager
    def _hidden(self, mask: Tensor | None, token: Tensor | None) -> Iterator[None]:
        """Within the block, the patch embedding gives ``token`` where ``mask`` is true."""
        if mask is None or token is None:
            yield
            return
        patches = self.network.get_submodule(self.patches_name)
        handle = patches.register_forward_hook(lambda _module, _inputs, output: self._replace(output, mask, token))
        try:
            yield
        finally:
            handle.remove()

    def _replace(self, patches: Tensor, mask: Tensor, token: Tensor) -> Tensor:
        # The mask covers the image; the padding that completes the last row and column of units is never hidden.
        unit = self.multiple // self.mask_stride
        mask = F.pad(mask, (0, -mask.shape[2] % unit, 0, -mask.shape[1] % unit))
        token = token.reshape(-1).to(patches.dtype)
        if self.layout == "NCHW":
            return torch.where(mask[:, None], token[:, None, None], patches)
        return torch.where((mask.flatten(1) if self.layout == "NLC" else mask)[..., None], token, patches)


def to_map(tokens: Tensor, grid: Size) -> Tensor:
    """(batch, patches, channels) -> (batch, channels, h, w)."""
    return tokens.transpose(1, 2).unflatten(2, grid).contiguous()
