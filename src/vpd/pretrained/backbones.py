"""Public weights of backbones, from the hub or a copy, as checkpoint folders. Planning imports this without torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vpd.config.schema import BackboneSpec
from vpd.pretrained.checkpoints import ORIGIN, with_files
from vpd.utils.digests import digests, tree
from vpd.utils.errors import UserError
from vpd.utils.files import atomic_folder, read_json, write_json
from vpd.utils.fingerprint import Fingerprint, fingerprint, is_finished, write_manifest

CONFIG = "config.json"
CODE = ("models/backbones", *(f"pretrained/{name}" for name in ("backbones", "networks", "tensors", "hub")))
SETTINGS = {"source", "vision", "language", "repo", "revision", "mirrors", "path"}
"""Fields of the spec that decide the weights; the others are for backbones that are pre-trained here."""
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
        vision = _open_vision(f"backbones.{name}", spec)
        parameters = {"vision": write_vision(vision, spec.vision, folder)}
        origin: dict[str, Any] = {"source": spec.source, "objective": spec.objective, **vision.origin}
        if spec.language is not None:
            language = open_repository(
                f"backbones.{name}.language",
                [f"{spec.language.repo}@{spec.language.revision}"],
                spec.language.repo if Path(spec.language.repo).is_dir() else None,
                "set language.repo to the folder of a copy",
            )
            parameters["language"] = write_language(language, spec.language, folder / "language")
            origin["language"] = language.origin
        write_json(folder / ORIGIN, origin)
        files = digests(folder, [file for file in tree(folder) if file != ORIGIN])
        write_manifest(folder, made_from, {"parameters": parameters}, files)


def _open_vision(where: str, spec: BackboneSpec) -> Repository:
    if spec.source == "folder":
        if spec.path is None:
            raise UserError(f"{where} has source 'folder' but no path; give the path of a copy of its repository")
        return open_repository(where, (), spec.path)
    from vpd.pretrained.hub import repositories

    return open_repository(where, repositories(where, spec))


@dataclass(frozen=True)
class Repository:
    """A model repository: a copy in ``folder``, or one commit on the hub whose files are downloaded when they are needed."""

    entry: str
    """The line of params.yaml that asks for it, for errors."""
    folder: Path
    commit: str | None = None
    """``owner/model@commit``; None for a copy."""

    @property
    def where(self) -> str:
        """The entry and the place, for errors."""
        return f"{self.entry}: {self.commit.replace('@', ' at revision ') if self.commit else self.folder}"

    @property
    def origin(self) -> dict[str, str]:
        """``repo`` and ``revision``, a commit; empty for a copy."""
        return dict(zip(("repo", "revision"), self.commit.split("@"), strict=True)) if self.commit else {}

    def bring(self, files: Iterable[str]) -> list[str]:
        """Download those of ``files`` that the repository has; return those that are there."""
        names = list(files)
        if self.commit:
            from vpd.pretrained.hub import download

            download(self.entry, [self.commit], names)
        return [file for file in names if (self.folder / file).is_file()]

    def need(self, files: Iterable[str]) -> None:
        """Bring all of ``files``; UserError naming those that the repository lacks."""
        names = list(files)
        if missing := sorted(set(names) - set(self.bring(names))):
            raise UserError(f"{self.where} has no {', no '.join(missing)}; name a repository that has, or a whole copy")

    def config(self) -> dict[str, Any]:
        """Contents of config.json."""
        self.need([CONFIG])
        return read_json(self.folder / CONFIG)

    def verify(self, files: Sequence[str]) -> None:
        """Raise UserError unless the bytes of downloaded files are those that the hub states."""
        if self.commit:
            from vpd.pretrained.hub import checked_digests

            checked_digests(self.entry, self.folder, files)


def open_repository(where: str, repos: Sequence[str], copy: str | None = None, cure: str | None = None) -> Repository:
    """Open the copy in a folder or, without one, the first of ``repos`` (``owner/model@revision``) that is there."""
    if copy is not None:
        if not Path(copy).is_dir():
            raise UserError(f"{where}: the folder {copy} does not exist; download the repository, or correct its path")
        return Repository(where, Path(copy))
    from vpd.pretrained.hub import CURE, download

    snapshot = download(where, repos, [CONFIG], [CONFIG], cure or CURE)
    return Repository(where, snapshot.folder, f"{snapshot.repo}@{snapshot.revision}")
