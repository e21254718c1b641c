"""Load a trained network from its weights and checkpoint, without the dataset that it was trained on."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vpd.config.schema import Spec, VPDModel
from vpd.datasets import ade20k
from vpd.datasets.manifest import located
from vpd.models import LatentCache, Network, build_model
from vpd.predict.pictures import say
from vpd.pretrained.stable_diffusion import check_network
from vpd.training.runs import has_settings
from vpd.utils.devices import device_type
from vpd.utils.digests import sha256
from vpd.utils.errors import UserError, pick
from vpd.utils.fingerprint import FINGERPRINT, MANIFEST, check_intact, read_manifest
from vpd.utils.tensors import PRECISIONS, read_safetensors, set_up_inference

CLASSIFIERS = dict.fromkeys(("semantic-fpn", "upernet"), "head.conv_seg.bias") | {
    "simple-decoding": "head.classify.bias"
}
"""Head -> the tensor with one number per class."""
EMBEDDINGS = "class_embeddings"


@dataclass(frozen=True)
class TrainedNetwork:
    """A trained network in evaluation mode."""

    spec: Spec
    model: Network
    names: list[str]
    """Names of the segmentation classes, in label order; empty for the other tasks."""


def load_network(
    spec: Spec,
    weights: Path,
    checkpoint: Path,
    names: list[str] | None = None,
    device: str | None = None,
    precision: str = "fp32",
) -> TrainedNetwork:
    """Build a trained network; no file is unpickled.

    Segmentation classes are numbered if no ``names`` are given. Without ``device`` it is on the GPU if there is one. It is
    loaded in single precision, and in the ``precision`` bf16 takes half of that memory afterwards.
    """
    pick(precision, PRECISIONS, "precision")
    state = _load_weights(weights, spec)
    known: list[str] = []
    if spec.task == "segmentation":
        count = _count_classes(spec, state)
        known = names or [f"class {number}" for number in range(count)]
        if len(known) != count:
            raise UserError(
                f"the dataset names {len(known)} classes, but the weights distinguish {count}; use its own --data"
            )
    model = _vpd(spec, checkpoint, state) if isinstance(spec.model, VPDModel) else build_model(spec, checkpoint, known)
    model.load_trained_state(state)
    set_up_inference(model, device or device_type(), precision)
    return TrainedNetwork(spec, model, known)


def class_names(spec: Spec, data: Path | None) -> list[str] | None:
    """Read the names of the segmentation classes from a dataset folder; None without one, and for other tasks."""
    if spec.task != "segmentation" or data is None:
        return None
    return [names[0] for names in ade20k.class_names(located(data))]


def _load_weights(path: Path, spec: Spec) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(f"{path} does not exist; name the final.safetensors of a finished run")
    manifest = path.with_name(MANIFEST)
    listed = read_manifest(path.parent)["files"].get(path.name) if manifest.exists() else None
    if listed is not None and listed != sha256(path):
        raise UserError(f"{path} is not the file that {manifest} lists; train or fetch these weights again")
    weights = read_safetensors(path, "train or fetch it again")
    if path.with_name(FINGERPRINT).is_file() and not has_settings(path.parent, spec):
        say(f"{path} was trained with other settings than those of {spec.name}; the predictions may differ")
    # Shipped weights have half precision, in which nothing is computed.
    return {name: value.float() if value.is_floating_point() else value for name, value in weights.items()}


def _count_classes(spec: Spec, weights: dict[str, Tensor]) -> int:
    name = CLASSIFIERS.get(spec.model.head.kind, EMBEDDINGS)
    if name not in weights:
        raise UserError(f"the weights have no tensor '{name}', so they are not those of {spec.name}; use its own")
    return len(weights[name])


def _vpd(spec: Spec, checkpoint: Path, weights: dict[str, Tensor]) -> Network:
    assert isinstance(spec.model, VPDModel)
    from vpd.models.diffusion import load_denoiser, load_vae
    from vpd.models.network import VPD
    from vpd.models.prompts import FROM_IMAGES
    from vpd.models.text import load_text_encoder

    reads_text = spec.model.prompt.strategy in FROM_IMAGES
    _check_checkpoint(checkpoint, reads_text)
    model = VPD(
        spec,
        load_denoiser(checkpoint, spec.model.unet),
        load_vae(checkpoint),
        _count_classes(spec, weights),
        text=load_text_encoder(checkpoint, spec.model.prompt.length) if reads_text else None,
        **{name: torch.zeros_like(weights[name]) for name in (EMBEDDINGS, "class_projections") if name in weights},
    )
    # A latent cache makes the encoder take images one by one, as in evaluation; each picture is seen only once, so
    # nothing is stored.
    model.latents = LatentCache(0)
    return model


def _check_checkpoint(checkpoint: Path, reads_text: bool) -> None:
    """UserError unless the bytes are those of the manifest, or, of any other folder, every tensor is as its config.json says."""
    if (checkpoint / MANIFEST).is_file():
        check_intact(checkpoint, "checkpoint")
        return
    from vpd.models.diffusion import denoiser_part

    texts = sorted(path.name for path in checkpoint.glob("text_encoder*")) if reads_text else []
    for part in (denoiser_part(checkpoint), "vae", *texts):
        check_network(checkpoint, part)
