"""Original Stable Diffusion 1 files (.ckpt or .safetensors of Latent Diffusion), rewritten as a diffusers pipeline folder.

Names are diffusers' own (``vpd.pretrained.keymap``). Its single-file loading is not used as a whole: it takes the last
weights where a file has averaged ones too, passes over unknown tensors, and asks the hub for configurations.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTokenizer

from vpd.config.schema import CheckpointSpec
from vpd.pretrained import stable_diffusion as sd
from vpd.pretrained.keymap import UNET, VAE, as_matrix, diffusers_names
from vpd.pretrained.tensors import misfits, read_tensors
from vpd.utils.errors import UserError
from vpd.utils.files import write_json

TEXT, EMA = "cond_stage_model.transformer.", "model_ema."
NO_WEIGHTS = re.compile(
    r"betas|alphas_cumprod(_prev)?|(sqrt_|log_|posterior_).+|logvar|lvlb_weights|scale_factor|model_ema\.(decay|num_updates)"
    r"|first_stage_model\.loss\..+|.+\.embeddings\.position_ids|cond_stage_model\.(logit_scale|text_projection)"
)
"""Noise schedules, the VAE's training loss and counters."""
HEAD_WIDTH = 64
"""Of CLIP's text models."""
LEVELS = {"unet": "down_blocks.{}.resnets.0.conv1.weight", "vae": "encoder.down_blocks.{}.resnets.0.conv1.weight"}
TOKENS = "embeddings.token_embedding.weight"
SIZES = {
    "unet": {
        "in_channels": ("conv_in.weight", 1),
        "cross_attention_dim": ("down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight", 1),
    },
    "vae": {"latent_channels": ("decoder.conv_in.weight", 1)},
    "text_encoder": {
        "hidden_size": (TOKENS, 1), "projection_dim": (TOKENS, 1), "vocab_size": (TOKENS, 0),
        "intermediate_size": ("encoder.layers.0.mlp.fc1.weight", 0),
        "max_position_embeddings": ("embeddings.position_embedding.weight", 0),
    },
}  # fmt: skip
"""Setting -> tensor and dimension that show it; an original file has no configuration."""
Parts = dict[str, dict[str, Tensor]]
"""Tensors under diffusers' and transformers' names, by ``unet``, ``vae`` and ``text_encoder``."""


def convert_file(where: str, path: Path, spec: CheckpointSpec, target: Path) -> tuple[dict[str, int], dict[str, str]]:
    """Write the pipeline folder of an original file to the empty folder ``target``.

    Returns parameters by network, and which U-Net weights were used and whose tokenizer. UserError if the file is damaged,
    not Stable Diffusion 1, or lacks tensors; or there is no fitting tokenizer.
    """
    state = read_tensors(path, ("state_dict",))
    _refuse_relatives(path, state)
    state, chosen = choose_weights(path, state)
    parts = split(path, state)
    configs = _configs(path, parts) | {"scheduler": sd.sd1_configs()["scheduler"]}
    origin = {
        "ema": chosen,
        "tokenizer": _copy_tokenizer(where, path, spec, target / "tokenizer", configs["text_encoder"]),
    }
    for part, name in sd.CONFIGS.items():
        (target / part).mkdir()
        write_json(target / name, configs[part])
        if part in sd.WEIGHTS:
            prefix = "text_model." if part == "text_encoder" else ""  # as in the published folders
            tensors = {prefix + name: tensor for name, tensor in parts[part].items()}
            save_file(tensors, target / part / sd.WEIGHTS[part], metadata={"format": "pt"})
    write_json(target / sd.INDEX, {"_class_name": "StableDiffusionPipeline", **sd.CLASSES, **sd.UNUSED})
    return {part: sum(x.numel() for x in parts[part].values()) for part in sd.WEIGHTS}, origin


def _refuse_relatives(path: Path, state: dict[str, Tensor]) -> None:
    """Refuse Stable Diffusion 2, XL and inpainting, by the shapes of their U-Nets."""
    entry = state.get(f"{UNET}input_blocks.0.0.weight")
    keys = next((tensor for name, tensor in state.items() if name.endswith("attn2.to_k.weight")), None)
    if entry is None or keys is None:
        raise UserError(
            f"{path} has no U-Net under {UNET}; give an original Stable Diffusion 1 file, such as sd-v1-4.ckpt"
        )
    width = keys.shape[1]
    sd.check_widths(path, {"cross_attention_dim": width, "in_channels": entry.shape[1]}, {}, {"hidden_size": width})


def choose_weights(path: Path, state: dict[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """Put the U-Net's moving average (EMA), where the file has one, in the place of its last weights (S12).

    Also returns which weights these are. UserError if only part of the average is there.
    """
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


def split(path: Path, state: dict[str, Tensor]) -> Parts:
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
    parts: Parts = {part: {} for part in sd.WEIGHTS}
    for name, target in targets.items():
        part, own = target.split(".", 1)
        parts[part][own] = as_matrix(target, weights[name]).float().contiguous()
    return {part: sd.canonical_names(part, tensors) for part, tensors in parts.items()}


def _configs(path: Path, parts: Parts) -> dict[str, dict[str, Any]]:
    """Return configurations of the networks' widths; UserError unless the tensors are exactly those of such networks.

    What shapes do not show (the U-Net's heads, norm groups, layers per block) is as in Stable Diffusion 1.
    """
    configs = {part: sd.sd1_configs()[part] for part in sd.WEIGHTS}
    for part, config in configs.items():
        shapes = {name: tensor.shape for name, tensor in parts[part].items()}
        config |= {key: shapes[name][axis] for key, (name, axis) in SIZES[part].items() if name in shapes}
        for level, width in enumerate(config.get("block_out_channels", ())):
            config["block_out_channels"][level] = shapes.get(LEVELS[part].format(level), [width])[0]
    text, names = configs["text_encoder"], parts["text_encoder"]
    text["num_attention_heads"] = max(1, text["hidden_size"] // HEAD_WIDTH)
    text["num_hidden_layers"] = sum(name.endswith("mlp.fc1.weight") for name in names)
    sd.check_widths(path, configs["unet"], configs["vae"], text)
    for part, config in configs.items():
        if fault := misfits(sd.network_tensors(part, config), parts[part]):
            raise UserError(f"{path}: the {part} is not whole ({fault}); take an intact Stable Diffusion 1 file")
    return configs


def _copy_tokenizer(where: str, path: Path, spec: CheckpointSpec, target: Path, text: dict[str, Any]) -> str:
    """Copy the tokenizer, which an original file lacks, from ``spec.repo``; return where it comes from.

    The numbers of its special tokens go into the text encoder's configuration. UserError if it has another vocabulary.
    """
    if spec.repo is None:
        raise UserError(
            f"{where} has source 'file' but no repo; such files have no tokenizer, so name a folder or hub "
            "repository with Stable Diffusion 1's, such as openai/clip-vit-large-patch14"
        )
    folder, origin = Path(spec.repo), spec.repo
    if not folder.is_dir():
        from vpd.pretrained.hub import download, repositories

        wanted = [f"{parent}{file}" for file in sd.TOKENIZER_FILES for parent in ("tokenizer/", "")]
        repository = download(where, repositories(where, spec), wanted)
        folder, origin = repository.folder, f"{repository.repo}@{repository.revision}"
    source = folder / "tokenizer" if (folder / "tokenizer").is_dir() else folder
    if not sd.has_tokenizer(source):
        raise UserError(f"{folder} has no tokenizer.json, nor vocab.json with merges.txt; name a folder that has")
    tokens = CLIPTokenizer.from_pretrained(source, local_files_only=True)
    if len(tokens) != text["vocab_size"]:
        raise UserError(
            f"the text encoder of {path} knows {text['vocab_size']} tokens but the tokenizer in {source} {len(tokens)}; "
            "name the tokenizer that belongs to it"
        )
    text |= {key: getattr(tokens, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    target.mkdir()
    for name in filter(lambda name: (source / name).is_file(), sd.TOKENIZER_FILES):
        shutil.copyfile(source / name, target / name)
    return origin
