"""Public weights of image encoders, by library: repository -> the tensors of our network, with no leftovers."""

from __future__ import annotations

import json
import sys

import timm
import torch
from timm.models import get_pretrained_cfg, list_pretrained, model_entrypoint, split_model_name_tag
from torch import Tensor, nn

from vpd.config.schema import NetworkSpec
from vpd.pretrained.fitting import misfits
from vpd.pretrained.repository import CONFIG, Repository, read_weights
from vpd.utils.errors import UserError

Converted = tuple[dict[str, Tensor], dict[str, str]]
"""Tensors by our names, and the digests of the files that they come from."""
DECODER = ("decoder", "mask_token")
"""Beginnings of what masked pre-training adds and throws away."""
ENCODERS = {"sam": "vision_encoder.", "blip": "vision_model.", "blip-2": "vision_model."}
"""Beginning of the image encoder's names in transformers' models, by architecture."""
NOT_IN_SHAPES = (
    "global_attn_indexes",
    "hidden_act",
    "layer_norm_eps",
    "num_attention_heads",
    "qkv_bias",
    "use_abs_pos",
    "use_rel_pos",
    "window_size",
)
"""Settings that change what a transformer computes but no tensor's shape."""


def convert_vision(repository: Repository, spec: NetworkSpec, network: nn.Module) -> Converted:
    """The repository's weights under the names of ``network``, in single precision.

    ``network`` is that of ``spec`` and may be on the meta device. UserError if the repository holds another architecture,
    or a tensor is missing, left over or of another shape, those of a classifier or a decoder aside.
    """
    convert = {"timm": _from_timm, "transformers": _from_transformers}[spec.library]
    tensors, digests = convert(repository, spec, network)
    fault = misfits(network.state_dict(), tensors)
    if fault:
        raise UserError(
            f"{repository.where} does not fit {spec.architecture} ({fault}); name its repository, or correct its options"
        )
    return {name: tensor.float().contiguous() for name, tensor in tensors.items()}, digests


# ----------------------------------------------------------------------------------------------------------------- timm
def _from_timm(repository: Repository, spec: NetworkSpec, network: nn.Module) -> Converted:
    _check_timm(repository, spec, network)
    tensors, digests = read_weights(repository)
    if any(name.startswith(DECODER[0]) for name in tensors):
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(DECODER)}
    with torch.device("meta"):
        whole = timm.create_model(spec.architecture, num_classes=1, **spec.options)
    # timm knows the layouts of the original files too, and resamples what depends on the image's size.
    known = sys.modules[model_entrypoint(spec.architecture).__module__].checkpoint_filter_fn(tensors, whole)
    classifier = whole.state_dict().keys() - network.state_dict().keys()
    return {name: tensor for name, tensor in known.items() if name not in classifier}, digests


def _check_timm(repository: Repository, spec: NetworkSpec, network: nn.Module) -> None:
    """UserError unless the repository is of the spec's architecture, or timm lists it among that one's weights.

    The latter holds for OpenAI's CLIP, whose activation timm gives an architecture of its own.
    """
    config = repository.config()
    found, trained = config.get("architecture"), config.get("pretrained_cfg", {})
    named = f"{found}.{trained.get('tag')}"
    if spec.architecture not in (found, named) and f"timm/{named}" not in _listed(spec.architecture):
        raise UserError(
            f"{repository.where} holds '{found}', but vision.architecture is '{spec.architecture}'; correct one of them"
        )
    for name in ("mean", "std"):
        own, other = network.pretrained_cfg[name], tuple(trained.get(name, ()))
        if tuple(own) != other:
            raise UserError(
                f"{repository.where} was trained with images of {name} {other}, but '{spec.architecture}' gets {own}; "
                f"set vision.options.pretrained_cfg to '{trained.get('tag')}'"
            )


def _listed(architecture: str) -> set[str]:
    """Repositories in which timm knows weights of an architecture."""
    configs = (get_pretrained_cfg(name) for name in list_pretrained(f"{split_model_name_tag(architecture)[0]}.*"))
    return {config.hf_hub_id for config in configs}


# --------------------------------------------------------------------------------------------------------- transformers
def _from_transformers(repository: Repository, spec: NetworkSpec, network: nn.Module) -> Converted:
    config = repository.config()
    if config.get("model_type") != spec.architecture:
        raise UserError(
            f"{repository.where} holds '{config.get('model_type')}', but vision.architecture is '{spec.architecture}'; "
            "correct one of them"
        )
    _check_settings(repository, network, config.get("vision_config", {}))
    prefix = ENCODERS[spec.architecture]
    tensors, digests = read_weights(repository, (prefix,))
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}, digests


def _check_settings(repository: Repository, network: nn.Module, given: dict) -> None:
    ours = json.loads(network.config.to_json_string(use_diff=False))
    theirs = json.loads(type(network.config)(**given).to_json_string(use_diff=False))
    for name in NOT_IN_SHAPES:
        own, other = ours.get(name), theirs.get(name)
        if own != other:
            raise UserError(
                f"{repository.where}: {CONFIG} has vision_config.{name} {other}, but the network has {own}; set "
                f"vision.options.{name} to {other}"
            )
