"""Configurations of Stable Diffusion networks of any width, read off the shapes of their weights.

What shapes do not show (heads of the U-Net, norm groups, depth per level) is as in Stable Diffusion 1.
"""

from __future__ import annotations

import re

from torch import Tensor

HEAD_WIDTH = 64
"""Of CLIP's text models."""
State = dict[str, Tensor]


def unet_config(base: dict, state: State) -> dict:
    """``base`` with the widths of the U-Net ``state``."""
    found = {
        "block_out_channels": _levels(base["block_out_channels"], state, "down_blocks.{}.resnets"),
        "in_channels": _size(state, "conv_in.weight", 1, base["in_channels"]),
        "cross_attention_dim": _size(state, "attn2.to_k.weight", 1, base["cross_attention_dim"]),
    }
    return base | found


def vae_config(base: dict, state: State) -> dict:
    """``base`` with the widths of the autoencoder ``state``."""
    found = {
        "block_out_channels": _levels(base["block_out_channels"], state, "encoder.down_blocks.{}.resnets"),
        "latent_channels": _size(state, "decoder.conv_in.weight", 1, base["latent_channels"]),
    }
    return base | found


def text_config(base: dict, state: State) -> dict:
    """``base`` with the widths and the depth of the text encoder ``state``."""
    width = _size(state, "embeddings.token_embedding.weight", 1, base["hidden_size"])
    layers = {int(match[1]) for name in state if (match := re.search(r"\.layers\.(\d+)\.", name))}
    found = {
        "hidden_size": width,
        "projection_dim": width,
        "intermediate_size": _size(state, "mlp.fc1.weight", 0, base["intermediate_size"]),
        "num_attention_heads": max(1, width // HEAD_WIDTH),
        "num_hidden_layers": max(layers, default=base["num_hidden_layers"] - 1) + 1,
        "vocab_size": _size(state, "embeddings.token_embedding.weight", 0, base["vocab_size"]),
        "max_position_embeddings": _size(
            state, "embeddings.position_embedding.weight", 0, base["max_position_embeddings"]
        ),
    }
    return base | found


def _levels(default: list[int], state: State, place: str) -> list[int]:
    """Width of every level, from any tensor of it that shows it."""
    names = [place.format(level) for level in range(len(default))]
    return [_level(state, name, width) for name, width in zip(names, default, strict=True)]


def _level(state: State, place: str, default: int) -> int:
    found = (tensor.shape[0] for name, tensor in state.items() if name.startswith(place) and ".conv" in name)
    return next(found, default)


def _size(state: State, ending: str, dimension: int, default: int) -> int:
    """A dimension of the first tensor whose name ends so."""
    found = (tensor.shape[dimension] for name, tensor in state.items() if name.endswith(ending))
    return next(found, default)
