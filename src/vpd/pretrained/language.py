"""Public weights of a backbone's text encoder: a transformers BertModel folder with its tokenizer."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoTokenizer, BertConfig, BertModel

from vpd.config.schema import LanguageSpec
from vpd.pretrained.fitting import misfits
from vpd.pretrained.repository import CONFIG, Repository, read_weights
from vpd.utils.errors import UserError

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")
FORMS = ("tokenizer.json", "vocab.txt")
"""Files of a tokenizer, one of which is enough."""
PREFIX = "bert."
LAYERS = ("embeddings.", "encoder.")
"""Parts of BERT that give token states; its pooler and the heads of its pre-training are left out."""
FIRST_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
"""What TensorFlow called a norm's tensors, in the first files."""


def write_language(repository: Repository, spec: LanguageSpec, target: Path) -> tuple[int, dict[str, str]]:
    """Write the text encoder to the folder ``target``; its parameters, and the digests of the files it comes from.

    UserError if the repository holds no whole BERT, or not the one of ``spec``.
    """
    config = _config(repository, spec)
    names = (*LAYERS, *(PREFIX + layer for layer in LAYERS))
    given, digests = read_weights(repository, names)
    with torch.device("meta"):
        model = BertModel(config, add_pooling_layer=False)
    tensors = {_name(name): tensor.float() for name, tensor in given.items() if "position_ids" not in name}
    fault = misfits(model.state_dict(), tensors)
    if fault:
        raise UserError(f"{repository.where} holds no whole BERT ({fault}); name another repository")
    parameters = sum(tensor.numel() for tensor in tensors.values())
    _save(config, tensors, target)
    _copy_tokenizer(repository, config, target)
    return parameters, digests


def _config(repository: Repository, spec: LanguageSpec) -> BertConfig:
    given = repository.config()
    if given.get("model_type") != spec.architecture:
        raise UserError(
            f"{repository.where} holds '{given.get('model_type')}', but language.architecture is '{spec.architecture}'; "
            "correct one of them"
        )
    for name, value in spec.options.items():
        if given.get(name) != value:
            raise UserError(
                f"{repository.where}: {CONFIG} has {name} {given.get(name)}, but language.options.{name} is {value}; "
                "correct or remove it"
            )
    return BertConfig.from_dict(given)


def _name(name: str) -> str:
    name = name.removeprefix(PREFIX)
    for first, now in FIRST_NAMES.items():
        name = name.replace(first, now)
    return name


def _save(config: BertConfig, tensors: dict[str, Tensor], target: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        model = BertModel(config, add_pooling_layer=False)
    model.load_state_dict(tensors)
    model.save_pretrained(target)


def _copy_tokenizer(repository: Repository, config: BertConfig, target: Path) -> None:
    repository.fetch(TOKENIZER)
    if not any(repository.has(file) for file in FORMS):
        raise UserError(f"{repository.where} has no {', no '.join(FORMS)}; name a repository with a tokenizer")
    for file in filter(repository.has, TOKENIZER):
        shutil.copyfile(repository.folder / file, target / file)
    words = len(AutoTokenizer.from_pretrained(target))
    if words > config.vocab_size:
        raise UserError(
            f"{repository.where}: its tokenizer knows {words} tokens but its BERT {config.vocab_size}; name a repository "
            "whose parts belong together"
        )
