"""Image encoders other than Stable Diffusion's: one interface over timm and transformers, for images of any size.

On disk, vision/network.json says what a backbone is and vision/model.safetensors holds its weights.
"""

from pathlib import Path

from safetensors.torch import save_file

from vpd.config.schema import NetworkSpec
from vpd.models.backbones.base import Backbone
from vpd.models.base import check_fit, copied
from vpd.utils.errors import pick
from vpd.utils.files import atomic_folder, write_json
from vpd.utils.tensors import read_safetensors
from vpd.utils.validation import read_as

__all__ = ["Backbone", "build_backbone", "load_backbone", "save_backbone"]
VISION, NETWORK, WEIGHTS = "vision", "network.json", "model.safetensors"


def build_backbone(spec: NetworkSpec, *, drop_path: float = 0.0, gradient_checkpointing: bool = False) -> Backbone:
    """Build a backbone with fresh weights from torch's global seed, on torch's current default device.

    ``drop_path`` is the stochastic depth of the last block, from 0 at the first one. UserError if the library has no such
    architecture, or that no such option.
    """
    if spec.library == "timm":
        from vpd.models.backbones.from_timm import build
    else:
        from vpd.models.backbones.from_transformers import build
    return build(spec, drop_path, gradient_checkpointing)


def save_backbone(backbone: Backbone, spec: NetworkSpec, folder: Path) -> None:
    """Write architecture and weights of a backbone to ``folder``/vision, completely or not at all."""
    with atomic_folder(Path(folder) / VISION) as out:
        save_file(copied(backbone.network.state_dict()), out / WEIGHTS)
        write_json(out / NETWORK, spec.model_dump(mode="json"))


def load_backbone(
    folder: Path, weights: str = "pretrained", *, drop_path: float = 0.0, gradient_checkpointing: bool = False
) -> Backbone:
    """Load the backbone of a checkpoint folder, with its stored weights (``pretrained``) or fresh ones (``random``).

    UserError if the folder holds no backbone, or its weights are damaged or do not fit the architecture.
    """
    stored, vision = pick(weights, {"pretrained": True, "random": False}, "choice of weights"), Path(folder) / VISION
    spec = read_as(NetworkSpec, vision / NETWORK, "make the checkpoint again")
    backbone = build_backbone(spec, drop_path=drop_path, gradient_checkpointing=gradient_checkpointing)
    if stored:
        _load_weights(backbone, vision / WEIGHTS)
    return backbone


def _load_weights(backbone: Backbone, path: Path) -> None:
    state = read_safetensors(path, "make or download this backbone again")
    complaint = f"{path} does not fit its network.json"
    check_fit(backbone.network.state_dict(), state, complaint, "make the checkpoint again")
    backbone.network.load_state_dict(state)
