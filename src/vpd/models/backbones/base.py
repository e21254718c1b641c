"""What all backbones share: normalisation, padding, masking and cropping around a library's network."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Layout = Literal["NCHW", "NHWC", "NLC"]
"""Axes of a patch embedding's output: N images, C channels, H x W patches, or L patches in one row."""


class Backbone(nn.Module):
    """A library's image network without its classifier, and its maps fine to coarse; one subclass per family.

    ``network`` holds all trained tensors under the library's own names. ``channels`` and ``strides`` are those of the
    native levels; a plain transformer has one. ``mask_stride`` is the side of the patches that ``forward`` can hide and
    ``mask_width`` the channels of their embedding.
    """

    def __init__(
        self,
        network: nn.Module,
        patches: nn.Module,
        layout: Layout,
        *,
        channels: list[int],
        strides: list[int],
        multiple: int,
        mask_stride: int,
        mask_width: int,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
    ) -> None:
        """``patches`` is the part of ``network`` that embeds patches; sides are padded to ``multiple``."""
        super().__init__()
        self.network, self.layout, self.multiple = network, layout, multiple
        self.patches_name = next(name for name, module in network.named_modules() if module is patches)
        self.channels, self.strides = channels, strides
        self.mask_stride, self.mask_width = mask_stride, mask_width
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor, mask: Tensor | None = None, mask_token: Tensor | None = None) -> list[Tensor]:
        """Maps (batch, channels[i], ceil(H / strides[i]), ceil(W / strides[i])) of images (batch, 3, H, W) in [-1, 1].

        Where ``mask`` (batch, ceil(H / mask_stride), ceil(W / mask_stride)) is true, ``mask_token`` (``mask_width``
        numbers) takes the place of a patch's embedding, as in SimMIM (Xie et al. 2022): the maps then do not depend on
        the pixels of that patch.
        """
        size = images.shape[-2:]
        with self._hidden(mask, mask_token):
            maps = self._maps(self.prepare(images))
        return [
            x[:, :, : -(-size[0] // stride), : -(-size[1] // stride)]
            for x, stride in zip(maps, self.strides, strict=True)
        ]

    def _maps(self, images: Tensor) -> list[Tensor]:
        """Native levels of normalised images whose sides are multiples of ``multiple``."""
        raise NotImplementedError

    def prepare(self, images: Tensor) -> Tensor:
        """Normalise as in pre-training, and pad with zeros (the mean colour) at the bottom and on the right."""
        images = (images * 0.5 + 0.5 - self.mean) / self.std
        bottom, right = (-side % self.multiple for side in images.shape[-2:])
        return F.pad(images, (0, right, 0, bottom)) if bottom or right else images

    @contextlib.contextmanager
    def _hidden(self, mask: Tensor | None, token: Tensor | None) -> Iterator[None]:
        """Within the block, the patch embedding gives ``token`` where ``mask`` is true."""
        if mask is None:
            yield
            return
        patches = self.network.get_submodule(self.patches_name)
        handle = patches.register_forward_hook(lambda _module, _inputs, output: self._replace(output, mask, token))
        try:
            yield
        finally:
            handle.remove()

    def _replace(self, patches: Tensor, mask: Tensor, token: Tensor) -> Tensor:
        rows, columns = self._grid(mask)
        mask = F.pad(mask, (0, columns - mask.shape[2], 0, rows - mask.shape[1]))
        token = token.reshape(-1).to(patches.dtype)
        if self.layout == "NCHW":
            return torch.where(mask[:, None], token[:, None, None], patches)
        return torch.where((mask.flatten(1) if self.layout == "NLC" else mask)[..., None], token, patches)

    def _grid(self, mask: Tensor) -> tuple[int, int]:
        """Patches of the padded images, whose mask covers at least their unpadded part."""
        unit = self.multiple // self.mask_stride
        return -(-mask.shape[1] // unit) * unit, -(-mask.shape[2] // unit) * unit


def spread(rate: float, blocks: int) -> list[float]:
    """Drop-path rate of each block: from 0 linearly to ``rate``."""
    return [rate * block / max(1, blocks - 1) for block in range(blocks)]
