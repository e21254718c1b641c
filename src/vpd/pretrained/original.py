"""Files with Latent Diffusion's names: original Stable Diffusion 1 files, to a pipeline folder, and the authors' VPD models."""

import re
import shutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTokenizer

from vpd.config.schema import CheckpointSpec
from vpd.models.base import misfits
from vpd.pretrained import stable_diffusion as sd
from vpd.pretrained.hub import download, repositories
from vpd.pretrained.tensors import Rules, apply_rules, read_tensors
from vpd.utils.errors import UserError
from vpd.utils.files import write_json

FAMILY = "stable-diffusion-1"
PARTS = sd.FAMILIES[FAMILY].networks
UNET, VAE = "model.diffusion_model.", "first_stage_model."
TEXT, EMA = "cond_stage_model.transformer.", "model_ema."
NO_WEIGHTS = re.compile(  # noise schedules, the VAE's training loss and counters
    r"betas|alphas_cumprod(_prev)?|(sqrt_|log_|posterior_).+|logvar|lvlb_weights|scale_factor|model_ema\.(decay|num_updates)"
    r"|first_stage_model\.loss\..+|.+\.embeddings\.position_ids|cond_stage_model\.(logit_scale|text_projection)"
)
# Beginnings of a released VPD model's names -> those of Stable Diffusion's original files; what influences no output.
PREFIXES = {"unet.unet.diffusion_model.": UNET, "encoder_vq.": VAE}
UNUSED = re.compile(r"encoder_vq\.post_quant_conv\.|sd_model\.|unet\.unet\.diffusion_model\.out\.")
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
Parts = dict[str, dict[str, Tensor]]  # under diffusers' and transformers' names, by ``unet``, ``vae``, ``text_encoder``


def convert_file(where: str, path: Path, spec: CheckpointSpec, target: Path) -> tuple[dict[str, int], dict[str, str]]:
    """Write the pipeline folder of an original file to the empty folder ``target``; return parameters and origin."""
    state = read_tensors(path, ("state_dict",))
    _refuse_relatives(path, state)
    state, chosen = _choose_weights(path, state)
    parts = _split(path, state)
    configs = sd.configs(FAMILY)
    for part in PARTS:
        if fault := misfits(sd.network_tensors(part, configs[part]), parts[part]):
            raise UserError(f"{path}: the {part} is not whole ({fault}); take an intact Stable Diffusion 1 file")
    source = _copy_tokenizer(where, spec, target / "tokenizer", configs["text_encoder"])
    for part in (*PARTS, "scheduler"):
        (target / part).mkdir()
        write_json(target / sd.CONFIGS[part], configs[part])
        if part in PARTS:
            prefix = "text_model." if part == "text_encoder" else ""  # as in the published folders
            tensors = {prefix + name: tensor for name, tensor in parts[part].items()}
            save_file(tensors, target / part / sd.WEIGHTS[part], metadata={"format": "pt"})
    write_json(target / sd.INDEX, {"_class_name": "StableDiffusionPipeline", **sd.CLASSES, **sd.UNUSED})
    counts = {part: sum(x.numel() for x in parts[part].values()) for part in PARTS}
    return counts, {"ema": chosen, "tokenizer": source}


def _refuse_relatives(path: Path, state: dict[str, Tensor]) -> None:
    """Refuse Stable Diffusion 2, XL and inpainting, by the shapes of their U-Nets."""
    entry = state.get(f"{UNET}input_blocks.0.0.weight")
    keys = next((tensor for name, tensor in state.items() if name.endswith("attn2.to_k.weight")), None)
    if entry is None or keys is None:
        raise UserError(
            f"{path} has no U-Net under {UNET}; give an original Stable Diffusion 1 file, such as sd-v1-4.ckpt"
        )
    found = {"cross_attention_dim": keys.shape[1], "in_channels": entry.shape[1]}
    sd.check_family(path, found, sd.FAMILIES[FAMILY])


def _choose_weights(path: Path, state: dict[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """Put the U-Net's moving average (EMA), where there is one, in the place of its last weights (S12); say which it is."""
    own = {name: EMA + name.removeprefix("model.").replace(".", "") for name in state if name.startswith(UNET)}
    lacking = [average for average in own.values() if average not in state]
    others = {name: tensor for name, tensor in state.items() if not name.startswith(EMA)}
    if len(lacking) == len(own):
        print(f"{path.name}: the file has one set of U-Net weights, which is used", file=sys.stderr)
        return others, "only set in the file"
    if lacking:
        raise UserError(
            f"{path} has the moving average of {len(own) - len(lacking)} of {len(own)} U-Net tensors, first missing "
            f"'{lacking[0]}'; take an intact file, or one without the average (emaonly)"
        )
    print(f"{path.name}: the file has two sets of U-Net weights; the moving average (EMA) is used", file=sys.stderr)
    return others | {name: state[average] for name, average in own.items()}, "chosen over the last weights"


def _split(path: Path, state: dict[str, Tensor]) -> Parts:
    """Rename the tensors, in float32; UserError if Stable Diffusion 1 does not have one of them."""
    weights = {name: tensor for name, tensor in state.items() if not NO_WEIGHTS.fullmatch(name)}
    targets = diffusers_names(name for name in weights if name.startswith((UNET, VAE)))
    targets |= {name: f"text_encoder.{name.removeprefix(TEXT)}" for name in weights if name.startswith(TEXT)}
    unknown = [name for name in weights if name not in targets]
    if unknown:
        raise UserError(
            f"{path} has {len(unknown)} tensors that Stable Diffusion 1 does not have, first '{unknown[0]}'; "
            "give an original file without additions such as LoRA or ControlNet"
        )
    parts: Parts = {part: {} for part in PARTS}
    for name, target in targets.items():
        part, own = target.split(".", 1)
        parts[part][own] = as_matrix(target, weights[name]).float().contiguous()
    return {part: sd.canonical_names(part, tensors) for part, tensors in parts.items()}


def _copy_tokenizer(where: str, spec: CheckpointSpec, target: Path, text: dict[str, Any]) -> str:
    """Copy the tokenizer from ``spec.repo``, and its special tokens' numbers to the configuration; return its origin."""
    if spec.repo is None:
        raise UserError(
            f"{where} has source 'file' but no repo; such files have no tokenizer, so name a folder or hub "
            "repository with Stable Diffusion 1's, such as openai/clip-vit-large-patch14"
        )
    folder, origin = Path(spec.repo), spec.repo
    if not folder.is_dir():
        repository = download(where, repositories(where, spec), sd.TOKENIZER_PATHS)
        folder, origin = repository.folder, f"{repository.repo}@{repository.revision}"
    source = folder / "tokenizer" if (folder / "tokenizer").is_dir() else folder
    if not sd.has_tokenizer(source):
        raise UserError(f"{folder} has no tokenizer.json, nor vocab.json with merges.txt; name a folder that has")
    tokens = CLIPTokenizer.from_pretrained(source, local_files_only=True)
    text |= {key: getattr(tokens, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    target.mkdir()
    for name in filter(lambda name: (source / name).is_file(), sd.TOKENIZER_FILES):
        shutil.copyfile(source / name, target / name)
    return origin


def diffusers_names(names: Iterable[str]) -> dict[str, str]:
    """Map names of an original file's U-Net and VAE to ``unet.`` or ``vae.`` and diffusers' names; unknown ones are lost."""
    # Diffusers' converter moves tensors; numbers in their place say which name became which.
    configs, known = sd.configs(FAMILY), list(names)
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
    """Map a released VPD model's names to ours, without those that influence no output; UserError if one is not VPD's."""
    # Depth files prefix the backbone with ``encoder.``, files of data-parallel training everything with ``module.``.
    bare = {name: name.removeprefix("module.").removeprefix("encoder.") for name in names}
    used = {name: plain for name, plain in bare.items() if not UNUSED.match(plain)}
    for released, original in PREFIXES.items():
        used = {name: re.sub(f"^{re.escape(released)}", original, plain) for name, plain in used.items()}
    networks = diffusers_names(used.values())
    targets = {name: networks.get(plain) or apply_rules(HEADS, plain) for name, plain in used.items()}
    unknown = [name for name, target in targets.items() if target is None]
    if unknown:
        raise UserError(
            f"{len(unknown)} tensors have names that no released VPD model uses, first '{unknown[0]}'; "
            "give the state dict of a segmentation, referring or depth model of wl-zhao/VPD"
        )
    return {name: target for name, target in targets.items() if target is not None}


def convert(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of a released VPD state dict of any of the three tasks; UserError if a name is not VPD's."""
    return {target: as_matrix(target, state[name]) for name, target in rename(state).items()}
