"""Checks that a diffusers folder is a Stable Diffusion 1 pipeline with readable safetensors weights."""

from __future__ import annotations

from math import prod
from pathlib import Path

from safetensors import SafetensorError, safe_open

from vpd.utils.errors import UserError
from vpd.utils.files import read_json

INDEX = "model_index.json"
COMPONENTS = {
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "unet": ("UNet2DConditionModel",),
    "scheduler": (),
}
"""Folder of each component and the classes it may have (any, if none is named)."""
WEIGHTS = {
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
    "unet": "diffusion_pytorch_model.safetensors",
}
SETTINGS = {
    "vae": ("config.json",),
    "text_encoder": ("config.json",),
    "tokenizer": (
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "merges.txt",
    ),
    "unet": ("config.json",),
    "scheduler": ("scheduler_config.json",),
}
"""Files without weights that belong to each component; the tokenizer has some of its."""
TOKENIZER_FORMS = (("tokenizer.json",), ("vocab.json", "merges.txt"))
VERSION_1_WIDTH, VERSION_2_WIDTH, XL_WIDTH = 768, 1024, 2048


def possible_files() -> list[str]:
    """Relative names of all files that can make up a checkpoint, except model_index.json."""
    settings = [f"{part}/{name}" for part, files in SETTINGS.items() for name in files]
    return sorted([*settings, *weight_files()])


def weight_files() -> list[str]:
    """Relative names of the files with weights."""
    return [f"{part}/{name}" for part, name in WEIGHTS.items()]


def pipeline_files(folder: Path) -> list[str]:
    """Relative names of the files in ``folder`` that make up the checkpoint, except model_index.json."""
    return [name for name in possible_files() if (folder / name).is_file()]


def check_pipeline(folder: Path) -> dict[str, int]:
    """Number of parameters of each network in ``folder``; UserError unless it is Stable Diffusion 1 in safetensors.

    Sizes are free: a small one must only be consistent with itself.
    """
    if not folder.is_dir():
        raise UserError(f"the checkpoint folder {folder} does not exist; download the checkpoint, or correct its path")
    if not (folder / INDEX).is_file():
        raise UserError(f"{folder} has no {INDEX}, so it is no diffusers pipeline folder; download or convert one")
    index = read_json(folder / INDEX)
    for part, classes in COMPONENTS.items():
        _check_component(folder, part, classes, index)
    unet, vae, text, scheduler = (
        read_json(folder / part / SETTINGS[part][0]) for part in ("unet", "vae", "text_encoder", "scheduler")
    )
    check_widths(folder, unet, vae, text)
    prediction = scheduler.get("prediction_type", "epsilon")
    if prediction != "epsilon":
        raise UserError(f"{folder}/scheduler predicts '{prediction}', but Stable Diffusion 1 predicts 'epsilon'")
    return {part: count_parameters(folder / part / name) for part, name in WEIGHTS.items()}


def _check_component(folder: Path, part: str, classes: tuple[str, ...], index: dict) -> None:
    found = (index.get(part) or [None, None])[1]
    if found is None:
        raise UserError(f"{folder / INDEX} lists no {part}; a Stable Diffusion 1 pipeline has {', '.join(COMPONENTS)}")
    if classes and found not in classes:
        raise UserError(f"{folder / INDEX}: {part} is a {found}, but Stable Diffusion 1 has a {classes[0]}")
    forms = TOKENIZER_FORMS if part == "tokenizer" else (SETTINGS[part],)
    if not any(all((folder / part / name).is_file() for name in form) for form in forms):
        raise UserError(f"{folder / part} lacks {' and '.join(forms[-1])}; the download is incomplete, fetch it again")
    if part in WEIGHTS and not (folder / part / WEIGHTS[part]).is_file():
        others = ", ".join(sorted(path.name for path in (folder / part).glob("*.bin"))) or "no weights"
        raise UserError(
            f"{folder / part} has {others} where {WEIGHTS[part]} is needed; only safetensors are read, "
            "so fetch that file or save the pipeline again with save_pretrained"
        )


def check_widths(source: Path, unet: dict, vae: dict, text: dict) -> None:
    """UserError naming ``source`` unless the three configurations are those of one Stable Diffusion 1 of some size."""
    width, text_width = unet.get("cross_attention_dim"), text.get("hidden_size")
    for version, mark in (("2", VERSION_2_WIDTH), ("XL", XL_WIDTH)):
        if width == mark:
            kind = f"is a Stable Diffusion {version} U-Net (cross-attention width {width})"
            raise UserError(f"{source}: the U-Net {kind}; Stable Diffusion 1 has {VERSION_1_WIDTH}")
    if width != text_width:
        raise UserError(
            f"{source}: the U-Net's cross-attention width is {width}, but the text encoder's width is {text_width}; "
            "take both from the same pipeline"
        )
    latent, channels = vae.get("latent_channels", 4), unet.get("in_channels", 4)
    if (latent, channels) != (4, 4):
        raise UserError(
            f"{source}: the U-Net takes {channels} channels and the VAE makes {latent}, "
            "but Stable Diffusion 1 has 4 and 4; inpainting and upscaling checkpoints cannot be used"
        )


def count_parameters(path: Path) -> int:
    """Number of floating-point values in a safetensors file; UserError if it is damaged."""
    try:
        with safe_open(path, "np") as file:
            slices = [file.get_slice(name) for name in file.keys()]  # noqa: SIM118 - not a dictionary
            return sum(prod(part.get_shape()) for part in slices if "F" in part.get_dtype())
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged ({error}); fetch or make it again") from None
