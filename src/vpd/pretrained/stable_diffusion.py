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
from vpd.utils.files import read_json, read_text

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
        """Names of files that each pipeline has; large weights may be in shards instead, or left out."""
        large = [part for part in self.networks if part == "transformer" or self.components[part][1] == T5]
        return [f"{part}/{WEIGHTS[part]}" for part in self.networks if part not in large]

    @property
    def files(self) -> list[str]:
        """Names of the files that a pipeline may have, and patterns of them."""
        names = [name for name in FILES if name == INDEX or Path(name).parts[0] in self.components]
        return names + [shard_pattern(part) for part in self.networks]


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
    "text_encoder_3": "model.safetensors",
    "transformer": "diffusion_pytorch_model.safetensors",
}
SHARD_INDEX = ".index.json"  # ending of the name of a list of weights in parts
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
    "spiece.model",
)  # fmt: skip
TOKENIZER_FORMS = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("spiece.model",))  # each suffices
CONFIGS = {**{part: f"{part}/config.json" for part in WEIGHTS}, "scheduler": "scheduler/scheduler_config.json"}
# In a pipeline's repository, or in one of a tokenizer alone.
TOKENIZER_PATHS = tuple(f"{parent}{name}" for name in TOKENIZER_FILES for parent in ("tokenizer/", ""))
WEIGHT_FILES = tuple(f"{part}/{name}" for part, name in WEIGHTS.items())
TOKENIZERS = tuple(f"{part}/{name}" for part in ("tokenizer", "tokenizer_2", "tokenizer_3") for name in TOKENIZER_FILES)
SHARD_INDICES = tuple(f"{name}{SHARD_INDEX}" for name in WEIGHT_FILES)
FILES = tuple(sorted([INDEX, *CONFIGS.values(), *WEIGHT_FILES, *SHARD_INDICES, *TOKENIZERS]))
HALF = ".fp16.safetensors"  # ending of the variant in half precision
HALF_FILES = tuple(name.replace(".safetensors", HALF) for name in WEIGHT_FILES)
# What was saved with the weights and is no weight: positions are computed, a null caption is for training alone.
NO_WEIGHTS = re.compile(
    r".*position_ids|pos_embed\.pos_embed|caption_projection\.y_embedding|encoder\.embed_tokens\.weight"
)
# The published folders name the VAE's attention as diffusers did in 2022; diffusers renames it on loading.
OLD_ATTENTION = re.compile(r"(\.attentions\.\d+\.)(query|key|value|proj_attn)\.")
NEW_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def configs(family: str = "stable-diffusion-1") -> dict[str, dict[str, Any]]:
    """Return the configurations of a family's networks and scheduler at their true size, equal in all its versions."""
    name = f"{family.replace('-', '_')}.json"
    return json.loads(files("vpd.pretrained").joinpath(name).read_text(encoding="utf-8"))


TRANSFORMERS = {
    "SD3Transformer2DModel": "stable-diffusion-3",
    "PixArtTransformer2DModel": "pixart-alpha",
    "Transformer2DModel": "pixart-alpha",  # its name when PixArt was published
}


def family_of(config: Mapping[str, Any]) -> Family | None:
    """Tell whose U-Net or transformer a configuration describes; None if it is of no family here.

    Transformers have a class of their own; U-Nets differ in the width of their cross-attention, or if small by their design.
    """
    kind = config.get("_class_name", "UNet2DConditionModel")
    if kind != "UNet2DConditionModel":
        return FAMILIES.get(TRANSFORMERS.get(kind, ""))
    for family in FAMILIES.values():
        if config.get("cross_attention_dim") == family.width:
            return family
    if config.get("addition_embed_type") == "text_time":
        return FAMILIES["stable-diffusion-xl"]
    return FAMILIES["stable-diffusion-2" if config.get("use_linear_projection") else "stable-diffusion-1"]


def at(folder: Path, name: str) -> Path:
    """Return where a file of the checkpoint is: weights may be there in half precision only."""
    half = folder / name.replace(".safetensors", HALF)
    return half if half.is_file() and not (folder / name).is_file() else folder / name


def pipeline_files(folder: Path, family: Family) -> list[str]:
    """Return the names of the files in ``folder`` that make up a checkpoint of a family."""
    whole = [name for name in family.files if at(folder, name).is_file()]
    return whole + [name for name in shards(folder) if Path(name).parts[0] in family.networks]


def shards(folder: Path) -> list[str]:
    """Return the names of weights in parts in ``folder``."""
    return sorted(path.relative_to(folder).as_posix() for part in WEIGHTS for path in folder.glob(shard_pattern(part)))


def shard_pattern(part: str) -> str:
    """Return the pattern of the names of a network's weights in parts."""
    return f"{part}/{WEIGHTS[part].replace('.safetensors', '-?????-of-?????.safetensors')}"


def weight_files(folder: Path, part: str) -> list[Path]:
    """Return the files of a network's weights: one, or those that an index lists; UserError if one of these is missing."""
    from vpd.utils.tensors import understood

    path = at(folder, f"{part}/{WEIGHTS[part]}")
    index = path.with_name(path.name + SHARD_INDEX)
    if path.is_file() or not index.is_file():
        return [path]
    with understood(index, "fetch it again"):
        names = sorted(set(read_json(index)["weight_map"].values()))
    if missing := [name for name in names if f"{part}/{name}" not in shards(folder)]:
        raise UserError(f"{folder / part} lacks {missing[0]}, which {index.name} lists; fetch it again")
    return [folder / part / name for name in names]


def has_tokenizer(folder: Path) -> bool:
    """Tell whether ``folder`` holds a whole tokenizer, in its new or its old form."""
    return any(all((folder / name).is_file() for name in form) for form in TOKENIZER_FORMS)


def check_pipeline(folder: Path, family: Family) -> dict[str, int]:
    """Check that a pipeline in safetensors is of a family, and compare every tensor with its config.json.

    Returns the parameters of each network.
    """
    from vpd.models.text import load_tokenizer

    if not folder.is_dir():
        raise UserError(f"the checkpoint folder {folder} does not exist; download the checkpoint, or correct its path")
    if not (folder / INDEX).is_file():
        raise UserError(f"{folder} has no {INDEX}, so it is no diffusers pipeline folder; download or convert one")
    index = read_json(folder / INDEX)
    parts = _parts(folder, index, family)
    # The U-Net or transformer comes first: it says which family it is, where the others would only be missing.
    for part in (family.denoiser, *parts):
        _check_component(folder, part, index, family)
        if part == family.denoiser:
            check_family(folder, read_json(folder / CONFIGS[part]), family)
    found = {part: read_json(folder / CONFIGS[part]) for part in parts if part in WEIGHTS}
    _check_fit(folder, found, _scheduler(folder / CONFIGS["scheduler"]), family)
    for part in (part for part in parts if part not in CONFIGS):
        load_tokenizer(folder / part, family.components[part][1], "fetch it again")
    return {part: check_network(folder, part) for part in family.networks if part in parts}


def _parts(folder: Path, index: Mapping[str, Any], family: Family) -> list[str]:
    """Return the parts of a family that a pipeline has to have; UserError if it is one of another design."""
    other = "unet" if family.denoiser == "transformer" else "transformer"
    if not _listed(index, family.denoiser) and (config := folder / CONFIGS[other]).is_file():
        check_family(folder, read_json(config), family)
    if any(_listed(index, part) for part in family.optional):
        return list(family.components)
    if left := [part for part in family.optional if (folder / part).exists()]:
        raise UserError(
            f"{folder / INDEX} leaves {left[0]} out, but there is a folder {left[0]}/; remove it, or list it"
        )
    return [part for part in family.components if part not in family.optional]


def _scheduler(path: Path) -> dict[str, Any]:
    """Read a scheduler's configuration, in which infinities are usual; UserError if it is damaged."""
    from vpd.utils.tensors import understood

    with understood(path, "fetch it again"):
        return dict(json.loads(read_text(path)))


def _listed(index: Mapping[str, Any], part: str) -> str | None:
    """Return the class of a part in a pipeline's index, None if it is left out."""
    entry = index.get(part)
    return entry[1] if isinstance(entry, list) and len(entry) == 2 else None


def check_network(folder: Path, part: str) -> int:
    """Compare every tensor of one network of a pipeline with its config.json; return the number of parameters."""
    from vpd.models.base import misfits
    from vpd.pretrained.tensors import read_tensors

    paths = weight_files(folder, part)
    tensors = canonical_names(part, {name: x for path in paths for name, x in read_tensors(path).items()})
    if fault := misfits(network_tensors(part, read_json(folder / CONFIGS[part])), tensors):
        raise UserError(f"{paths[0]}: the {part} is not as its config.json describes it ({fault}); fetch it again")
    return sum(tensor.numel() for tensor in tensors.values())


def _check_component(folder: Path, part: str, index: dict[str, Any], family: Family) -> None:
    expected, name = family.components[part][1], _listed(index, part)
    if name is None:
        known = ", ".join(family.components)
        raise UserError(f"{folder / INDEX} lists no {part}; a {family.title} pipeline has {known}")
    # Nothing is sampled, so any scheduler will do; what a transformer is, its configuration says.
    if name not in (expected, f"{expected}Fast") and part not in ("scheduler", "transformer"):
        raise UserError(f"{folder / INDEX}: {part} is a {name}, but {family.title} has a {expected}")
    lacking = Path(CONFIGS[part]).name if part in CONFIGS else "vocab.json and merges.txt"
    if not ((folder / CONFIGS[part]).is_file() if part in CONFIGS else has_tokenizer(folder / part)):
        raise UserError(f"{folder / part} lacks {lacking}; the download is incomplete, fetch it again")
    if part in WEIGHTS and not weight_files(folder, part)[0].is_file():
        others = ", ".join(sorted(path.name for path in (folder / part).glob("*.bin"))) or "no weights"
        raise UserError(
            f"{folder / part} has {others} where {WEIGHTS[part]} is needed; only safetensors are read, "
            "so fetch that file or save the pipeline again with save_pretrained"
        )


def check_family(source: Path, config: Mapping[str, Any], family: Family) -> None:
    """Refuse U-Nets and transformers of other families, and those for inpainting and upscaling, by their configuration."""
    channels, own = config.get("in_channels", family.latent), family_of(config)
    if own is None:
        known = ", ".join(FAMILIES)
        raise UserError(f"{source}: a {config['_class_name']} is of no family here; use a pipeline of one of {known}")
    if own != family:
        width = config.get("cross_attention_dim")
        detail = f" (cross-attention width {width}), not one of {family.title} ({family.width})"
        if "transformer" in (own.denoiser, family.denoiser):
            detail = f", not one of {family.title}"
        raise UserError(
            f"{source}: the {_noun(own)} is a {own.title} {_noun(own)}{detail}; correct `family`, or name another source"
        )
    if channels != family.latent:
        raise UserError(
            f"{source}: the {_noun(own)} takes {channels} channels, but {family.title} takes {family.latent}; inpainting and "
            "upscaling checkpoints cannot be used"
        )


def _noun(family: Family) -> str:
    return "U-Net" if family.denoiser == "unet" else "transformer"


def _check_fit(folder: Path, found: Mapping[str, dict[str, Any]], scheduler: Mapping[str, Any], family: Family) -> None:
    """Refuse parts of a pipeline that do not belong together, or to the family."""
    from vpd.models.diffusion import check_texts, token_width
    from vpd.utils.tensors import understood

    flows = "FlowMatch" in scheduler.get("_class_name", "")
    prediction = scheduler.get("prediction_type", "flow_prediction" if flows else "epsilon")
    if prediction not in family.predictions:
        wanted = "' or '".join(family.predictions)
        raise UserError(f"{folder}/scheduler predicts '{prediction}', but {family.title} predicts '{wanted}'")
    if (latent := found["vae"].get("latent_channels", 4)) != family.latent:
        raise UserError(
            f"{folder}: the VAE makes {latent} channels, but the {_noun(family)} takes {family.latent}; fetch it again"
        )
    with understood(folder, "fetch it again"):
        kinds = {part: family.components[part][1] for part in found if "text" in part}
        denoiser, together = (
            found[family.denoiser],
            sum(found[part]["hidden_size"] for part in kinds if kinds[part] != T5),
        )
        # CLIP's states are filled up to the width of T5's, or, where T5 is left out, to what the transformer takes.
        third = [found[part]["d_model"] for part in kinds if kinds[part] == T5]
        filled = third or [token_width(denoiser)] * bool(family.optional)
        projections = [found[part]["projection_dim"] for part in kinds if kinds[part] == "CLIPTextModelWithProjection"]
        projected = sum(projections) if len(projections) > 1 else projections[0] if projections else 0
        check_texts(folder, denoiser, max(together, *filled, 0), projected)


def canonical_names(part: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename tensors as the installed libraries do on loading, and drop what is no weight."""
    tensors = {name: x for name, x in tensors.items() if not NO_WEIGHTS.fullmatch(name)}
    if part.startswith("text_encoder"):
        return {name.removeprefix("text_model."): x for name, x in tensors.items()}
    if part == "vae":
        return {OLD_ATTENTION.sub(lambda m: f"{m[1]}{NEW_ATTENTION[m[2]]}.", name): x for name, x in tensors.items()}
    return tensors


def network_tensors(part: str, config: dict[str, Any]) -> dict[str, Tensor]:
    """Return names and shapes of a network's weights, on the meta device."""
    import torch
    from diffusers import AutoencoderKL
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

    from vpd.models.diffusion import network_class
    from vpd.utils.tensors import understood

    with torch.device("meta"), understood(Path(CONFIGS[part]), "it does not describe the network: fetch it again"):
        if part.startswith("text_encoder"):
            if config.get("model_type") == "t5":
                return canonical_names(part, T5EncoderModel(T5Config.from_dict(config)).state_dict())
            projects = part != "text_encoder" or config.get("architectures") == ["CLIPTextModelWithProjection"]
            model = CLIPTextModelWithProjection if projects else CLIPTextModel
            return canonical_names(part, model(CLIPTextConfig.from_dict(config)).state_dict())
        network: Any = AutoencoderKL if part == "vae" else network_class(config)
        return canonical_names(part, network.from_config(config).state_dict())
