"""Public weights of backbones as checkpoint folders: a repository's tensors under our networks' names, with none left over."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any, cast

import timm
import torch
from safetensors import SafetensorError, safe_open
from timm.models import get_pretrained_cfg, list_pretrained, model_entrypoint, split_model_name_tag
from torch import Tensor, nn
from transformers import BertConfig, BertModel, PretrainedConfig

from vpd.config.schema import BackboneSpec, LanguageSpec, NetworkSpec
from vpd.models.backbones import build_backbone, load_backbone, save_backbone
from vpd.models.base import misfits
from vpd.pretrained.checkpoints import ORIGIN, fetched_backbone_fingerprint
from vpd.pretrained.hub import Repository, download, repositories
from vpd.pretrained.shipped import check_shipped, shipped_facts
from vpd.pretrained.tensors import is_safetensors, reason
from vpd.utils.digests import digests, tree
from vpd.utils.errors import UserError
from vpd.utils.files import atomic_folder, read_json, write_json
from vpd.utils.fingerprint import is_finished, write_manifest

Tensors = dict[str, Tensor]
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
# Beginning of the image encoder's names in transformers' models, by architecture.
ENCODERS = {"sam": "vision_encoder.", "blip": "vision_model."}
# Settings that change what a transformer computes but no tensor's shape, so that comparing tensors does not show them.
NOT_IN_SHAPES = (
    "global_attn_indexes", "hidden_act", "layer_norm_eps", "num_attention_heads", "qkv_bias", "use_abs_pos", "use_rel_pos",
    "window_size",
)  # fmt: skip
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")
BERT_LAYERS = ("embeddings.", "encoder.", "bert.embeddings.", "bert.encoder.")  # without pooler and heads


def fetch_backbone(name: str, spec: BackboneSpec, out: Path) -> None:
    """Write backbone ``name`` to the checkpoint folder ``out``: vision/ and, with a text encoder, language/.

    Args:
        name: entry of params.yaml's ``backbones``.
        spec: the hub repository and its mirrors, or the folder of a copy; the architecture that it must hold.
        out: the folder, complete or absent.

    Raises:
        UserError: the weights are missing, damaged, or not those of the architecture, tensor by tensor.
    """
    made_from = fetched_backbone_fingerprint(name, spec)
    if is_finished(out, made_from):
        return
    with atomic_folder(out) as folder:
        vision = _open(f"backbones.{name}", spec)
        parameters = {"vision": _write_vision(vision, spec.vision, folder)}
        origin: dict[str, Any] = {"source": spec.source, "objective": spec.objective, **vision.origin}
        if spec.language:
            place, entry = spec.language.repo, f"backbones.{name}.language"
            repo, cure = f"{place}@{spec.language.revision}", "set language.repo to the folder of a copy"
            copied = Path(place).is_dir()
            language = Repository(entry, Path(place)) if copied else download(entry, [repo], [CONFIG], [CONFIG], cure)
            parameters["language"] = _write_language(language, spec.language, folder / "language")
            origin["language"] = language.origin
        write_json(folder / ORIGIN, origin)
        files = digests(folder, [file for file in tree(folder) if file != ORIGIN])
        write_manifest(folder, made_from, {"parameters": parameters}, files)


def take_backbone(name: str, spec: BackboneSpec, out: Path) -> None:
    """Write backbone ``name`` to the checkpoint folder ``out`` from the weights in git at ``spec.path``.

    Raises:
        UserError: the weights are missing, damaged, of another recipe, or not those of the architecture.
    """
    made_from, source = fetched_backbone_fingerprint(name, spec), Path(spec.path or "")
    if is_finished(out, made_from):
        return
    manifest = check_shipped(source, spec.recipe)
    load_backbone(source)
    if spec.language:
        from vpd.models.lavt import load_language

        load_language(source)
    with atomic_folder(out) as folder:
        for file in manifest["files"]:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / file, folder / file)
        write_manifest(folder, made_from, {**shipped_facts(source), "source": "shipped"})


def _open(entry: str, spec: BackboneSpec) -> Repository:
    """Open the repository of the image encoder."""
    if spec.source == "hub":
        return download(entry, repositories(entry, spec), [CONFIG], [CONFIG])
    if spec.path is None:
        raise UserError(f"{entry} has source 'folder' but no path; give the path of a copy of its repository")
    if not Path(spec.path).is_dir():
        raise UserError(f"{entry}: the folder {spec.path} does not exist; download the repository, or correct its path")
    return Repository(entry, Path(spec.path))


def _read_weights(repository: Repository, *prefixes: str) -> Tensors:
    """Read the tensors whose names start with one of ``prefixes``, or all; UserError if the file is not the hub's, or bad."""
    repository.bring([WEIGHTS], needed=[WEIGHTS])
    repository.check([WEIGHTS])
    path = repository.folder / WEIGHTS
    is_safetensors(path)  # or a stand-in, which is named
    try:
        with safe_open(path, "pt") as file:
            tensors = {n: file.get_tensor(n) for n in file.keys() if n.startswith(prefixes or "")}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged or cut off ({error}); download it again") from None
    if not tensors:
        raise UserError(f"{repository} has no tensors under {' or '.join(prefixes)}; name another model's repository")
    return tensors


def _read_config(repository: Repository, spec: NetworkSpec | LanguageSpec, part: str) -> dict[str, Any]:
    """Read config.json of a repository in transformers' layout; UserError if it is missing or of another architecture."""
    repository.bring([CONFIG], needed=[CONFIG])
    config = read_json(repository.folder / CONFIG)
    model = config.get("model_type", config.get("architecture"))
    if part and model != spec.architecture:
        raise UserError(_other_architecture(repository, model, part, spec.architecture))
    return config


def _other_architecture(repository: Repository, given: str | None, part: str, wanted: str) -> str:
    return f"{repository} holds '{given}', but {part}.architecture is '{wanted}'; correct one of them"


def _write_vision(repository: Repository, spec: NetworkSpec, out: Path) -> int:
    """Write the image encoder to ``out``/vision in single precision; return its number of parameters."""
    with torch.device("meta"):
        backbone = build_backbone(spec)
    read = {"timm": _from_timm, "transformers": _from_transformers}[spec.library]
    tensors = read(repository, spec, backbone.network)
    if fault := misfits(backbone.network.state_dict(), tensors):
        raise UserError(
            f"{repository} does not fit {spec.architecture} ({fault}); name its repository, or correct its options"
        )
    backbone.network.load_state_dict({name: x.float().contiguous() for name, x in tensors.items()}, assign=True)
    save_backbone(backbone, spec, out)
    return sum(parameter.numel() for parameter in backbone.network.parameters())


def _from_timm(repository: Repository, spec: NetworkSpec, network: nn.Module) -> Tensors:
    _check_timm(repository, spec, network)
    tensors = _read_weights(repository)
    with torch.device("meta"):
        whole = timm.create_model(spec.architecture, num_classes=1, **spec.options)
    # timm's own pretrained=True does the same, but passes over missing tensors when there is no classifier.
    module = sys.modules[model_entrypoint(spec.architecture).__module__]
    classifier = whole.state_dict().keys() - network.state_dict().keys()
    try:
        converted = module.checkpoint_filter_fn(tensors, whole)
    except Exception as error:  # it looks tensors and modules up by names that a file of another network lacks
        raise UserError(
            f"{repository} does not fit {spec.architecture} ({type(error).__name__}: {reason(error)}); name its repository"
        ) from None
    return {name: x for name, x in converted.items() if name not in classifier}


def _check_timm(repository: Repository, spec: NetworkSpec, network: nn.Module) -> None:
    """Refuse a repository of another architecture, or trained with images normalised otherwise."""
    config = _read_config(repository, spec, "")
    architecture, trained = config.get("architecture"), config.get("pretrained_cfg", {})
    tag = trained.get("tag")
    # OpenAI's CLIP weights go by the name of an architecture with another activation, but timm lists them with the right one.
    names = list_pretrained(f"{split_model_name_tag(spec.architecture)[0]}.*")
    listed = f"timm/{architecture}.{tag}" in {cfg.hf_hub_id for name in names if (cfg := get_pretrained_cfg(name))}
    if spec.architecture not in (architecture, f"{architecture}.{tag}") and not listed:
        raise UserError(_other_architecture(repository, architecture, "vision", spec.architecture))
    normalisation = cast(dict[str, Any], network.pretrained_cfg)
    for name in ("mean", "std"):
        own, other = tuple(normalisation[name]), tuple(trained.get(name, ()))
        if own != other:
            raise UserError(
                f"{repository} was trained with images of {name} {other}, but '{spec.architecture}' gets {own}; "
                f"set vision.options.pretrained_cfg to '{tag}'"
            )


def _from_transformers(repository: Repository, spec: NetworkSpec, network: nn.Module) -> Tensors:
    settings = cast(PretrainedConfig, network.config)
    given = type(settings)(**_read_config(repository, spec, "vision").get("vision_config", {}))
    ours, theirs = (json.loads(config.to_json_string(use_diff=False)) for config in (settings, given))
    for name in NOT_IN_SHAPES:
        own, other = ours.get(name), theirs.get(name)
        if own != other:
            raise UserError(
                f"{repository}: {CONFIG} has vision_config.{name} {other}, but the network has {own}; "
                f"set vision.options.{name} to {other}"
            )
    prefix = ENCODERS[spec.architecture]
    return {name.removeprefix(prefix): tensor for name, tensor in _read_weights(repository, prefix).items()}


def _write_language(repository: Repository, spec: LanguageSpec, out: Path) -> int:
    """Write a BERT without its pooler, and its tokenizer, to ``out`` as transformers does; return its parameters."""
    given = _read_config(repository, spec, "language")
    for name, value in spec.options.items():
        if given.get(name) != value:
            raise UserError(
                f"{repository}: {CONFIG} has {name} {given.get(name)}, but language.options.{name} is {value}; "
                "correct or remove it"
            )
    config, state = BertConfig.from_dict(given), _read_weights(repository, *BERT_LAYERS)
    # The first files call a norm's tensors as TensorFlow does.
    tensors = {
        n.removeprefix("bert.").replace("Norm.gamma", "Norm.weight").replace("Norm.beta", "Norm.bias"): tensor
        for n, tensor in state.items()
        if "position_ids" not in n
    }
    with torch.random.fork_rng(devices=[]):  # Its fresh weights are drawn, then replaced.
        model = BertModel(config, add_pooling_layer=False)
    if fault := misfits(model.state_dict(), tensors):
        raise UserError(f"{repository} holds no whole BERT ({fault}); name another repository")
    model.load_state_dict(tensors)
    model.save_pretrained(out)
    present = repository.bring(TOKENIZER)
    if not {"tokenizer.json", "vocab.txt"} & set(present):
        raise UserError(f"{repository} has no tokenizer.json, no vocab.txt; name a repository with a tokenizer")
    for file in present:
        shutil.copyfile(repository.folder / file, out / file)
    return sum(tensor.numel() for tensor in tensors.values())
