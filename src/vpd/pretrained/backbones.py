"""Public weights of backbones, from the hub or a copy, as checkpoint folders. Planning imports this without torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vpd.config.schema import BackboneSpec
from vpd.pretrained.checkpoints import ORIGIN, with_files
from vpd.utils.digests import digests, tree
from vpd.utils.errors import UserError
from vpd.utils.files import atomic_folder, write_json
from vpd.utils.fingerprint import Fingerprint, fingerprint, is_finished, write_manifest

if TYPE_CHECKING:
    from vpd.pretrained.hub import Repository

CONFIG = "config.json"
CODE = ("models/backbones", *(f"pretrained/{name}" for name in ("backbones", "networks", "tensors", "hub")))
SETTINGS = {"source", "objective", "vision", "language", "repo", "revision", "mirrors", "path"}
"""Fields of the spec that matter for public weights; the others are for backbones that are pre-trained here."""
KINDS = {".json", ".safetensors", ".bin", ".txt"}
"""Endings of the files of a repository that can matter."""


def fetched_backbone_fingerprint(name: str, spec: BackboneSpec) -> Fingerprint:
    """Return what a backbone with public weights is made from; loads neither torch nor transformers.

    A copy in a folder counts with the digests of its files; a branch of a hub repository counts by its name alone.
    """
    settings = spec.model_dump(mode="json", include=SETTINGS)
    made_from = _with_copy(fingerprint({"backbone": name, **settings}, CODE), spec.path, "source")
    return _with_copy(made_from, spec.language.repo if spec.language else None, "language")


def _with_copy(made_from: Fingerprint, folder: str | None, role: str) -> Fingerprint:
    files = Path(folder).glob("*") if folder else ()
    return with_files(made_from, folder, sorted(path.name for path in files if path.suffix in KINDS), role)


def fetch_backbone(name: str, spec: BackboneSpec, out: Path) -> None:
    """Write backbone ``name`` to the checkpoint folder ``out``: vision/ and, with a text encoder, language/.

    Args:
        name: entry of params.yaml's ``backbones``.
        spec: the hub repository and its mirrors, or the folder of a copy; the architecture that it must hold.
        out: the folder, complete or absent; it is left alone if it was made from the same.

    Raises:
        UserError: the weights are missing, damaged, or not those of the architecture, tensor by tensor.
    """
    made_from = fetched_backbone_fingerprint(name, spec)
    if is_finished(out, made_from):
        return
    from vpd.pretrained.networks import write_language, write_vision

    with atomic_folder(out) as folder:
        vision, language = _open(f"backbones.{name}", spec)
        parameters = {"vision": write_vision(vision, spec.vision, folder)}
        origin: dict[str, Any] = {"source": spec.source, "objective": spec.objective, **vision.origin}
        if spec.language and language:
            parameters["language"] = write_language(language, spec.language, folder / "language")
            origin["language"] = language.origin
        write_json(folder / ORIGIN, origin)
        files = digests(folder, [file for file in tree(folder) if file != ORIGIN])
        write_manifest(folder, made_from, {"parameters": parameters}, files)


def _open(entry: str, spec: BackboneSpec) -> tuple[Repository, Repository | None]:
    """Open the repositories of the image encoder and, where there is one, of the text encoder."""
    from vpd.pretrained.hub import Repository, download, repositories

    def copy(where: str, folder: str) -> Repository:
        if not Path(folder).is_dir():
            raise UserError(
                f"{where}: the folder {folder} does not exist; download the repository, or correct its path"
            )
        return Repository(where, Path(folder))

    if spec.source == "folder" and spec.path is None:
        raise UserError(f"{entry} has source 'folder' but no path; give the path of a copy of its repository")
    local = spec.source == "folder" and spec.path
    vision = copy(entry, local) if local else download(entry, repositories(entry, spec), [CONFIG], [CONFIG])
    if (language := spec.language) is None:
        return vision, None
    where, repo = f"{entry}.language", f"{language.repo}@{language.revision}"
    if Path(language.repo).is_dir():
        return vision, copy(where, language.repo)
    cure = "set language.repo to the folder of a copy"
    return vision, download(where, [repo], [CONFIG], [CONFIG], cure)
