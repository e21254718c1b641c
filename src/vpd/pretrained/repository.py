"""A model repository in the layouts of timm and transformers, on the hub or as a copy: its settings and its tensors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from vpd.config.schema import BackboneSpec
from vpd.pretrained.reading import read_tensors, tensors_of
from vpd.utils.digests import sha256
from vpd.utils.errors import UserError
from vpd.utils.files import read_json

CONFIG = "config.json"
WEIGHTS, INDEX, PICKLE = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"
"""Weights in one file, the list of the files that they are spread over, and the form from before safetensors."""
CONTAINERS = ("state_dict", "model")
SECTION = "backbones"


@dataclass(frozen=True)
class Repository:
    """Files of one commit under ``folder``; those of the hub come when they are asked for.

    ``name`` is the line of params.yaml that asks. ``spec`` names the commit on the hub; None: ``folder`` is a copy.
    """

    name: str
    folder: Path
    spec: BackboneSpec | None = None

    @property
    def where(self) -> str:
        """How errors name the line and the place."""
        place = f"{self.spec.repo} at revision {self.spec.revision}" if self.spec else str(self.folder)
        return f"{SECTION}.{self.name}: {place}"

    @property
    def origin(self) -> dict[str, str]:
        """``repo`` and ``revision``, a commit; empty for a copy."""
        return {"repo": self.spec.repo, "revision": self.spec.revision} if self.spec else {}

    def has(self, file: str) -> bool:
        """Whether ``file`` is there; on the hub, ask with ``fetch`` first."""
        return (self.folder / file).is_file()

    def fetch(self, files: Sequence[str]) -> None:
        """Bring those of ``files`` that the repository has."""
        if self.spec is not None:
            from vpd.pretrained.hub import download

            download(self.name, self.spec, files, section=SECTION)

    def need(self, files: Sequence[str]) -> None:
        """Bring ``files``; UserError naming those that the repository lacks."""
        self.fetch(files)
        missing = [file for file in files if not self.has(file)]
        if missing:
            raise UserError(f"{self.where} has no {', no '.join(missing)}; name a repository that has, or a whole copy")

    def config(self) -> dict:
        """Contents of config.json."""
        self.need([CONFIG])
        return read_json(self.folder / CONFIG)

    def digests(self, files: Sequence[str]) -> dict[str, str]:
        """SHA-256 digests of ``files``; UserError if they are not those that the hub has for them."""
        if self.spec is None:
            return {file: sha256(self.folder / file) for file in files}
        from vpd.pretrained.hub import checked_digests

        return checked_digests(f"{SECTION}.{self.name}", self.folder, files)


def open_repository(name: str, spec: BackboneSpec) -> Repository:
    """The copy at ``spec.path``, or the first of ``spec.repo`` and its mirrors that is still there."""
    if spec.source == "folder":
        if spec.path is None:
            raise UserError(
                f"{SECTION}.{name} has source 'folder' but no path; give the path of a copy of its repository"
            )
        return open_copy(name, Path(spec.path))
    from vpd.pretrained.hub import download

    found = download(name, spec, [CONFIG], [CONFIG], section=SECTION)
    return Repository(name, found.folder, _pinned(spec, found.repo, found.revision))


def open_language(name: str, spec: BackboneSpec) -> Repository:
    """The repository of the text encoder; its ``repo`` may also be a folder that is a copy."""
    language = spec.language
    if Path(language.repo).is_dir():
        return open_copy(f"{name}.language", Path(language.repo))
    from vpd.pretrained.hub import download

    asked, cure = _pinned(spec, language.repo, language.revision), "set language.repo to the folder of a copy"
    found = download(f"{name}.language", asked, [CONFIG], [CONFIG], section=SECTION, cure=cure)
    return Repository(f"{name}.language", found.folder, _pinned(spec, found.repo, found.revision))


def open_copy(name: str, folder: Path) -> Repository:
    """A repository's copy in a folder."""
    if not folder.is_dir():
        raise UserError(
            f"{SECTION}.{name}: the folder {folder} does not exist; download the repository, or correct its path"
        )
    return Repository(name, folder)


def _pinned(spec: BackboneSpec, repo: str, revision: str) -> BackboneSpec:
    return spec.model_copy(update={"repo": repo, "revision": revision, "mirrors": ()})


# -------------------------------------------------------------------------------------------------------------- tensors
def read_weights(repository: Repository, prefixes: tuple[str, ...] = ("",)) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors whose names start with one of ``prefixes``, and the digests of the files that hold them.

    Only those files are fetched and only those tensors read: vision is a small part of a model that also writes.
    UserError if there are none, or a file is damaged, changed or a pickle of more than tensors.
    """
    files = _weight_files(repository, prefixes)
    digests = repository.digests(files)
    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors |= _read(repository.folder / file, prefixes)
    if not tensors:
        raise UserError(
            f"{repository.where} has no tensors under {' or '.join(prefixes)}; name the repository of another model"
        )
    return tensors, digests


def _weight_files(repository: Repository, prefixes: tuple[str, ...]) -> list[str]:
    repository.fetch([WEIGHTS, INDEX])
    if repository.has(WEIGHTS):
        return [WEIGHTS]
    if repository.has(INDEX):
        shards = read_json(repository.folder / INDEX)["weight_map"]
        files = sorted({Path(file).name for name, file in shards.items() if name.startswith(prefixes)})
        repository.need(files)
        return files
    repository.fetch([PICKLE])
    if not repository.has(PICKLE):
        raise UserError(f"{repository.where} has no {WEIGHTS}, no {INDEX}, no {PICKLE}; name one that has weights")
    return [PICKLE]


def _read(path: Path, prefixes: tuple[str, ...]) -> dict[str, Tensor]:
    if path.suffix != ".safetensors":
        return _starting(tensors_of(path, read_tensors(path), CONTAINERS).items(), prefixes)
    try:
        with safe_open(path, "pt") as file:
            names = [name for name in file.keys() if name.startswith(prefixes)]  # noqa: SIM118 - not a dictionary
            return {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged or cut off ({error}); download it again") from None


def _starting(tensors: Iterable[tuple[str, Tensor]], prefixes: tuple[str, ...]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors if name.startswith(prefixes)}
