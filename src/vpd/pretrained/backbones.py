"""Backbones' public weights from the hub or a copy, as checkpoint folders."""

from __future__ import annotations

from pathlib import Path

import torch

from vpd.config.schema import BackboneSpec, NetworkSpec
from vpd.models.backbones import build_backbone, save_backbone
from vpd.pretrained.assemble import MANIFEST
from vpd.pretrained.language import write_language
from vpd.pretrained.repository import Repository, open_language, open_repository
from vpd.pretrained.vision import convert_vision
from vpd.utils.digests import sha256
from vpd.utils.files import atomic_folder, write_json


def fetch_backbone(name: str, spec: BackboneSpec, out: Path) -> None:
    """Write backbone ``name`` to the checkpoint folder ``out``: vision/, where it has a text encoder language/, manifest.

    The weights are those of the hub repository ``spec.repo`` (or a mirror of it), or of its copy at ``spec.path``.
    UserError if they cannot be had, are damaged, or are not those of the architecture, tensor by tensor.
    """
    with atomic_folder(out) as temporary:
        repository = open_repository(name, spec)
        origin: dict = repository.origin
        vision, digests = _write_vision(repository, spec.vision, temporary)
        parameters, weights = {"vision": vision}, {"vision": digests}
        if spec.language is not None:
            words = open_language(name, spec)
            origin |= {"language": words.origin}
            parameters["language"], weights["language"] = write_language(words, spec.language, temporary / "language")
        write_json(
            temporary / MANIFEST,
            {
                "name": name,
                "source": spec.source,
                "objective": spec.objective,
                **origin,
                "weights": weights,
                "parameters": parameters,
                "files": _digests(temporary),
            },
        )


def _write_vision(repository: Repository, spec: NetworkSpec, out: Path) -> tuple[int, dict[str, str]]:
    with torch.device("meta"):
        backbone = build_backbone(spec)
    tensors, digests = convert_vision(repository, spec, backbone.network)
    backbone.network.load_state_dict(tensors, assign=True)
    save_backbone(backbone, spec, out)
    return sum(p.numel() for p in backbone.network.parameters()), digests


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256(path) for path in files}
