"""How LAVT (Yang et al. 2022) takes words into a vision transformer: pixel-word attention and language gates.

Maps are channels-last, as Swin's are. Where paper and released network differ, this is the network of the published
figures: GELU for ReLU in the two projections, and a LayerNorm on what the head gets.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from vpd.utils.errors import UserError

GATE_STD = 0.02
"""Of a gate's first weights; the gates then are all but closed."""


class PixelWordAttention(nn.Module):
    """Pixel-word attention module (PWAM, section 3.2): every pixel gathers the words that concern it.

    Pixels are queries, words keys and values; what is gathered multiplies the projected pixels. Queries, and what is
    gathered, are normalised per image and channel over the pixels.
    """

    def __init__(self, channels: int, word_channels: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        # A bias would cancel: in the softmax over words (key) or in the norm that follows (query, gathered).
        self.query = nn.Linear(channels, channels, bias=False)
        self.key = nn.Linear(word_channels, channels, bias=False)
        self.value = nn.Linear(word_channels, channels)
        self.gathered = nn.Linear(channels, channels, bias=False)
        self.visual = nn.Sequential(nn.Linear(channels, channels), nn.GELU(), nn.Dropout(dropout))
        self.mixed = nn.Sequential(nn.Linear(channels, channels), nn.GELU(), nn.Dropout(dropout))

    def forward(self, x: Tensor, words: Tensor, mask: Tensor) -> Tensor:
        """Fuse pixels (batch, h, w, channels) with words (batch, length, word channels) where ``mask`` is true.

        Returns (batch, h, w, channels); ``mask`` is (batch, length).
        """
        pixels = x.flatten(1, 2)
        gathered = instance_norm(self.gathered(self._attend(pixels, words, mask)))
        return self.mixed(self.visual(pixels) * gathered).unflatten(1, x.shape[1:3])

    def _attend(self, pixels: Tensor, words: Tensor, mask: Tensor) -> Tensor:
        parts = [instance_norm(self.query(pixels)), self.key(words), self.value(words)]
        query, key, value = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in parts)
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None])
        return found.transpose(1, 2).flatten(2)


class LanguageGate(nn.Sequential):
    """Language gate (section 3.3): a number in (-1, 1) per pixel and channel, how much of the words goes on."""

    def __init__(self, channels: int) -> None:
        first, second = (nn.Linear(channels, channels, bias=False) for _ in range(2))
        super().__init__(first, nn.ReLU(), second, nn.Tanh())
        for layer in (first, second):
            nn.init.trunc_normal_(layer.weight, std=GATE_STD)


class WordFusion(nn.Module):
    """What stands behind each stage of the backbone; the last one has no gate, for no stage follows it."""

    def __init__(self, channels: list[int], word_channels: int, heads: tuple[int, ...], dropout: float) -> None:
        super().__init__()
        check_heads(channels, heads)
        self.attention = nn.ModuleList(
            PixelWordAttention(c, word_channels, h, dropout) for c, h in zip(channels, heads, strict=True)
        )
        self.gates = nn.ModuleList(LanguageGate(c) for c in channels[:-1])
        self.norms = nn.ModuleList(nn.LayerNorm(c) for c in channels)

    def forward(self, level: int, x: Tensor, words: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return the head's map (batch, channels, h, w) and the next stage's input (batch, h, w, channels).

        ``x`` is the output of stage ``level``, also channels-last.
        """
        fused = self.attention[level](x, words, mask)
        if level < len(self.gates):
            x = x + self.gates[level](fused) * fused
        return self.norms[level](fused).permute(0, 3, 1, 2).contiguous(), x


def instance_norm(x: Tensor) -> Tensor:
    """Give each channel of (batch, pixels, channels) mean 0 and variance 1 over the pixels."""
    return F.instance_norm(x.transpose(1, 2)).transpose(1, 2)


def check_heads(channels: list[int], heads: tuple[int, ...]) -> None:
    """UserError unless there is a number of heads for each stage, and it divides the stage's channels."""
    if len(heads) != len(channels):
        raise UserError(f"model.fusion_heads has {len(heads)} numbers for {len(channels)} stages; give one per stage")
    for c, h in zip(channels, heads, strict=True):
        if c % h:
            raise UserError(f"model.fusion_heads has {h}, which does not divide a stage's {c} channels; use a divisor")
