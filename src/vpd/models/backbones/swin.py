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

BLOCKED = -100.0
"""Added to attention logits across the seam of a shifted map, as in pre-training."""

Pair = tuple[int, int]


class PaddedWindows:
    """The window attention of a block, for a map of any size.

    The window is that of the native size. A block that shifts does so along each axis that has more than one window,
    which at the native size is the rule of pre-training and beyond it that of the downstream recipes.
    """

    def _attn(self, x: Tensor) -> Tensor:
        """Attend within the windows of a map (batch, h, w, channels)."""
        size, window = x.shape[1:3], self.window_size
        x = F.pad(x, (0, 0, 0, -size[1] % window[1], 0, -size[0] % window[0]))
        shift = self._shift(size)
        rolled = x.roll((-shift[0], -shift[1]), (1, 2)) if any(shift) else x
        mask = seam_mask(x.shape[1:3], window, shift, x) if any(shift) else None
        x = merge(self.attn(partition(rolled, window), mask=mask), window, x.shape[1:3])
        x = x.roll(shift, (1, 2)) if any(shift) else x
        return x[:, : size[0], : size[1]].contiguous()

    def _shift(self, size: Pair) -> Pair:
        shifts = any(self.target_shift_size)
        return tuple(w // 2 if shifts and side > w else 0 for side, w in zip(size, self.window_size, strict=True))


class SwinBlock(PaddedWindows, SwinTransformerBlock):
    """timm's Swin block with padding before the shift."""


class SwinV2Block(PaddedWindows, SwinTransformerV2Block):
    """timm's Swin V2 block with padding before the shift."""


OURS = {SwinTransformerBlock: SwinBlock, SwinTransformerV2Block: SwinV2Block}


def shift_after_padding(network: nn.Module) -> None:
    """Make every block of a Swin Transformer pad before it shifts; no tensor changes."""
    for block in network.modules():
        if type(block) in OURS:
            block.__class__ = OURS[type(block)]


def partition(x: Tensor, window: Pair) -> Tensor:
    """(batch, h, w, channels) -> (batch * windows, pixels of a window, channels)."""
    x = x.unflatten(2, (-1, window[1])).unflatten(1, (-1, window[0]))
    return x.transpose(2, 3).reshape(-1, window[0] * window[1], x.shape[-1])


def merge(windows: Tensor, window: Pair, size: Pair) -> Tensor:
    """Undo ``partition`` for a map of ``size``."""
    grid = (size[0] // window[0], size[1] // window[1])
    x = windows.reshape(-1, *grid, *window, windows.shape[-1])
    return x.transpose(2, 3).reshape(-1, *size, windows.shape[-1])


def seam_mask(size: Pair, window: Pair, shift: Pair, like: Tensor) -> Tensor:
    """Mask (windows, pixels, pixels) that keeps apart what only the cyclic shift made neighbours."""
    rows, columns = (_regions(side, w, s, like.device) for side, w, s in zip(size, window, shift, strict=True))
    regions = (3 * rows[:, None] + columns)[None, :, :, None]
    regions = partition(regions, window)[..., 0]
    apart = regions[:, :, None] != regions[:, None, :]
    return torch.zeros(apart.shape, dtype=like.dtype, device=like.device).masked_fill(apart, BLOCKED)


def _regions(side: int, window: int, shift: int, device: torch.device) -> Tensor:
    """Along one shifted axis: 0 before the last window, then 1, and 2 for what came from the other end."""
    place = torch.arange(side, device=device)
    return (place >= side - window).int() + (place >= side - shift).int() if shift else torch.zeros_like(place).int()
