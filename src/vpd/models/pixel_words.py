"""How LAVT (Yang et al. 2022) takes words into a vision transformer: pixel-word attention and language gates.

Maps are channels-last, as Swin's are. Where paper and released network differ, this is the network of the published
figures: GELU for ReLU in the two projections, and a LayerNorm on what the head gets.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from vpd.utils.errors import UserError

GATE_STD = 0.02
"""Standard deviation of a gate's first weights, which all but close it."""


class PixelWordAttention(nn.Module):
    """Pixel-word attention module (PWAM, section 3.2): every pixel gathers the words that concern it.

    Pixels are queries, words are keys and values; the gathered words multiply the projected pixels. Queries and gathered
    words are normalised per image and channel over the pixels.

    Args:
        channels: of the pixels.
        word_channels: of the words.
        heads: of the attention; divides ``channels``.
        dropout: rate behind each of the two projections.
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
        """Fuse pixels with words.

        Args:
            x: pixels (batch, h, w, channels).
            words: (batch, length, word channels).
            mask: (batch, length), false on padding.

        Returns:
            (batch, h, w, channels).
        """
        pixels = x.flatten(1, 2)
        gathered = _instance_norm(self.gathered(self._attend(pixels, words, mask)))
        return self.mixed(self.visual(pixels) * gathered).unflatten(1, x.shape[1:3])

    def _attend(self, pixels: Tensor, words: Tensor, mask: Tensor) -> Tensor:
        parts = [_instance_norm(self.query(pixels)), self.key(words), self.value(words)]
        query, key, value = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in parts)
        words_of = F.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None])
        return words_of.transpose(1, 2).flatten(2)


class LanguageGate(nn.Sequential):
    """Language gate (section 3.3): per pixel and channel a factor in (-1, 1) of the words that the next stage sees."""

    def __init__(self, channels: int) -> None:
        first, second = (nn.Linear(channels, channels, bias=False) for _ in range(2))
        super().__init__(first, nn.ReLU(), second, nn.Tanh())
        for layer in (first, second):
            nn.init.trunc_normal_(layer.weight, std=GATE_STD)


class WordFusion(nn.Module):
    """Fusion behind each stage of the backbone; the last one has no gate, since no stage follows it.

    Args:
        channels: of the stages.
        word_channels: of the words.
        heads: of each stage's attention.
        dropout: rate in each stage's attention.

    Raises:
        UserError: there is not one number of heads per stage, or it does not divide the stage's channels.
    """

    def __init__(self, channels: list[int], word_channels: int, heads: tuple[int, ...], dropout: float) -> None:
        super().__init__()
        _check_heads(channels, heads)
        self.attention = nn.ModuleList(
            PixelWordAttention(c, word_channels, h, dropout) for c, h in zip(channels, heads, strict=True)
        )
        self.gates = nn.ModuleList(LanguageGate(c) for c in channels[:-1])
        self.norms = nn.ModuleList(nn.LayerNorm(c) for c in channels)

    def forward(self, level: int, x: Tensor, words: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Fuse the output of one stage with words.

        Args:
            level: the stage.
            x: its output (batch, h, w, channels).
            words: (batch, length, word channels).
            mask: (batch, length), false on padding.

        Returns:
            The head's map (batch, channels, h, w) and the next stage's input (batch, h, w, channels).
        """
        fused = self.attention[level](x, words, mask)
        if level < len(self.gates):
            x = x + self.gates[level](fused) * fused
        return self.norms[level](fused).permute(0, 3, 1, 2).contiguous(), x


def _instance_norm(x: Tensor) -> Tensor:
    """Give each channel of (batch, pixels, channels) mean 0 and variance 1 over the pixels."""
    return F.instance_norm(x.transpose(1, 2)).transpose(1, 2)


def _check_heads(channels: list[int], heads: tuple[int, ...]) -> None:
    if len(heads) != len(channels):
        raise UserError(f"model.fusion_heads has {len(heads)} numbers for {len(channels)} stages; give one per stage")
    for c, h in zip(channels, heads, strict=True):
        if c % h:
            raise UserError(f"model.fusion_heads has {h}, which does not divide a stage's {c} channels; use a divisor")
