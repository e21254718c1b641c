"""Original Stable Diffusion 1 files (LDM .ckpt or .safetensors), rewritten as a diffusers pipeline folder."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from vpd.config.schema import CheckpointSpec
from vpd.pretrained.assemble import UNUSED, check_digests
from vpd.pretrained.configs import sd1_configs
from vpd.pretrained.fitting import misfits
from vpd.pretrained.names import EMA, UNET, averaged_name, target_of
from vpd.pretrained.reading import read_tensors, tensors_of
from vpd.pretrained.stable_diffusion import INDEX, SETTINGS, TOKENIZER_FORMS, WEIGHTS, check_widths
from vpd.pretrained.widths import text_config, unet_config, vae_config
from vpd.utils.digests import sha256
from vpd.utils.errors import UserError
from vpd.utils.files import write_json
from vpd.utils.progress import track

PREFIX = "text_model."
CLASSES = {
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "scheduler": ["diffusers", "PNDMScheduler"],
}
TEXT_FILES = ("config.json", WEIGHTS["text_encoder"])
Parts = dict[str, dict[str, Tensor]]


def convert_file(name: str, spec: CheckpointSpec, target: Path) -> dict:
    """Fill the folder ``target`` from the file ``spec.path``; return what the manifest says about its origin.

    The tokenizer, which such files lack, and a text encoder that is missing come from ``spec.repo``: a folder or hub
    repository. UserError if the file is damaged, not Stable Diffusion 1, or lacks tensors.
    """
    if spec.path is None:
        raise UserError(
            f"checkpoints.{name} has source 'file' but no path; give the path of a .ckpt or .safetensors file"
        )
    path = Path(spec.path)
    state = tensors_of(path, read_tensors(path), ("state_dict",))
    digest = sha256(path)
    check_digests(name, {path.name: digest}, spec.sha256, f"fetch it again, or correct checkpoints.{name}.sha256")
    _refuse_relatives(path, state)
    state, averaged = choose_weights(path, state)
    parts = split(path, state)
    words = _words(name, spec, parts)
    _fill(path, parts, words, target)
    return {"file": path.name, "sha256": digest, "ema": averaged, **words.origin}


def _refuse_relatives(path: Path, state: dict[str, Tensor]) -> None:
    """UserError for Stable Diffusion 2, XL and inpainting, by the shapes of their U-Nets."""
    entry = state.get(f"{UNET}input_blocks.0.0.weight")
    keys = next((tensor for name, tensor in state.items() if name.endswith("attn2.to_k.weight")), None)
    if entry is None or keys is None:
        raise UserError(
            f"{path} has no U-Net under {UNET}; give an original Stable Diffusion 1 file, such as sd-v1-4.ckpt"
        )
    width = keys.shape[1]
    check_widths(path, {"cross_attention_dim": width, "in_channels": entry.shape[1]}, {}, {"hidden_size": width})


def choose_weights(path: Path, state: dict[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """The tensors with the U-Net's moving average, where the file has one, in place of its last weights (S12).

    Also says what was taken. UserError if only part of the average is there.
    """
    own = [name for name in state if name.startswith(UNET)]
    present = [name for name in own if averaged_name(name) in state]
    others = {name: tensor for name, tensor in state.items() if not name.startswith(EMA)}
    if not present:
        print(f"{path.name}: the file has one set of U-Net weights, which is taken", file=sys.stderr)
        return others, "only set in the file"
    if len(present) < len(own):
        absent = next(name for name in own if name not in present)
        raise UserError(
            f"{path} has the moving average of {len(present)} of {len(own)} U-Net tensors, first missing "
            f"'{averaged_name(absent)}'; take an intact file, or one without the average (emaonly)"
        )
    print(f"{path.name}: the file has two sets of U-Net weights; the moving average (EMA) is taken", file=sys.stderr)
    return others | {name: state[averaged_name(name)] for name in own}, "chosen over the last weights"


def split(path: Path, state: dict[str, Tensor]) -> Parts:
    """Tensors in float32 by part and diffusers' name; UserError naming those that Stable Diffusion 1 has not."""
    parts: Parts = {part: {} for part in WEIGHTS}
    unknown = []
    for name, tensor in state.items():
        try:
            target = target_of(name)
        except KeyError:
            unknown.append(name)
            continue
        if target is not None:
            part, own = target.split("/", 1)
            # The VAE's attention projections, 1x1 convolutions there, are matrices here.
            square = part == "vae" and ".attentions.0.to_" in own and tensor.ndim == 4
            parts[part][own] = (tensor[:, :, 0, 0] if square else tensor).float().contiguous()
    if unknown:
        raise UserError(
            f"{path} has {len(unknown)} tensors that Stable Diffusion 1 has not, first '{unknown[0]}'; "
            "give an original file without additions such as LoRA or ControlNet"
        )
    return parts


# ------------------------------------------------------------------------------------------------------------ text side
class Words:
    """The tokenizer's files, its numbers of special tokens, and what is known about where all that comes from."""

    def __init__(self, folder: Path, origin: dict) -> None:
        self.origin, self.folder = origin, folder
        nested = folder / "tokenizer"
        self.tokenizer = nested if nested.is_dir() else folder
        if not any(all((self.tokenizer / name).is_file() for name in form) for form in TOKENIZER_FORMS):
            raise UserError(f"{folder} has no tokenizer.json, nor vocab.json with merges.txt; name a place that has")
        tokens = CLIPTokenizer.from_pretrained(self.tokenizer, local_files_only=True)
        self.count = len(tokens)
        self.special = {key: getattr(tokens, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}

    def copy(self, target: Path) -> None:
        """Copy the tokenizer's files."""
        target.mkdir()
        for name in SETTINGS["tokenizer"]:
            if (self.tokenizer / name).is_file():
                shutil.copyfile(self.tokenizer / name, target / name)


def _words(name: str, spec: CheckpointSpec, parts: Parts) -> Words:
    """Find the tokenizer, and the text encoder where ``parts`` has none: it is added there."""
    if spec.repo is None:
        raise UserError(
            f"checkpoints.{name} has source 'file' but no repo; such files have no tokenizer, so name a folder or hub "
            "repository with Stable Diffusion 1's, such as openai/clip-vit-large-patch14"
        )
    folder, origin = Path(spec.repo), {"tokenizer": spec.repo}
    if not folder.is_dir():
        from vpd.pretrained.hub import download

        files = [f"{place}{file}" for file in SETTINGS["tokenizer"] for place in ("tokenizer/", "")]
        files += [] if parts["text_encoder"] else [f"text_encoder/{file}" for file in TEXT_FILES]
        snapshot = download(name, spec, files)
        folder, origin = snapshot.folder, {"tokenizer": f"{snapshot.repo}@{snapshot.revision}"}
    if not parts["text_encoder"]:
        parts["text_encoder"] = _read_text_encoder(Path(spec.path), folder)
        origin["text_encoder"] = origin["tokenizer"]
    return Words(folder, origin)


def _read_text_encoder(path: Path, folder: Path) -> dict[str, Tensor]:
    weights = folder / "text_encoder" / WEIGHTS["text_encoder"]
    if not weights.is_file():
        raise UserError(
            f"{path} has no text encoder and {folder} has no {weights.relative_to(folder)}; name one that has"
        )
    state = load_file(weights)
    return {
        PREFIX + name.removeprefix(PREFIX): tensor.float()
        for name, tensor in state.items()
        if "position_ids" not in name
    }


# -------------------------------------------------------------------------------------------------------------- writing
def _fill(path: Path, parts: Parts, words: Words, target: Path) -> None:
    """Write the pipeline folder; UserError if the tensors are not those of the networks that their widths tell of."""
    base = sd1_configs()
    configs = {
        "unet": unet_config(base["unet"], parts["unet"]),
        "vae": vae_config(base["vae"], parts["vae"]),
        "text_encoder": text_config(base["text_encoder"], parts["text_encoder"]) | words.special,
    }
    check_widths(path, *(configs[part] for part in ("unet", "vae", "text_encoder")))
    for part, config in configs.items():
        fault = misfits(_network_tensors(part, config), parts[part])
        if fault:
            raise UserError(f"{path}: the {part} is not whole ({fault}); take an intact Stable Diffusion 1 file")
    if configs["text_encoder"]["vocab_size"] != words.count:
        raise UserError(
            f"the text encoder of {path} knows {configs['text_encoder']['vocab_size']} tokens but the tokenizer in "
            f"{words.tokenizer} {words.count}; name the tokenizer that belongs to it"
        )
    for part, config in track(configs.items(), len(configs), f"write {path.name}", "networks"):
        (target / part).mkdir()
        write_json(target / part / "config.json", config)
        save_file(parts[part], target / part / WEIGHTS[part], metadata={"format": "pt"})
    words.copy(target / "tokenizer")
    (target / "scheduler").mkdir()
    write_json(target / "scheduler" / SETTINGS["scheduler"][0], base["scheduler"])
    write_json(target / INDEX, {"_class_name": "StableDiffusionPipeline", **CLASSES, **UNUSED})


def _network_tensors(part: str, config: dict) -> dict[str, Tensor]:
    """Names and shapes of a network's weights, without memory for them."""
    with torch.device("meta"):
        if part == "text_encoder":
            state = CLIPTextModel(CLIPTextConfig.from_dict(config)).state_dict()
            return {PREFIX + name.removeprefix(PREFIX): tensor for name, tensor in state.items()}
        kind = UNet2DConditionModel if part == "unet" else AutoencoderKL
        return kind.from_config(config).state_dict()
