"""Weights of public depth models: a repository in transformers' layout, or the DPT authors' own file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import DPTConfig, ZoeDepthForDepthEstimation
from transformers.utils import logging

from vpd.config.schema import ReleasedSpec
from vpd.models.monocular import PROTOCOLS, DPTHybrid, Monocular
from vpd.pretrained.fitting import misfits
from vpd.pretrained.hub import Snapshot, download
from vpd.pretrained.reading import read_tensors, tensors_of
from vpd.utils.errors import UserError
from vpd.utils.files import read_json

NETWORKS = {"zoedepth": ZoeDepthForDepthEstimation, "dpt-hybrid": DPTHybrid}
MODEL_TYPES = {"zoedepth": "zoedepth", "dpt-hybrid": "dpt"}
"""``model_type`` in the config.json of transformers."""
CONFIG, WEIGHTS = "config.json", "model.safetensors"
CURE = "add a repository that has the files to mirrors, or give the path of a copy in place of repo"
DPT_HYBRID: dict[str, Any] = {
    "is_hybrid": True,
    "hidden_size": 768,
    "backbone_out_indices": [2, 5, 8, 11],
    "reassemble_factors": [1, 1, 1, 0.5],
    "neck_hidden_sizes": [256, 512, 768, 768],
    "layer_norm_eps": 1e-6,
}
"""Settings of the DPT authors' hybrid model; transformers' own default of the last one, 1e-12, is not theirs."""
CONTAINERS = ("model",)
"""Where DPT's training files keep the weights; the released ones are bare."""
DERIVED = re.compile(r"relative_position_index|k_idx|k_minus_1|K_minus_1")
"""Tensors in older files that the network computes itself."""
_BIT = "dpt.embeddings.backbone.bit."
_UNIT = {"resConfUnit1.conv": "residual_layer1.convolution", "resConfUnit2.conv": "residual_layer2.convolution"}
_PARTS = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}


def _fusion(level: str, part: str) -> str:
    """The authors count fusion blocks from the fine end, transformers from the coarse one."""
    for old, new in {**_UNIT, "out_conv": "projection"}.items():
        part = part.replace(old, new)
    return f"neck.fusion_stage.layers.{4 - int(level)}.{part}"


RULES = (
    (r"pretrained\.model\.cls_token", "dpt.embeddings.cls_token"),
    (r"pretrained\.model\.pos_embed", "dpt.embeddings.position_embeddings"),
    (r"pretrained\.model\.patch_embed\.proj\.(\w+)", r"dpt.embeddings.projection.\1"),
    (r"pretrained\.model\.patch_embed\.backbone\.stem\.conv\.(\w+)", _BIT + r"embedder.convolution.\1"),
    (r"pretrained\.model\.patch_embed\.backbone\.stem\.norm\.(\w+)", _BIT + r"embedder.norm.\1"),
    (
        r"pretrained\.model\.patch_embed\.backbone\.stages\.(\d)\.blocks\.(\d+)\.(.+)",
        _BIT + r"encoder.stages.\1.layers.\2.\3",
    ),
    (
        rf"pretrained\.model\.blocks\.(\d+)\.({'|'.join(_PARTS)})\.(\w+)",
        lambda block, part, x: f"dpt.encoder.layer.{block}.{_PARTS[part]}.{x}",
    ),
    (r"pretrained\.model\.norm\.(\w+)", r"dpt.layernorm.\1"),
    (
        r"pretrained\.act_postprocess([34])\.0\.project\.0\.(\w+)",
        lambda level, x: f"neck.reassemble_stage.readout_projects.{int(level) - 1}.0.{x}",
    ),
    (
        r"pretrained\.act_postprocess([34])\.3\.(\w+)",
        lambda level, x: f"neck.reassemble_stage.layers.{int(level) - 1}.projection.{x}",
    ),
    (r"pretrained\.act_postprocess4\.4\.(\w+)", r"neck.reassemble_stage.layers.3.resize.\1"),
    (r"scratch\.layer([1-4])_rn\.(\w+)", lambda level, x: f"neck.convs.{int(level) - 1}.{x}"),
    (r"scratch\.refinenet([1-4])\.(.+)", _fusion),
    (r"scratch\.output_conv\.([024])\.(\w+)", r"head.head.\1.\2"),
)
"""Names in the DPT authors' files -> transformers' names."""
QKV = re.compile(r"pretrained\.model\.blocks\.(\d+)\.attn\.qkv\.(\w+)")
UNUSED = re.compile(r"pretrained\.model\.head\.")
"""The image classifier that the encoder came with."""


# -------------------------------------------------------------------------------------------------------------- opening
def fetch_monocular(name: str, spec: ReleasedSpec) -> Snapshot:
    """Settings and weights that ``spec.repo`` or a mirror has; UserError if they cannot be had."""
    files = (CONFIG, WEIGHTS)
    return download(name, spec, files, files, section="released", cure=CURE)


def open_monocular(model: str, place: Path, config: dict[str, Any] | None = None) -> Monocular:
    """The depth model ``model`` with the weights at ``place``: a folder in transformers' layout, or the authors' file.

    ``config``: settings of the network in the authors' file, DPT-Hybrid's real ones by default. UserError if the
    weights are damaged, another network's, or not exactly the network's.
    """
    if place.is_dir():
        network = _from_folder(model, place)
    elif model == "dpt-hybrid":
        network = _from_original(place, DPTConfig(**(config or DPT_HYBRID)))
    else:
        raise UserError(f"{place} is a file, but {model} is read from a folder with {CONFIG} and {WEIGHTS}; name that")
    return Monocular(network, PROTOCOLS[model]).eval()


def weights_file(place: Path) -> Path:
    """The file with the weights at ``place``."""
    return place / WEIGHTS if place.is_dir() else place


def _from_folder(model: str, folder: Path) -> nn.Module:
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise UserError(f"{folder} has no {name}; give a folder in transformers' layout with safetensors weights")
    network, config = NETWORKS[model], read_json(folder / CONFIG)
    kind = config.get("model_type")
    if kind != MODEL_TYPES[model] or (model == "dpt-hybrid" and not config.get("is_hybrid")):
        raise UserError(
            f"{folder / CONFIG} describes a model of type {kind}, but {model} is wanted; give its repository"
        )
    logging.disable_progress_bar()  # Loading takes a moment; standard error is for the stage's own progress.
    try:
        opened, found = network.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=torch.float32, output_loading_info=True
        )
    except (SafetensorError, RuntimeError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:150]
        raise UserError(
            f"{folder / WEIGHTS} does not hold {model} as {CONFIG} says ({reason}); fetch it again"
        ) from None
    if fault := leftovers(found):
        raise UserError(f"{folder / WEIGHTS} does not fit {model} ({fault}); give the model's own repository")
    return opened


def leftovers(found: dict[str, Any]) -> str:
    """Say what transformers invented or left out while loading, but for tensors that the network computes itself."""
    kinds = {"missing": "missing_keys", "unexpected": "unexpected_keys", "of another shape": "mismatched_keys"}
    faults = {kind: sorted(str(name) for name in found.get(key, ())) for kind, key in kinds.items()}
    real = {kind: [name for name in names if not DERIVED.search(name)] for kind, names in faults.items()}
    return "; ".join(f"{len(names)} {kind}, first '{names[0]}'" for kind, names in real.items() if names)


# ----------------------------------------------------------------------------------------------------------- key map
def _from_original(file: Path, config: DPTConfig) -> DPTHybrid:
    state = convert_dpt(tensors_of(file, read_tensors(file), CONTAINERS), file)
    network = DPTHybrid(config)
    if fault := misfits(network.state_dict(), state):
        raise UserError(f"{file} is no DPT-Hybrid for depth ({fault}); give dpt_hybrid_nyu of isl-org/DPT")
    network.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    return network


def convert_dpt(state: dict[str, Tensor], file: Path) -> dict[str, Tensor]:
    """The DPT authors' tensors under transformers' names; UserError naming ``file`` if a name is not DPT-Hybrid's."""
    converted, unknown = {}, []
    for name, tensor in state.items():
        if UNUSED.match(name):
            continue
        if match := QKV.fullmatch(name):
            converted |= _split(tensor, *match.groups())
        elif target := rename_dpt(name):
            converted[target] = tensor
        else:
            unknown.append(name)
    if unknown:
        raise UserError(
            f"{file}: {len(unknown)} tensors have names that DPT-Hybrid does not use, first '{unknown[0]}'; give "
            "dpt_hybrid_nyu of isl-org/DPT"
        )
    return converted


def rename_dpt(name: str) -> str | None:
    """transformers' name of one of the DPT authors' tensors; None for an unknown name."""
    for pattern, target in RULES:
        if match := re.fullmatch(pattern, name):
            return match.expand(target) if isinstance(target, str) else target(*match.groups())
    return None


def _split(tensor: Tensor, block: str, kind: str) -> dict[str, Tensor]:
    """Query, key and value, which the authors keep in one tensor in this order."""
    parts = zip(("query", "key", "value"), tensor.chunk(3), strict=True)
    return {f"dpt.encoder.layer.{block}.attention.attention.{part}.{kind}": values for part, values in parts}
