"""The layout of a diffusion pipeline's folder by family, and the check that it is one; planning imports it without torch."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
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
SECOND = {
    "text_encoder_2": ("transformers", "CLIPTextModelWithProjection"),
    "tokenizer_2": ("transformers", "CLIPTokenizer"),
}
T5 = "T5EncoderModel"
PIXART = {
    "vae": CLASSES["vae"],
    "text_encoder": ("transformers", T5),
    "tokenizer": ("transformers", "T5Tokenizer"),
    "transformer": ("diffusers", "PixArtTransformer2DModel"),
    "scheduler": ("diffusers", "DPMSolverMultistepScheduler"),
}
SD3 = {
    "vae": CLASSES["vae"],
    "text_encoder": SECOND["text_encoder_2"],
    "tokenizer": CLASSES["tokenizer"],
    **SECOND,
    "text_encoder_3": ("transformers", T5),
    "tokenizer_3": ("transformers", "T5Tokenizer"),
    "transformer": ("diffusers", "SD3Transformer2DModel"),
    "scheduler": ("diffusers", "FlowMatchEulerDiscreteScheduler"),
}


@dataclass(frozen=True)
class Family:
    """What pipelines of one architecture have in common; its true sizes are in ``configs``."""

    title: str
    width: int  # of the text tokens, as published
    predictions: tuple[str, ...]  # of the output layer, which no feature comes from (U1)
    components: Mapping[str, tuple[str, str]]  # library and class of each part
    latent: int = 4  # channels of the latents
    optional: tuple[str, ...] = ()  # parts that a pipeline has all of, or none

    @property
    def denoiser(self) -> str:
        """Name of the part that features come from."""
        return "transformer" if "transformer" in self.components else "unet"

    @property
    def networks(self) -> list[str]:
        """Names of the parts that have weights."""
        return [part for part in self.components if part in WEIGHTS]

    @property
    def weights(self) -> list[str]:
        """Names of the files of these parts' weights."""
        return [f"{part}/{WEIGHTS[part]}" for part in self.networks]

    @property
    def files(self) -> list[str]:
        """Names of the files that a pipeline may have."""
        return [name for name in FILES if name == INDEX or Path(name).parts[0] in self.components]


BOTH = ("epsilon", "v_prediction")
FAMILIES = {
    "stable-diffusion-1": Family("Stable Diffusion 1", 768, ("epsilon",), CLASSES),
    "stable-diffusion-2": Family("Stable Diffusion 2", 1024, BOTH, CLASSES),
    "stable-diffusion-xl": Family("Stable Diffusion XL", 2048, BOTH, CLASSES | SECOND),
    "stable-diffusion-3": Family(
        "Stable Diffusion 3", 4096, ("flow_prediction",), SD3, 16, ("text_encoder_3", "tokenizer_3")
    ),
    "pixart-alpha": Family("PixArt", 4096, ("epsilon",), PIXART),
}
# Entries of model_index.json for the components that are left out.
UNUSED = {"safety_checker": [None, None], "feature_extractor": [None, None], "requires_safety_checker": False}
WEIGHTS = {
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
    "unet": "diffusion_pytorch_model.safetensors",
    "text_encoder_2": "model.safetensors",
}
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt"
)  # fmt: skip
TOKENIZER_FORMS = (("tokenizer.json",), ("vocab.json", "merges.txt"))  # either suffices
CONFIGS = {**{part: f"{part}/config.json" for part in WEIGHTS}, "scheduler": "scheduler/scheduler_config.json"}
# In a pipeline's repository, or in one of a tokenizer alone.
TOKENIZER_PATHS = tuple(f"{parent}{name}" for name in TOKENIZER_FILES for parent in ("tokenizer/", ""))
WEIGHT_FILES = tuple(f"{part}/{name}" for part, name in WEIGHTS.items())
TOKENIZERS = tuple(f"{part}/{name}" for part in ("tokenizer", "tokenizer_2") for name in TOKENIZER_FILES)
FILES = tuple(sorted([INDEX, *CONFIGS.values(), *WEIGHT_FILES, *TOKENIZERS]))
HALF = ".fp16.safetensors"  # ending of the variant in half precision
HALF_FILES = tuple(name.replace(".safetensors", HALF) for name in WEIGHT_FILES)
LATENT = 4  # channels of the latents
# The published folders name the VAE's attention as diffusers did in 2022; diffusers renames it on loading.
OLD_ATTENTION = re.compile(r"(\.attentions\.\d+\.)(query|key|value|proj_attn)\.")
NEW_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def configs(family: str = "stable-diffusion-1") -> dict[str, dict[str, Any]]:
    """Return the configurations of a family's networks and scheduler at their true size, equal in all its versions."""
    name = f"{family.replace('-', '_')}.json"
    return json.loads(files("vpd.pretrained").joinpath(name).read_text(encoding="utf-8"))


def family_of(unet: Mapping[str, Any]) -> Family:
    """Tell whose U-Net a configuration describes: by the width of its cross-attention, or of small ones by its design."""
    for family in FAMILIES.values():
        if unet.get("cross_attention_dim") == family.width:
            return family
    if unet.get("addition_embed_type") == "text_time":
        return FAMILIES["stable-diffusion-xl"]
    return FAMILIES["stable-diffusion-2" if unet.get("use_linear_projection") else "stable-diffusion-1"]


def at(folder: Path, name: str) -> Path:
    """Return where a file of the checkpoint is: weights may be there in half precision only."""
    half = folder / name.replace(".safetensors", HALF)
    return half if half.is_file() and not (folder / name).is_file() else folder / name


def pipeline_files(folder: Path, family: Family) -> list[str]:
    """Return the names of the files in ``folder`` that make up a checkpoint of a family."""
    return [name for name in family.files if at(folder, name).is_file()]


def has_tokenizer(folder: Path) -> bool:
    """Tell whether ``folder`` holds a whole tokenizer, in its new or its old form."""
    return any(all((folder / name).is_file() for name in form) for form in TOKENIZER_FORMS)


def check_pipeline(folder: Path, family: Family) -> dict[str, int]:
    """Check that a pipeline in safetensors is of a family, and compare every tensor with its config.json.

    Returns the parameters of each network.
    """
    from transformers import CLIPTokenizer

    from vpd.utils.tensors import load_folder

    if not folder.is_dir():
        raise UserError(f"the checkpoint folder {folder} does not exist; download the checkpoint, or correct its path")
    if not (folder / INDEX).is_file():
        raise UserError(f"{folder} has no {INDEX}, so it is no diffusers pipeline folder; download or convert one")
    index = read_json(folder / INDEX)
    # The U-Net comes first: it says which family it is, where the others would only be missing.
    for part in ("unet", *family.components):
        _check_component(folder, part, index, family)
        if part == "unet":
            check_family(folder, read_json(folder / CONFIGS[part]), family)
    found = {part: read_json(folder / CONFIGS[part]) for part in family.components if part in CONFIGS}
    _check_fit(folder, found, family)
    for part in (part for part in family.components if part not in CONFIGS):
        with load_folder(folder / part, "fetch it again"):
            CLIPTokenizer.from_pretrained(folder / part, local_files_only=True)
    return {part: check_network(folder, part) for part in family.networks}


def check_network(folder: Path, part: str) -> int:
    """Compare every tensor of one network of a pipeline with its config.json; return the number of parameters."""
    from vpd.models.base import misfits
    from vpd.pretrained.tensors import read_tensors

    path = at(folder, f"{part}/{WEIGHTS[part]}")
    tensors = canonical_names(part, read_tensors(path))
    if fault := misfits(network_tensors(part, read_json(folder / CONFIGS[part])), tensors):
        raise UserError(f"{path}: the {part} is not as its config.json describes it ({fault}); fetch it again")
    return sum(tensor.numel() for tensor in tensors.values())


def _check_component(folder: Path, part: str, index: dict[str, Any], family: Family) -> None:
    expected, entry = family.components[part][1], index.get(part)
    name = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
    if name is None:
        known = ", ".join(family.components)
        raise UserError(f"{folder / INDEX} lists no {part}; a {family.title} pipeline has {known}")
    # Nothing is sampled, so any scheduler will do.
    if name not in (expected, "CLIPTokenizerFast") and part != "scheduler":
        raise UserError(f"{folder / INDEX}: {part} is a {name}, but {family.title} has a {expected}")
    lacking = Path(CONFIGS[part]).name if part in CONFIGS else "vocab.json and merges.txt"
    if not ((folder / CONFIGS[part]).is_file() if part in CONFIGS else has_tokenizer(folder / part)):
        raise UserError(f"{folder / part} lacks {lacking}; the download is incomplete, fetch it again")
    if part in WEIGHTS and not at(folder, f"{part}/{WEIGHTS[part]}").is_file():
        others = ", ".join(sorted(path.name for path in (folder / part).glob("*.bin"))) or "no weights"
        raise UserError(
            f"{folder / part} has {others} where {WEIGHTS[part]} is needed; only safetensors are read, "
            "so fetch that file or save the pipeline again with save_pretrained"
        )


def check_family(source: Path, unet: Mapping[str, Any], family: Family) -> None:
    """Refuse U-Nets of other families, and those for inpainting and upscaling, by their configuration."""
    width, channels = unet.get("cross_attention_dim"), unet.get("in_channels", LATENT)
    if (own := family_of(unet)) != family:
        raise UserError(
            f"{source}: the U-Net is a {own.title} U-Net (cross-attention width {width}), not one of {family.title} "
            f"({family.width}); correct `family`, or name another source"
        )
    if channels != LATENT:
        raise UserError(
            f"{source}: the U-Net takes {channels} channels, but {family.title} takes {LATENT}; inpainting and upscaling "
            "checkpoints cannot be used"
        )


def _check_fit(folder: Path, found: Mapping[str, dict[str, Any]], family: Family) -> None:
    """Refuse parts of a pipeline that do not belong together, or to the family."""
    from vpd.models.diffusion import check_texts
    from vpd.utils.tensors import understood

    prediction = found["scheduler"].get("prediction_type", "epsilon")
    if prediction not in family.predictions:
        wanted = "' or '".join(family.predictions)
        raise UserError(f"{folder}/scheduler predicts '{prediction}', but {family.title} predicts '{wanted}'")
    latent, texts = found["vae"].get("latent_channels", LATENT), [found[part] for part in found if "text" in part]
    if latent != LATENT:
        raise UserError(f"{folder}: the VAE makes {latent} channels, but the U-Net takes {LATENT}; fetch it again")
    with understood(folder, "fetch it again"):
        projected = texts[1]["projection_dim"] if len(texts) > 1 else 0
        check_texts(folder, found["unet"], sum(config["hidden_size"] for config in texts), projected)


def canonical_names(part: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename tensors as the installed libraries do on loading, and drop the positions' numbers, which are no weights."""
    if part.startswith("text_encoder"):
        return {name.removeprefix("text_model."): x for name, x in tensors.items() if "position_ids" not in name}
    if part == "vae":
        return {OLD_ATTENTION.sub(lambda m: f"{m[1]}{NEW_ATTENTION[m[2]]}.", name): x for name, x in tensors.items()}
    return tensors


def network_tensors(part: str, config: dict[str, Any]) -> dict[str, Tensor]:
    """Return names and shapes of a network's weights, on the meta device."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    from vpd.utils.tensors import understood

    with torch.device("meta"), understood(Path(CONFIGS[part]), "it does not describe the network: fetch it again"):
        if part.startswith("text_encoder"):
            model = CLIPTextModel if part == "text_encoder" else CLIPTextModelWithProjection
            return canonical_names(part, model(CLIPTextConfig.from_dict(config)).state_dict())
        return (UNet2DConditionModel if part == "unet" else AutoencoderKL).from_config(config).state_dict()
