"""The layout of a Stable Diffusion 1 pipeline folder, and the check that a folder is one; planning imports it without torch."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vpd.utils.errors import UserError
from vpd.utils.files import read_json

if TYPE_CHECKING:
    from torch import Tensor

INDEX = "model_index.json"
CLASSES = {
    "vae": ("diffusers", "AutoencoderKL"),
    "text_encoder": ("transformers", "CLIPTextModel"),
    "tokenizer": ("transformers", "CLIPTokenizer"),
    "unet": ("diffusers", "UNet2DConditionModel"),
    "scheduler": ("diffusers", "PNDMScheduler"),
}
# Entries of model_index.json for the components that are left out.
UNUSED = {"safety_checker": [None, None], "feature_extractor": [None, None], "requires_safety_checker": False}
WEIGHTS = {
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
    "unet": "diffusion_pytorch_model.safetensors",
}
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt"
)  # fmt: skip
TOKENIZER_FORMS = (("tokenizer.json",), ("vocab.json", "merges.txt"))  # either suffices
CONFIGS = {**{part: f"{part}/config.json" for part in WEIGHTS}, "scheduler": "scheduler/scheduler_config.json"}
# In a pipeline's repository, or in one of a tokenizer alone.
TOKENIZER_PATHS = tuple(f"{parent}{name}" for name in TOKENIZER_FILES for parent in ("tokenizer/", ""))
WEIGHT_FILES = tuple(f"{part}/{name}" for part, name in WEIGHTS.items())
FILES = tuple(sorted([INDEX, *CONFIGS.values(), *WEIGHT_FILES, *(f"tokenizer/{name}" for name in TOKENIZER_FILES)]))
HALF = ".fp16.safetensors"  # ending of the variant in half precision
HALF_FILES = tuple(name.replace(".safetensors", HALF) for name in WEIGHT_FILES)
WIDTH, OTHER_WIDTHS = 768, {1024: "2", 2048: "XL"}  # of the cross-attention: Stable Diffusion 1's, and other versions'
# The published folders name the VAE's attention as diffusers did in 2022; diffusers renames it on loading.
OLD_ATTENTION = re.compile(r"(\.attentions\.\d+\.)(query|key|value|proj_attn)\.")
NEW_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def sd1_configs() -> dict[str, dict[str, Any]]:
    """Return the configurations of ``unet``, ``vae``, ``text_encoder`` and ``scheduler``, equal in all versions 1.x."""
    return json.loads(files("vpd.pretrained").joinpath("stable_diffusion_1.json").read_text(encoding="utf-8"))


def at(folder: Path, name: str) -> Path:
    """Return where a file of the checkpoint is: weights may be there in half precision only."""
    half = folder / name.replace(".safetensors", HALF)
    return half if half.is_file() and not (folder / name).is_file() else folder / name


def pipeline_files(folder: Path) -> list[str]:
    """Return the names of the files in ``folder`` that make up the checkpoint."""
    return [name for name in FILES if at(folder, name).is_file()]


def has_tokenizer(folder: Path) -> bool:
    """Tell whether ``folder`` holds a whole tokenizer, in its new or its old form."""
    return any(all((folder / name).is_file() for name in form) for form in TOKENIZER_FORMS)


def check_pipeline(folder: Path) -> dict[str, int]:
    """Compare every tensor of a pipeline in safetensors with its config.json; return the parameters of each network."""
    from transformers import CLIPTokenizer

    from vpd.utils.tensors import load_folder

    if not folder.is_dir():
        raise UserError(f"the checkpoint folder {folder} does not exist; download the checkpoint, or correct its path")
    if not (folder / INDEX).is_file():
        raise UserError(f"{folder} has no {INDEX}, so it is no diffusers pipeline folder; download or convert one")
    index = read_json(folder / INDEX)
    for part in CLASSES:
        _check_component(folder, part, index)
    configs = {part: read_json(folder / name) for part, name in CONFIGS.items()}
    check_widths(folder, configs["unet"], configs["vae"])
    prediction = configs["scheduler"].get("prediction_type", "epsilon")
    if prediction != "epsilon":
        raise UserError(f"{folder}/scheduler predicts '{prediction}', but Stable Diffusion 1 predicts 'epsilon'")
    with load_folder(folder / "tokenizer", "fetch it again"):
        CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    return {part: check_network(folder, part) for part in WEIGHTS}


def check_network(folder: Path, part: str) -> int:
    """Compare every tensor of one network of a pipeline with its config.json; return the number of parameters."""
    from vpd.models.base import misfits
    from vpd.pretrained.tensors import read_tensors

    path = at(folder, f"{part}/{WEIGHTS[part]}")
    tensors = canonical_names(part, read_tensors(path))
    if fault := misfits(network_tensors(part, read_json(folder / CONFIGS[part])), tensors):
        raise UserError(f"{path}: the {part} is not as its config.json describes it ({fault}); fetch it again")
    return sum(tensor.numel() for tensor in tensors.values())


def _check_component(folder: Path, part: str, index: dict[str, Any]) -> None:
    expected, entry = CLASSES[part][1], index.get(part)
    name = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
    if name is None:
        raise UserError(f"{folder / INDEX} lists no {part}; a Stable Diffusion 1 pipeline has {', '.join(CLASSES)}")
    # Nothing is sampled, so any scheduler will do.
    if name not in (expected, "CLIPTokenizerFast") and part != "scheduler":
        raise UserError(f"{folder / INDEX}: {part} is a {name}, but Stable Diffusion 1 has a {expected}")
    lacking = "vocab.json and merges.txt" if part == "tokenizer" else Path(CONFIGS[part]).name
    if not (has_tokenizer(folder / part) if part == "tokenizer" else (folder / CONFIGS[part]).is_file()):
        raise UserError(f"{folder / part} lacks {lacking}; the download is incomplete, fetch it again")
    if part in WEIGHTS and not at(folder, f"{part}/{WEIGHTS[part]}").is_file():
        others = ", ".join(sorted(path.name for path in (folder / part).glob("*.bin"))) or "no weights"
        raise UserError(
            f"{folder / part} has {others} where {WEIGHTS[part]} is needed; only safetensors are read, "
            "so fetch that file or save the pipeline again with save_pretrained"
        )


def check_widths(source: Path, unet: dict[str, Any], vae: dict[str, Any]) -> None:
    """Refuse Stable Diffusion 2, XL and inpainting by their configurations."""
    width = unet.get("cross_attention_dim")
    if version := OTHER_WIDTHS.get(width or 0):
        raise UserError(
            f"{source}: the U-Net is a Stable Diffusion {version} U-Net (cross-attention width {width}); "
            f"Stable Diffusion 1 has {WIDTH}"
        )
    latent, channels = vae.get("latent_channels", 4), unet.get("in_channels", 4)
    if (latent, channels) != (4, 4):
        raise UserError(
            f"{source}: the U-Net takes {channels} channels and the VAE makes {latent}, "
            "but Stable Diffusion 1 has 4 and 4; inpainting and upscaling checkpoints cannot be used"
        )


def canonical_names(part: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename tensors as the installed libraries do on loading, and drop the positions' numbers, which are no weights."""
    if part == "text_encoder":
        return {name.removeprefix("text_model."): x for name, x in tensors.items() if "position_ids" not in name}
    if part == "vae":
        return {OLD_ATTENTION.sub(lambda m: f"{m[1]}{NEW_ATTENTION[m[2]]}.", name): x for name, x in tensors.items()}
    return tensors


def network_tensors(part: str, config: dict[str, Any]) -> dict[str, Tensor]:
    """Return names and shapes of a network's weights, on the meta device."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from vpd.utils.tensors import understood

    with torch.device("meta"), understood(Path(CONFIGS[part]), "it does not describe the network: fetch it again"):
        if part == "text_encoder":
            return canonical_names(part, CLIPTextModel(CLIPTextConfig.from_dict(config)).state_dict())
        return (UNet2DConditionModel if part == "unet" else AutoencoderKL).from_config(config).state_dict()
