"""Names of the authors' released VPD weights (LDM U-Net, mmseg head) and ours."""

from __future__ import annotations

import re
from collections.abc import Callable

from torch import Tensor

from vpd.utils.errors import UserError

BLOCKS_PER_LEVEL = 3
"""LDM numbers its blocks through; Stable Diffusion 1.x has three to a level, the downsampling one included."""
INNER = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
VAE_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
UNUSED = re.compile(r"encoder_vq\.post_quant_conv\.|sd_model\.|unet\.unet\.diffusion_model\.out\.")
"""In the released files but without influence on any output."""


def _place(direction: str, number: int) -> str:
    return f"{direction}_blocks.{number // BLOCKS_PER_LEVEL}.%s.{number % BLOCKS_PER_LEVEL}"


def _inner(layer: str) -> str:
    old = next((old for old in INNER if layer.startswith(old + ".")), None)
    return layer if old is None else INNER[old] + layer[len(old) :]


def _input_block(number: str, part: str, layer: str) -> str:
    index = int(number) - 1
    if index < 0:
        return f"unet.conv_in.{layer}"
    if layer.startswith("op."):
        return f"unet.down_blocks.{index // BLOCKS_PER_LEVEL}.downsamplers.0.conv.{layer[3:]}"
    return f"unet.{_place('down', index) % _KINDS[part]}.{_inner(layer)}"


def _output_block(number: str, part: str, layer: str) -> str:
    if layer.startswith("conv."):
        return f"unet.up_blocks.{int(number) // BLOCKS_PER_LEVEL}.upsamplers.0.{layer}"
    return f"unet.{_place('up', int(number)) % _KINDS[part]}.{_inner(layer)}"


def _middle_block(part: str, layer: str) -> str:
    return f"unet.mid_block.{'attentions.0' if part == '1' else f'resnets.{int(part) // 2}'}.{_inner(layer)}"


_KINDS = {"0": "resnets", "1": "attentions"}
_UNET, _VAE = r"unet\.unet\.diffusion_model\.", r"encoder_vq\.encoder\."
RULES: tuple[tuple[str, str | Callable[..., str]], ...] = (
    (_UNET + r"time_embed\.([02])\.(\w+)", lambda i, x: f"unet.time_embedding.linear_{int(i) // 2 + 1}.{x}"),
    (_UNET + r"input_blocks\.(\d+)\.([01])\.(.+)", _input_block),
    (_UNET + r"middle_block\.([012])\.(.+)", _middle_block),
    (_UNET + r"output_blocks\.(\d+)\.([012])\.(.+)", _output_block),
    (_VAE + r"down\.(\d)\.block\.(\d)\.nin_shortcut\.(\w+)", r"vae.encoder.down_blocks.\1.resnets.\2.conv_shortcut.\3"),
    (_VAE + r"down\.(\d)\.block\.(\d)\.(\w+\.\w+)", r"vae.encoder.down_blocks.\1.resnets.\2.\3"),
    (_VAE + r"down\.(\d)\.downsample\.conv\.(\w+)", r"vae.encoder.down_blocks.\1.downsamplers.0.conv.\2"),
    (_VAE + r"mid\.block_([12])\.(\w+\.\w+)", lambda i, x: f"vae.encoder.mid_block.resnets.{int(i) - 1}.{x}"),
    (_VAE + r"mid\.attn_1\.(\w+)\.(\w+)", lambda i, x: f"vae.encoder.mid_block.attentions.0.{VAE_ATTENTION[i]}.{x}"),
    (_VAE + r"norm_out\.(\w+)", r"vae.encoder.conv_norm_out.\1"),
    (_VAE + r"(conv_in|conv_out)\.(\w+)", r"vae.encoder.\1.\2"),
    (r"encoder_vq\.quant_conv\.(\w+)", r"vae.quant_conv.\1"),
    (r"text_adapter\.fc\.([02])\.(\w+)", r"adapter.fc.\1.\2"),
    (r"gamma", r"adapter.gamma"),
    (r"class_embeddings", r"class_embeddings"),
    (r"neck\.(lateral_convs|fpn_convs)\.(\d)\.conv\.(\w+)", r"head.neck.\1.\2.\3"),
    (r"decode_head\.(scale_heads\..+|conv_seg\.\w+)", r"head.\1"),
    (
        r"classifier\.(conv|bn)([12])_([432])\.(\w+)",
        lambda kind, i, level, x: f"head.fuse.{4 - int(level)}.mix.{int(i) - 1}.{kind}.{x}",
    ),
    (r"classifier\.conv1_1\.(\w+)", r"head.classify.\1"),
    (r"((?:layer1|layer2|out_layer)\..+)", r"head.\1"),
    (r"decoder\.((?:deconv|conv)_layers\..+)", r"head.\1"),
    (r"(last_layer_depth\..+)", r"head.\1"),
)


def rename(name: str) -> str | None:
    """Our name of one released tensor, or None for one that no output depends on; KeyError for an unknown name.

    Depth files prefix the backbone with ``encoder.``, files of data-parallel training everything with ``module.``.
    """
    bare = name.removeprefix("module.").removeprefix("encoder.")
    if UNUSED.match(bare):
        return None
    for pattern, target in RULES:
        if match := re.fullmatch(pattern, bare):
            return match.expand(target) if isinstance(target, str) else target(*match.groups())
    raise KeyError(name)


def convert(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename a released VPD state dict of any of the three tasks; UserError if a name is not VPD's.

    The VAE's attention projections, 1x1 convolutions there, become matrices.
    """
    converted, unknown = {}, []
    for name, tensor in state.items():
        try:
            target = rename(name)
        except KeyError:
            unknown.append(name)
            continue
        if target is not None:
            matrix = ".mid_block.attentions.0.to_" in target and target.startswith("vae.") and tensor.ndim == 4
            converted[target] = tensor[:, :, 0, 0] if matrix else tensor
    if unknown:
        raise UserError(
            f"{len(unknown)} tensors have names that no released VPD model uses, first '{unknown[0]}'; "
            f"give the state dict of a segmentation, referring or depth model of wl-zhao/VPD"
        )
    return converted
