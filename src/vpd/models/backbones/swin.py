"""Shifted windows (Liu et al. 2021) on maps of any size: pad to whole windows first, then shift.

timm shifts first. On a map that is no multiple of the window its mask then lets opposite borders attend to each other;
where the map is a multiple both orders are the same.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.models.swin_transformer import SwinTransformerBlock
from timm.models.swin_transformer_v2 import SwinTransformerV2Block
from torch import Tensor, nn

from vpd.models.base import Size

BLOCKED = -100.0
"""Added to attention logits across the seam of a shifted map, as in pre-training."""


class PaddedWindows:
    """The window attention of a block, for a map of any size.

    The window is that of the native size. A block that shifts does so along each axis that has more than one window:
    at the native size the rule of pre-training, beyond it that of the downstream recipes.
    """

    window_size: Size
    target_shift_size: Size
    attn: nn.Module

    def _attn(self, x: Tensor) -> Tensor:
        """Attend within the windows of a map (batch, h, w, channels)."""
        size, window = (x.shape[1], x.shape[2]), self.window_size
        x = F.pad(x, (0, 0, 0, -size[1] % window[1], 0, -size[0] % window[0]))
        shift = self._shift(size)
        rolled = x.roll((-shift[0], -shift[1]), (1, 2)) if any(shift) else x
        padded = (x.shape[1], x.shape[2])
        mask = _seam_mask(padded, window, shift, x) if any(shift) else None
        x = _merge(self.attn(_partition(rolled, window), mask=mask), window, padded)
        x = x.roll(shift, (1, 2)) if any(shift) else x
        return x[:, : size[0], : size[1]].contiguous()

    def _shift(self, size: Size) -> Size:
        rows, columns = self.window_size
        shifts = any(self.target_shift_size)
        return rows // 2 if shifts and size[0] > rows else 0, columns // 2 if shifts and size[1] > columns else 0


class SwinBlock(PaddedWindows, SwinTransformerBlock):  # type: ignore[misc]
    """timm's Swin block with padding before the shift."""


class SwinV2Block(PaddedWindows, SwinTransformerV2Block):  # type: ignore[misc]
    """timm's Swin V2 block with padding before the shift."""


OURS = {SwinTransformerBlock: SwinBlock, SwinTransformerV2Block: SwinV2Block}


def shift_after_padding(network: nn.Module) -> None:
    """Make every block of a Swin Transformer pad before it shifts; no tensor changes."""
    for block in network.modules():
        if type(block) in OURS:
            block.__class__ = OURS[type(block)]


def _partition(x: Tensor, window: Size) -> Tensor:
    """(batch, h, w, channels) -> (batch * windows, pixels of a window, channels)."""
    x = x.unflatten(2, (-1, window[1])).unflatten(1, (-1, window[0]))
    return x.transpose(2, 3).reshape(-1, window[0] * window[1], x.shape[-1])


def _merge(windows: Tensor, window: Size, size: Size) -> Tensor:
    """Undo ``_partition`` for a map of ``size``."""
    grid = (size[0] // window[0], size[1] // window[1])
    x = windows.reshape(-1, *grid, *window, windows.shape[-1])
    return x.transpose(2, 3).reshape(-1, *size, windows.shape[-1])


def _seam_mask(size: Size, window: Size, shift: Size, like: Tensor) -> Tensor:
    """Mask (windows, pixels, pixels) that keeps apart what only the cyclic shift made neighbours."""
    rows, columns = (_regions(side, w, s, like.device) for side, w, s in zip(size, window, shift, strict=True))
    regions = (3 * rows[:, None] + columns)[None, :, :, None]
    regions = _partition(regions, window)[..., 0]
    apart = regions[:, :, None] != regions[:, None, :]
    return torch.zeros(apart.shape, dtype=like.dtype, device=like.device).masked_fill(apart, BLOCKED)


def _regions(side: int, window: int, shift: int, device: torch.device) -> Tensor:
    """Along one shifted axis: 0 before the last window, then 1, and 2 for what came from the other end."""
    position = torch.arange(side, device=device)
    if not shift:
        return torch.zeros_like(position).int()
    return (position >= side - window).int() + (position >= side - shift).int()
