"""Backbones on disk: vision/network.json says what it is, vision/model.safetensors holds its weights."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from vpd.config.schema import NetworkSpec
from vpd.models.backbones.base import Backbone
from vpd.models.base import check_fit, copied
from vpd.utils.errors import UserError, pick
from vpd.utils.files import atomic_folder, read_json, write_json

VISION = "vision"
NETWORK = "network.json"
WEIGHTS = "model.safetensors"
CHOICES = {"pretrained": True, "random": False}


def save_backbone(backbone: Backbone, spec: NetworkSpec, folder: Path) -> None:
    """Write architecture and weights of a backbone to ``folder``/vision, completely or not at all."""
    with atomic_folder(Path(folder) / VISION) as out:
        save_file(copied(backbone.network.state_dict()), out / WEIGHTS)
        write_json(out / NETWORK, spec.model_dump(mode="json"))


def load_backbone(
    folder: Path, weights: str = "pretrained", *, drop_path: float = 0.0, gradient_checkpointing: bool = False
) -> Backbone:
    """Load the backbone of a checkpoint folder.

    Args:
        folder: holds vision/.
        weights: ``pretrained``: the stored ones; ``random``: fresh ones from torch's global seed.
        drop_path: stochastic depth of the last block.
        gradient_checkpointing: recompute activations in the backward pass.

    Raises:
        UserError: the folder holds no backbone, or its weights are damaged or do not fit the architecture.
    """
    from vpd.models.backbones import build_backbone

    stored = pick(weights, CHOICES, "choice of weights")
    spec = _read_network(folder)
    backbone = build_backbone(spec, drop_path=drop_path, gradient_checkpointing=gradient_checkpointing)
    if stored:
        _load_weights(backbone, Path(folder) / VISION / WEIGHTS)
    return backbone


def _read_network(folder: Path) -> NetworkSpec:
    path = Path(folder) / VISION / NETWORK
    try:
        return NetworkSpec.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(
            f"{path} describes no network ({'.'.join(map(str, first['loc']))}: {first['msg']}); make the checkpoint again"
        ) from None


def _load_weights(backbone: Backbone, path: Path) -> None:
    if not path.is_file():
        raise UserError(f"{path} does not exist; make or download this backbone first")
    try:
        state = load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path} is damaged ({error}); make or download this backbone again") from None
    check_fit(
        backbone.network.state_dict(), state, f"{path} does not fit its network.json", "make the checkpoint again"
    )
    backbone.network.load_state_dict(state)
