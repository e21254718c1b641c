"""Attention processors: fused self-attention, and attention to text that can record its maps.

Maps are recorded only where an experiment uses them: chosen by module name, hence for inputs of any size.
A recorder belongs to one forward pass and travels through it as an argument.
"""

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention, JointAttnProcessor2_0
from torch import Tensor, nn

from vpd.config.schema import AttentionSpec
from vpd.utils.errors import UserError


class Recorder:
    """Collects the cross-attention maps of one forward pass."""

    def __init__(self) -> None:
        self._maps: dict[int, list[Tensor]] = {}
        self._open = True

    def add(self, level: int, maps: Tensor) -> None:
        """Store one layer's maps (batch, pixels, tokens), unless the pass is over."""
        # Gradient checkpointing runs layers again during backward; those calls must change nothing.
        if self._open:
            self._maps.setdefault(level, []).append(maps)

    def collect(self, sizes: list[torch.Size]) -> list[Tensor | None]:
        """End the pass; return per level of ``sizes`` the mean over its layers (batch, tokens, h, w), or None."""
        self._open = False
        layers = [self._maps.pop(level, None) for level in range(len(sizes))]
        return [
            None if maps is None else torch.stack(maps).mean(0).transpose(1, 2).unflatten(2, tuple(size))
            for maps, size in zip(layers, sizes, strict=True)
        ]


class SelfAttention:
    """Attention of pixels to pixels through ``scaled_dot_product_attention``; nothing is recorded."""

    # The recorder is named in the signature because diffusers warns about arguments that a processor does not name.
    def __call__(
        self, attn: Attention, hidden_states: Tensor, recorder: Recorder | None = None, **_options: object
    ) -> Tensor:
        """Attend from every pixel (batch, pixels, channels) to every pixel."""
        return _fused(attn, hidden_states, hidden_states)


class CrossAttention:
    """Attention of pixels to the text, recorded for ``level`` of the feature maps; None records nothing.

    Maps that are ``detached`` carry no gradient, as in the released code (S14).
    """

    def __init__(self, level: int | None, detached: bool) -> None:
        self.level, self.detached = level, detached

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        recorder: Recorder | None = None,
        **_options: object,
    ) -> Tensor:
        """Attend from every pixel (batch, pixels, channels) to the context (batch, tokens, width).

        ``attention_mask`` (batch, 1, 1, tokens) is added to the scores.
        """
        if self.level is not None and recorder is not None:
            return self._recorded(attn, hidden_states, encoder_hidden_states, attention_mask, self.level, recorder)
        if encoder_hidden_states.shape[1] == 1:
            return _one_token(attn, hidden_states, encoder_hidden_states)
        return _fused(attn, hidden_states, encoder_hidden_states, attention_mask)

    def _recorded(
        self, attn: Attention, pixels: Tensor, context: Tensor, mask: Tensor | None, level: int, recorder: Recorder
    ) -> Tensor:
        # Fused attention never forms the maps, so the product is written out here; averaged over heads after softmax (S6).
        query, key, value = (_split(attn, x) for x in (attn.to_q(pixels), attn.to_k(context), attn.to_v(context)))
        maps = _shares(attn, query, key, mask)
        recorder.add(level, (maps.detach() if self.detached else maps).mean(dim=1))
        return _merge(attn, maps.to(value.dtype) @ value)


class JointAttention(JointAttnProcessor2_0):
    """Attention of image and text to both, diffusers' own; recorded is how the image attends to the text alone (U7)."""

    def __init__(self, level: int | None, detached: bool) -> None:
        super().__init__()
        self.level, self.detached = level, detached

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        recorder: Recorder | None = None,
        **_options: object,
    ) -> Any:
        """Attend from and to patches (batch, patches, channels) and, unless it is None, the context (batch, tokens, channels)."""
        if self.level is not None and recorder is not None and encoder_hidden_states is not None:
            # The fused product of all queries and keys never forms the maps; those of the image and the text are formed here.
            with torch.set_grad_enabled(torch.is_grad_enabled() and not self.detached):
                query = _split(attn, attn.to_q(hidden_states))
                key = _split(attn, attn.add_k_proj(encoder_hidden_states))
                query = query if attn.norm_q is None else attn.norm_q(query)
                key = key if attn.norm_added_k is None else attn.norm_added_k(key)
                recorder.add(self.level, _shares(attn, query, key, None).mean(dim=1))
        return super().__call__(attn, hidden_states, encoder_hidden_states)


class _ZeroGradient(torch.autograd.Function):
    """Identity of the first input that gives all others a gradient of exact zeros instead of none.

    Weight decay then acts on them as in the released code, and distributed training finds no unused parameter.
    """

    @staticmethod
    def forward(ctx: Any, output: Tensor, *unused: Tensor) -> Tensor:
        ctx.unused = [(tensor.shape, tensor.dtype) for tensor in unused]
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        return gradient, *(gradient.new_zeros(shape, dtype=dtype) for shape, dtype in ctx.unused)


def _one_token(attn: Attention, pixels: Tensor, context: Tensor) -> Tensor:
    """With one token the softmax is 1 at every pixel, whatever the query: the result is the projected value."""
    value = attn.to_out[1](attn.to_out[0](attn.to_v(context))).expand(-1, pixels.shape[1], -1)
    return _ZeroGradient.apply(value, pixels, *attn.to_q.parameters(), *attn.to_k.parameters())


def _fused(attn: Attention, pixels: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
    query, key, value = (_split(attn, x) for x in (attn.to_q(pixels), attn.to_k(context), attn.to_v(context)))
    return _merge(attn, F.scaled_dot_product_attention(query, key, value, attn_mask=mask))


def _shares(attn: Attention, query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
    """Return how each pixel's attention is shared among the tokens, by head (batch, heads, pixels, tokens)."""
    scores = query @ key.transpose(-1, -2) * attn.scale
    return torch.softmax(scores if mask is None else scores + mask, dim=-1)


def _split(attn: Attention, x: Tensor) -> Tensor:
    """(batch, n, heads * d) -> (batch, heads, n, d)."""
    return x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)


def _merge(attn: Attention, x: Tensor) -> Tensor:
    """(batch, heads, n, d) -> the layer's output (batch, n, channels)."""
    return attn.to_out[1](attn.to_out[0](x.transpose(1, 2).flatten(2)))


def _locate(name: str, levels: int) -> tuple[str, int]:
    """Return place (down, mid, up) and level (0 = finest) of a U-Net module; the middle block is at the coarsest (S7)."""
    place, index = name.split("_", 1)[0], name.split(".")[1]
    if place == "mid":
        return place, levels - 1
    return place, int(index) if place == "down" else levels - 1 - int(index)


def set_processors(unet: nn.Module, spec: AttentionSpec) -> list[int]:
    """Give every attention layer of diffusers' U-Net its processor; return the levels whose maps are recorded.

    Level i has 1 / 2**i of the latent side and is recorded if that is at most ``spec.limit``; UserError if a place has none.
    """
    blocks: Any = unet
    levels, recorded = len(blocks.up_blocks), set()
    for name, module in blocks.named_modules():
        if name.endswith(".attn1"):
            module.set_processor(SelfAttention())
        elif name.endswith(".attn2"):
            place, level = _locate(name, levels)
            records = place in spec.places and 0.5**level <= spec.limit
            module.set_processor(CrossAttention(level if records else None, spec.gradient == "detached"))
            recorded |= {(place, level)} if records else set()
    for place in spec.places:
        if place not in {used for used, _ in recorded}:
            raise UserError(
                f"model.attention records no map at '{place}': no cross-attention layer there is within "
                f"limit={spec.limit} of the latent side; raise the limit or remove '{place}' from places"
            )
    return sorted({level for _, level in recorded})
