"""timm's Swin Transformer and BEiT for images of any size; no tensor changes.

Swin's shifted windows (Liu et al. 2021): pad to whole windows first, then shift. timm shifts first. On a map that is no
multiple of the window its mask then lets opposite borders attend to each other; elsewhere both orders are the same.

BEiT's tables of relative position biases, resampled at every pass. A larger grid has offsets that pre-training never saw.
As in BEiT's own fine-tuning, the known offsets are put at positions that grow geometrically towards the border, so that
small offsets keep their meaning, and the others are interpolated between them. A smaller grid uses the middle of the table.
timm's ``set_input_size`` does the same once, but for a single size and with tensors of other shapes.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed
from timm.models.beit import Attention, Beit, RelativePositionBias, gen_relative_position_index
from timm.models.swin_transformer import SwinTransformerBlock
from timm.models.swin_transformer_v2 import SwinTransformerV2Block
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from vpd.models.base import Size

BLOCKED = -100.0  # added to attention logits across the seam of a shifted map, as in pre-training
EXTRA = 3  # entries behind BEiT's offsets: class token to patch, patch to class token, class token to itself


# -------------------------------------------------------------------------------------------------------------------- Swin
class _PaddedWindows:
    """The window attention of a block. The window is that of the native size. A block that shifts does so along each
    axis that has more than one window: at the native size the rule of pre-training, beyond it that of downstream recipes.
    """

    window_size: Size
    target_shift_size: Size
    attn: nn.Module

    def _attn(self, x: Tensor) -> Tensor:
        # x is (batch, h, w, channels).
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


class _SwinBlock(_PaddedWindows, SwinTransformerBlock):  # type: ignore[misc]
    pass


class _SwinV2Block(_PaddedWindows, SwinTransformerV2Block):  # type: ignore[misc]
    pass


BLOCKS = {SwinTransformerBlock: _SwinBlock, SwinTransformerV2Block: _SwinV2Block}


def shift_after_padding(network: nn.Module) -> None:
    """Make every block of a Swin Transformer pad before it shifts."""
    for block in network.modules():
        block.__class__ = BLOCKS.get(type(block), type(block))


def _partition(x: Tensor, window: Size) -> Tensor:
    """(batch, h, w, channels) -> (batch * windows, pixels of a window, channels)."""
    x = x.unflatten(2, (-1, window[1])).unflatten(1, (-1, window[0]))
    return x.transpose(2, 3).reshape(-1, window[0] * window[1], x.shape[-1])


def _merge(windows: Tensor, window: Size, size: Size) -> Tensor:
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


# -------------------------------------------------------------------------------------------------------------------- BEiT
class _AnyGridAttention(Attention):
    grid: Size  # set anew before every use

    def _get_rel_pos_bias(self) -> Tensor:
        return bias_for(self.relative_position_bias_table, self.window_size, self.grid)[None]


class _AnyGridBias(RelativePositionBias):
    grid: Size

    def forward(self) -> Tensor:
        return bias_for(self.relative_position_bias_table, self.window_size, self.grid)


def interpolate_biases(network: Beit) -> None:
    """Make every position bias of a BEiT one of any grid."""
    for module in network.modules():
        if type(module) is Attention:
            module.__class__ = _AnyGridAttention
        elif type(module) is RelativePositionBias:
            module.__class__ = _AnyGridBias


def beit_tokens(network: Beit, images: Tensor, grid: Size) -> Tensor:
    """Return the tokens (batch, 1 + patches, channels) behind the network's last block and ``norm``."""
    x = network.patch_embed(images)
    x = torch.cat([network.cls_token.expand(len(x), -1, -1), x], dim=1)
    if network.pos_embed is not None:
        x = x + resample_abs_pos_embed(network.pos_embed, grid, network.patch_embed.grid_size, num_prefix_tokens=1)
    x, shared = network.pos_drop(x), None
    if isinstance(network.rel_pos_bias, _AnyGridBias):
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
    assert isinstance(attention, _AnyGridAttention)
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
