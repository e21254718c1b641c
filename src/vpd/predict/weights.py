"""Trained weights as a network that is ready to predict, without the dataset that they were trained on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from vpd.config.schema import Spec, VPDModel
from vpd.datasets import ade20k
from vpd.datasets.nyuv2 import SCENES
from vpd.models import LatentCache, build_model
from vpd.utils.digests import sha256
from vpd.utils.errors import UserError
from vpd.utils.files import read_json

CLASSIFIERS = {
    "semantic-fpn": "head.conv_seg.bias",
    "upernet": "head.conv_seg.bias",
    "simple-decoding": "head.classify.bias",
}
"""Head -> the tensor with one number per class."""
EMBEDDINGS = "class_embeddings"


def class_names(spec: Spec, data: Path | None) -> list[str] | None:
    """Names of the segmentation classes as the dataset folder ``data`` lists them; None without one, and of others."""
    if spec.task != "segmentation" or data is None:
        return None
    return [names[0] for names in ade20k.class_names(data)]


def load_weights(path: Path, spec: Spec, say: Callable[[str], None]) -> dict[str, Tensor]:
    """Read a milestone's weights; UserError if they are missing, damaged or not those that the run's manifest lists.

    Says if the manifest beside them names another experiment's spec.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist; name the final.safetensors of a finished run")
    manifest = path.with_name("manifest.json")
    record = read_json(manifest) if manifest.exists() else {}
    listed = record.get("files", {}).get(path.name)
    if listed is not None and listed != sha256(path):
        raise UserError(f"{path} is not the file that {manifest} lists; train or fetch these weights again")
    try:
        weights = load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path} is no intact safetensors file ({error}); train or fetch these weights again") from None
    known = (spec.training_digest(), spec.digest(), None)
    if record.get("spec") not in known:
        say(f"{path} was trained with other settings than those of {spec.name}; the predictions may differ")
    return weights


def build(spec: Spec, checkpoint: Path, weights: dict[str, Tensor]) -> nn.Module:
    """Build the trained network on the best device, in evaluation mode; UserError if its parts do not fit each other.

    VPD's frozen encoders and a baseline's architecture come from ``checkpoint``, all else from ``weights``.
    """
    model = (
        _vpd(spec, checkpoint, weights) if isinstance(spec.model, VPDModel) else _baseline(spec, checkpoint, weights)
    )
    model.load_trained_state(weights)
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def _baseline(spec: Spec, checkpoint: Path, weights: dict[str, Tensor]) -> nn.Module:
    names = [""] * (classes(spec, weights) if spec.task == "segmentation" else 0)
    return build_model(spec, checkpoint, names)


def _vpd(spec: Spec, checkpoint: Path, weights: dict[str, Tensor]) -> nn.Module:
    from vpd.models.compose import compose
    from vpd.models.diffusion import load_unet, load_vae
    from vpd.models.prompts import FROM_IMAGES, TextEncoder

    prompts = weights.get(EMBEDDINGS)
    model = compose(
        spec,
        load_unet(checkpoint, spec.model.unet),
        load_vae(checkpoint),
        classes(spec, weights),
        text=TextEncoder(checkpoint, spec.model.prompt.length) if spec.model.prompt.strategy in FROM_IMAGES else None,
        class_embeddings=None if prompts is None else torch.zeros_like(prompts),
    )
    # Keys make the encoder take images one by one, as in evaluation, but each is seen once: nothing is worth keeping.
    model.latents = LatentCache(0)
    return model


def classes(spec: Spec, weights: dict[str, Tensor]) -> int:
    """How many classes the weights tell apart: of segments, or of scenes."""
    name = CLASSIFIERS.get(spec.model.head.kind, EMBEDDINGS)
    if name not in weights:
        raise UserError(f"the weights have no tensor '{name}', so they are not those of {spec.name}; use its own")
    return len(weights[name])


def check_names(names: list[str] | None, count: int) -> list[str]:
    """``names``, or made-up ones where there are none; UserError if there are not ``count`` of them."""
    if names is None:
        return [f"class {number}" for number in range(count)]
    if len(names) != count:
        raise UserError(
            f"the dataset names {len(names)} classes, but the weights tell {count} apart; use its own --data"
        )
    return list(names)


def scene_names(spec: Spec, weights: dict[str, Tensor]) -> list[str]:
    """Scene classes by id; none if the prompt does not depend on the scene."""
    if not isinstance(spec.model, VPDModel) or spec.model.prompt.strategy != "scene":
        return []
    count = classes(spec, weights)
    return list(SCENES) if count == len(SCENES) else check_names(None, count)
