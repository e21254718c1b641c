"""A light two-way decoder: a point and an image look at each other, and a mask comes out."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vpd.pretraining.backbones.objective import Fusion

WIDTH, LAYERS, HEADS = 64, 2, 4
"""SAM: 256, 2 and 8."""


class TwoWayLayer(nn.Module):
    """Tokens attend to one another and to the image, are transformed, and the image attends to them."""

    def __init__(self) -> None:
        super().__init__()
        self.among, self.to_image, self.to_tokens = (
            nn.MultiheadAttention(WIDTH, HEADS, batch_first=True) for _ in range(3)
        )
        self.mix = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(4))

    def forward(self, tokens: Tensor, image: Tensor, prompt: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B,T,C) and image (B,N,C), and what is added to each wherever it asks or is asked."""
        asked = tokens + prompt
        tokens = self.norms[0](tokens + self.among(asked, asked, tokens, need_weights=False)[0])
        tokens = self.norms[1](tokens + self.to_image(tokens + prompt, image + places, image, need_weights=False)[0])
        tokens = self.norms[2](tokens + self.mix(tokens))
        answer = self.to_tokens(image + places, tokens + prompt, tokens, need_weights=False)[0]
        return tokens, self.norms[3](image + answer)


class MaskDecoder(nn.Module):
    """Maps of a backbone and one point per image to mask logits at a quarter of the finest map's stride."""

    def __init__(self, channels: list[int]) -> None:
        super().__init__()
        self.fusion = Fusion(channels, WIDTH)
        self.register_buffer("frequencies", torch.randn(2, WIDTH // 2))
        self.point = nn.Parameter(torch.randn(WIDTH))
        self.mask = nn.Parameter(torch.randn(WIDTH))
        self.layers = nn.ModuleList(TwoWayLayer() for _ in range(LAYERS))
        self.enlarge = nn.Sequential(
            nn.ConvTranspose2d(WIDTH, WIDTH // 2, 2, 2),
            nn.GroupNorm(1, WIDTH // 2),
            nn.GELU(),
            nn.ConvTranspose2d(WIDTH // 2, WIDTH // 4, 2, 2),
            nn.GELU(),
        )
        self.select = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH // 4))

    def forward(self, maps: list[Tensor], points: Tensor) -> Tensor:
        """(B,4h,4w) logits; points (B,2) are x and y in [0,1]."""
        fused = self.fusion(maps)
        height, width = fused.shape[-2:]
        places = self.encode(_grid(height, width).to(fused))[None]
        prompt = torch.stack([self.mask.expand(len(points), -1), self.encode(points) + self.point], dim=1)
        tokens, image = prompt, fused.flatten(2).transpose(1, 2)
        for layer in self.layers:
            tokens, image = layer(tokens, image, prompt, places)
        enlarged = self.enlarge(image.transpose(1, 2).unflatten(2, (height, width)))
        return torch.einsum("bc,bchw->bhw", self.select(tokens[:, 0]), enlarged)

    def encode(self, points: Tensor) -> Tensor:
        """(..., WIDTH) sines and cosines of random projections of points (..., 2) in [0,1]."""
        angles = 2 * math.pi * (2 * points - 1) @ self.frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


def _grid(height: int, width: int) -> Tensor:
    """(height * width, 2) x and y of the cells' centres, row by row."""
    rows, columns = (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], dim=1)
