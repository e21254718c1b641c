"""Names of tensors in the authors' files: Latent Diffusion's networks, and the heads of their released VPD models."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from torch import Tensor

from vpd.pretrained.stable_diffusion import sd1_configs
from vpd.pretrained.tensors import Rules, apply_rules
from vpd.utils.errors import UserError

UNET, VAE = "model.diffusion_model.", "first_stage_model."
PREFIXES = {"unet.unet.diffusion_model.": UNET, "encoder_vq.": VAE}
"""Beginnings of a released VPD model's names -> those of Stable Diffusion's original files."""
UNUSED = re.compile(r"encoder_vq\.post_quant_conv\.|sd_model\.|unet\.unet\.diffusion_model\.out\.")
"""Tensors in the released files that influence no output."""
HEADS: Rules = (
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


def diffusers_names(names: Iterable[str]) -> dict[str, str]:
    """Map names of an original file's U-Net and VAE to ``unet.`` or ``vae.`` and diffusers' names.

    Diffusers' converter moves tensors and passes over those that it does not know, so it is given numbers in their place:
    what comes back says which name became which, and what does not come back is missing in the result.
    """
    configs, known = sd1_configs(), list(names)
    numbers = {name: torch.tensor([number]) for number, name in enumerate(known)}
    converted = {
        "unet": convert_ldm_unet_checkpoint({n: x for n, x in numbers.items() if n.startswith(UNET)}, configs["unet"]),
        "vae": convert_ldm_vae_checkpoint({n: x for n, x in numbers.items() if n.startswith(VAE)}, configs["vae"]),
    }
    return {known[int(x)]: f"{part}.{name}" for part, state in converted.items() for name, x in state.items()}


def as_matrix(target: str, tensor: Tensor) -> Tensor:
    """Return the VAE's attention projections, 1x1 convolutions in original files, as matrices; others as they are."""
    square = target.startswith("vae.") and ".attentions.0.to_" in target and tensor.ndim == 4
    return tensor[:, :, 0, 0] if square else tensor


def rename(names: Iterable[str]) -> dict[str, str]:
    """Map a released VPD model's names to ours, without those that influence no output.

    Depth files prefix the backbone with ``encoder.``, files of data-parallel training everything with ``module.``.

    Raises:
        UserError: a name is not VPD's.
    """
    bare = {name: name.removeprefix("module.").removeprefix("encoder.") for name in names}
    used = {name: _original_name(plain) for name, plain in bare.items() if not UNUSED.match(plain)}
    networks = diffusers_names(used.values())
    targets = {name: networks.get(plain) or apply_rules(HEADS, plain) for name, plain in used.items()}
    unknown = [name for name, target in targets.items() if target is None]
    if unknown:
        raise UserError(
            f"{len(unknown)} tensors have names that no released VPD model uses, first '{unknown[0]}'; "
            "give the state dict of a segmentation, referring or depth model of wl-zhao/VPD"
        )
    return {name: target for name, target in targets.items() if target is not None}


def _original_name(name: str) -> str:
    for released, original in PREFIXES.items():
        if name.startswith(released):
            return original + name.removeprefix(released)
    return name


def convert(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of a released VPD state dict of any of the three tasks; UserError if a name is not VPD's."""
    return {target: as_matrix(target, state[name]) for name, target in rename(state).items()}
