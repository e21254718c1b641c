"""BEiT on any grid of patches: its tables of relative position biases, resampled at every pass.

A larger grid has offsets that pre-training never saw. As in BEiT's own fine-tuning, the known offsets are put at
positions that grow geometrically towards the border, so that small offsets keep their meaning, and the others are
interpolated between them. A smaller grid uses the middle of the table.

timm's ``set_input_size`` does the same once, but replaces the tables by larger ones: the number of parameters and the shape
of the stored weights would depend on the crop, and images of another size would be refused.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from timm.layers import resample_abs_pos_embed
from timm.models.beit import Attention, Beit, RelativePositionBias, gen_relative_position_index
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from vpd.models.base import Size

EXTRA = 3
"""Entries behind the offsets: class token to patch, patch to class token, class token to itself."""


class AnyGridAttention(Attention):
    """timm's attention with the bias of ``grid``, which is set anew before every use."""

    grid: Size

    def _get_rel_pos_bias(self) -> Tensor:
        return bias_for(self.relative_position_bias_table, self.window_size, self.grid)[None]


class AnyGridBias(RelativePositionBias):
    """timm's bias shared by all blocks, of ``grid``."""

    grid: Size

    def forward(self) -> Tensor:
        """Return the bias (heads, 1 + patches, 1 + patches)."""
        return bias_for(self.relative_position_bias_table, self.window_size, self.grid)


def interpolate_biases(network: Beit) -> None:
    """Make every position bias of a BEiT one of any grid; no tensor changes."""
    for module in network.modules():
        if type(module) is Attention:
            module.__class__ = AnyGridAttention
        elif type(module) is RelativePositionBias:
            module.__class__ = AnyGridBias


def beit_tokens(network: Beit, images: Tensor, grid: Size) -> Tensor:
    """Return the tokens (batch, 1 + patches, channels) behind the network's last block and ``norm``."""
    x = network.patch_embed(images)
    x = torch.cat([network.cls_token.expand(len(x), -1, -1), x], dim=1)
    if network.pos_embed is not None:
        x = x + resample_abs_pos_embed(network.pos_embed, grid, network.patch_embed.grid_size, num_prefix_tokens=1)
    x, shared = network.pos_drop(x), None
    if isinstance(network.rel_pos_bias, AnyGridBias):
        network.rel_pos_bias.grid = grid
        shared = network.rel_pos_bias()
    for block in network.blocks:
        if network.grad_checkpointing and torch.is_grad_enabled():
            x = recompute(_run, block, x, grid, shared, use_reentrant=False)
        else:
            x = _run(block, x, grid, shared)
    return network.norm(x)


def _run(block: nn.Module, x: Tensor, grid: Size, shared: Tensor | None) -> Tensor:
    # Set here, not once per pass: a checkpointed block runs again during backward, maybe after a pass of another size.
    attention = block.attn
    assert isinstance(attention, AnyGridAttention)
    attention.grid = grid
    return block(x, shared_rel_pos_bias=shared)


def bias_for(table: Tensor, native: Size, grid: Size) -> Tensor:
    """Return the bias (heads, 1 + patches, 1 + patches) on ``grid`` from a table (offsets of ``native`` + 3, heads)."""
    offsets, extra = table[:-EXTRA], table[-EXTRA:]
    if grid != tuple(native):
        offsets = offsets.unflatten(0, (2 * native[0] - 1, 2 * native[1] - 1))
        rows, columns = (
            _resampling(old, new).to(table.device, table.dtype) for old, new in zip(native, grid, strict=True)
        )
        offsets = torch.einsum("iy,jx,yxh->ijh", rows, columns, offsets).flatten(0, 1)
    tokens = 1 + grid[0] * grid[1]
    index = gen_relative_position_index(grid, device=table.device)
    return torch.cat([offsets, extra])[index.flatten()].view(tokens, tokens, -1).permute(2, 0, 1).contiguous()


def _resampling(old: int, new: int) -> Tensor:
    """Return the matrix (2 new - 1, 2 old - 1) that linearly interpolates the offsets of ``new`` patches on one axis."""
    if old == 1:
        return torch.ones(2 * new - 1, 1, device="cpu")
    known = torch.tensor(_known_positions(old, new), dtype=torch.float64, device="cpu")
    wanted = torch.arange(1.0 - new, new, dtype=torch.float64, device="cpu").clamp(known[0], known[-1])[:, None]
    gaps = known.diff()
    gap = torch.where(wanted < known, torch.cat([gaps[:1], gaps]), torch.cat([gaps, gaps[-1:]]))
    return (1 - (wanted - known).abs() / gap).clamp(min=0).float()


@lru_cache(maxsize=64)
def _known_positions(old: int, new: int) -> tuple[float, ...]:
    """Return where the table's 2 old - 1 offsets lie among those of ``new`` patches."""
    ratio = _growth(old - 1, new - 1)
    positions = [0.0]
    for step in range(old - 1):
        positions.append(positions[-1] + ratio**step)
    return (*(-position for position in positions[:0:-1]), *positions)


def _growth(steps: int, length: int) -> float:
    """Bisect the ratio of the geometric series whose first ``steps`` terms, from 1, add up to ``length``; 1 at least."""
    if steps < 2 or length <= steps:
        return 1.0
    low, high = 1.0, length ** (1 / (steps - 1))
    for _ in range(60):
        middle = (low + high) / 2
        total = sum(middle**step for step in range(steps))
        low, high = (low, middle) if total > length else (middle, high)
    return low
