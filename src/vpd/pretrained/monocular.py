"""Public depth models of others: a repository in transformers' layout, or the DPT authors' own file."""

import re
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import DPTConfig, PreTrainedModel, ZoeDepthForDepthEstimation
from transformers.utils import logging

from vpd.config.schema import ReleasedSpec
from vpd.models.base import misfits
from vpd.models.monocular import PROTOCOLS, DPTHybrid, Monocular
from vpd.pretrained.hub import Repository, download, repositories
from vpd.pretrained.tensors import Rules, apply_rules, read_tensors
from vpd.utils.errors import UserError
from vpd.utils.files import read_json
from vpd.utils.tensors import reason

# Class of transformers, and ``model_type`` in its config.json.
NETWORKS: dict[str, tuple[type[PreTrainedModel], str]] = {
    "zoedepth": (ZoeDepthForDepthEstimation, "zoedepth"),
    "dpt-hybrid": (DPTHybrid, "dpt"),
}
CONFIG, WEIGHTS = "config.json", "model.safetensors"
# Settings of the DPT authors' hybrid model; transformers' own default of the last one, 1e-12, is not theirs.
DPT_HYBRID: dict[str, Any] = {
    "is_hybrid": True, "hidden_size": 768, "backbone_out_indices": [2, 5, 8, 11], "reassemble_factors": [1, 1, 1, 0.5],
    "neck_hidden_sizes": [256, 512, 768, 768], "layer_norm_eps": 1e-6,
}  # fmt: skip
DERIVED = re.compile(r"relative_position_index|k_idx|k_minus_1|K_minus_1")  # tensors that the network computes itself


def fetch_monocular(name: str, spec: ReleasedSpec) -> Repository:
    """Download settings and weights from ``spec.repo`` or a mirror; UserError if they cannot be had."""
    where, files = f"released.{name}", (CONFIG, WEIGHTS)
    cure = "add a repository that has the files to mirrors, or give the path of a copy in place of repo"
    return download(where, repositories(where, spec), files, files, cure)


def open_monocular(model: str, source: Path, config: dict[str, Any] | None = None) -> Monocular:
    """Open a public depth model.

    Args:
        model: ``zoedepth`` or ``dpt-hybrid``.
        source: a folder in transformers' layout, or the DPT authors' file.
        config: settings of the network in the authors' file; by default those of their hybrid model.

    Raises:
        UserError: the weights are damaged, another network's, or not exactly the network's.
    """
    if source.is_dir():
        network = _from_folder(model, source)
    elif model == "dpt-hybrid":
        network = _from_original(source, DPTConfig(**(config or DPT_HYBRID)))
    else:
        raise UserError(f"{source} is a file, but {model} is read from a folder with {CONFIG} and {WEIGHTS}; name that")
    return Monocular(network, PROTOCOLS[model]).eval()


def weights_file(source: Path) -> Path:
    """Return the file with the weights of a model at ``source``."""
    return source / WEIGHTS if source.is_dir() else source


def _from_folder(model: str, folder: Path) -> nn.Module:
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise UserError(f"{folder} has no {name}; give a folder in transformers' layout with safetensors weights")
    (network, model_type), config = NETWORKS[model], read_json(folder / CONFIG)
    given = config.get("model_type")
    if given != model_type or (model == "dpt-hybrid" and not config.get("is_hybrid")):
        raise UserError(
            f"{folder / CONFIG} describes a model of type {given}, but {model} is wanted; give its repository"
        )
    logging.disable_progress_bar()  # Loading takes a moment; standard error is for the stage's own progress.
    try:
        loaded = network.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=torch.float32, output_loading_info=True
        )
        opened, info = cast(tuple[PreTrainedModel, dict[str, Any]], loaded)
    except (SafetensorError, RuntimeError, ValueError, OSError) as error:
        raise UserError(
            f"{folder / WEIGHTS} does not hold {model} as {CONFIG} says ({reason(error)}); fetch it again"
        ) from None
    own, given = opened.state_dict(), read_tensors(folder / WEIGHTS)
    shared = own.keys() & given.keys()
    fault = misfits({name: own[name] for name in shared}, {name: given[name] for name in shared})
    # transformers draws a missing tensor at random and passes over others.
    kinds = {"missing": "missing_keys", "unexpected": "unexpected_keys", "of another shape": "mismatched_keys"}
    for kind, key in kinds.items():
        if names := sorted(name for name in map(str, info.get(key, ())) if not DERIVED.search(name)):
            fault = fault or f"{len(names)} {kind}, first '{names[0]}'"
    if fault:
        raise UserError(f"{folder / WEIGHTS} does not fit {model} ({fault}); give the model's own repository")
    return opened


_LAYERS = {
    "norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense",
}  # fmt: skip
_FUSION = {f"resConfUnit{i}.conv": f"residual_layer{i}.convolution" for i in (1, 2)} | {"out_conv": "projection"}


def _fusion(level: str, part: str, x: str) -> str:
    """The authors count fusion blocks from the fine end, transformers from the coarse one."""
    old = next(old for old in _FUSION if part.startswith(old))
    return f"neck.fusion_stage.layers.{4 - int(level)}.{part.replace(old, _FUSION[old])}.{x}"


_BIT, _NECK = "dpt.embeddings.backbone.bit.", "neck.reassemble_stage."
_PATCHES, _POST = r"pretrained\.model\.patch_embed\.backbone\.", r"pretrained\.act_postprocess([34])\."
RULES: Rules = (  # names in the DPT authors' files -> transformers' names
    (r"pretrained\.model\.cls_token", "dpt.embeddings.cls_token"),
    (r"pretrained\.model\.pos_embed", "dpt.embeddings.position_embeddings"),
    (r"pretrained\.model\.patch_embed\.proj\.(\w+)", r"dpt.embeddings.projection.\1"),
    (_PATCHES + r"stem\.conv\.(\w+)", _BIT + r"embedder.convolution.\1"),
    (_PATCHES + r"stem\.norm\.(\w+)", _BIT + r"embedder.norm.\1"),
    (_PATCHES + r"stages\.(\d)\.blocks\.(\d+)\.(.+)", _BIT + r"encoder.stages.\1.layers.\2.\3"),
    (
        rf"pretrained\.model\.blocks\.(\d+)\.({'|'.join(_LAYERS)})\.(\w+)",
        lambda block, part, x: f"dpt.encoder.layer.{block}.{_LAYERS[part]}.{x}",
    ),
    (r"pretrained\.model\.norm\.(\w+)", r"dpt.layernorm.\1"),
    (_POST + r"0\.project\.0\.(\w+)", lambda level, x: f"{_NECK}readout_projects.{int(level) - 1}.0.{x}"),
    (_POST + r"3\.(\w+)", lambda level, x: f"{_NECK}layers.{int(level) - 1}.projection.{x}"),
    (_POST + r"4\.(\w+)", lambda level, x: f"{_NECK}layers.{int(level) - 1}.resize.{x}"),
    (r"scratch\.layer([1-4])_rn\.(\w+)", lambda level, x: f"neck.convs.{int(level) - 1}.{x}"),
    (r"scratch\.refinenet([1-4])\.(resConfUnit[12]\.conv[12]|out_conv)\.(\w+)", _fusion),
    (r"scratch\.output_conv\.([024])\.(\w+)", r"head.head.\1.\2"),
)
QKV = re.compile(r"pretrained\.model\.blocks\.(\d+)\.attn\.qkv\.(\w+)")
UNUSED = re.compile(r"pretrained\.model\.head\.")  # the image classifier that the encoder came with


def _from_original(file: Path, config: DPTConfig) -> DPTHybrid:
    state = convert_dpt(read_tensors(file, ("model",)), file)
    network = DPTHybrid(config)
    if fault := misfits(network.state_dict(), state):
        raise UserError(f"{file} is no DPT-Hybrid for depth ({fault}); give dpt_hybrid_nyu of isl-org/DPT")
    network.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    return network


def convert_dpt(state: dict[str, Tensor], file: Path) -> dict[str, Tensor]:
    """Rename the DPT authors' tensors as in transformers; UserError naming ``file`` if a name is not DPT-Hybrid's."""
    converted: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if match := QKV.fullmatch(name):  # Query, key and value are one tensor there, in this order.
            layer = f"dpt.encoder.layer.{match[1]}.attention.attention"
            parts = zip(("query", "key", "value"), tensor.chunk(3), strict=True)
            converted |= {f"{layer}.{part}.{match[2]}": values for part, values in parts}
        elif target := apply_rules(RULES, name):
            converted[target] = tensor
        elif not UNUSED.match(name):
            raise UserError(
                f"{file} has a tensor '{name}', which DPT-Hybrid does not; give dpt_hybrid_nyu of isl-org/DPT"
            )
    return converted
