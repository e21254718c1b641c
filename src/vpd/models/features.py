"""What backbones hand to heads, and a bounded cache for what frozen encoders compute."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Features:
    """Feature maps of a batch, fine to coarse."""

    maps: list[Tensor]
    """What heads read: per level (batch, channels + tokens, h, w), recorded attention behind the U-Net's channels."""
    strides: list[int]
    """Input pixels per map pixel."""
    attention: list[Tensor | None]
    """Per level the recorded cross-attention (batch, tokens, h, w), which sums to 1 over tokens, or None."""


def join(maps: list[Tensor], strides: list[int], attention: list[Tensor | None]) -> Features:
    """Concatenate each level's attention behind its map."""
    joined = [
        x if tokens is None else torch.cat([x, tokens.to(x.dtype)], dim=1)
        for x, tokens in zip(maps, attention, strict=True)
    ]
    return Features(joined, strides, attention)


class LatentCache:
    """Tensors of frozen encoders by key, at most ``max_bytes`` in main memory.

    Each tensor is computed alone, so its bits never depend on the batch it came with or on what the cache holds.
    Once full it keeps what it has: a pass over the data in random order would evict what the next pass needs.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.bytes, self.hits, self.misses = max_bytes, 0, 0, 0
        self._held: dict[Hashable, Tensor] = {}

    def get(self, key: Hashable, compute: Callable[[], Tensor]) -> Tensor:
        """Return the tensor of ``key``, computing and keeping it on first use."""
        if key in self._held:
            self.hits += 1
            return self._held[key]
        self.misses += 1
        value = compute().detach()
        if self.bytes + value.nbytes <= self.max_bytes:
            self._held[key] = value.to("cpu", copy=True)
            self.bytes += value.nbytes
        return value

    def __len__(self) -> int:
        return len(self._held)
