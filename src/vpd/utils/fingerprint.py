"""What a result was made from, and whether a folder still holds it.

Every stage writes two files beside its output. ``manifest.json`` describes the content: later stages depend on it alone, so a
stage that is run again and gives the same bytes makes nothing after it stale. ``fingerprint.json`` says what the content was
made from: settings, code and the manifests of the inputs. A stage has nothing to do if both still hold.
"""

import ast
import hashlib
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Required

from typing_extensions import TypedDict

from vpd.utils.digests import changed, digest, digests, remembered, sha256, tree
from vpd.utils.errors import UserError
from vpd.utils.files import AGAIN, read_json, write_json
from vpd.utils.files import FINGERPRINT as FINGERPRINT
from vpd.utils.files import MANIFEST as MANIFEST
from vpd.utils.validation import read_as

ROOT = Path(__file__).parents[1]
SCHEMA = 1  # version of the manifests' structure


class Recorded(TypedDict, total=False):
    """A fingerprint as it is written."""

    settings: str
    code: str
    inputs: dict[str, str]


class Manifest(TypedDict, total=False):
    """The facts of manifests that other stages read."""

    schema: int
    files: Required[dict[str, str]]
    place: str  # of a dataset that stays where its user has it
    steps: int | dict[str, int]  # of a run; of a pre-training by phase
    milestones: dict[str, int]
    recipe: dict[str, Any]


@dataclass(frozen=True)
class Fingerprint:
    """Digests of everything that decides a stage's output."""

    settings: str
    code: str  # of the packages that make the output; comments, docstrings and layout do not count
    inputs: dict[str, str] = field(default_factory=dict)  # of the manifest of each input, by the input's role

    @property
    def key(self) -> str:
        """Sixteen hex digits that change when anything above does; names the folder of resumable states."""
        return digest(asdict(self))

    def differences(self, recorded: Mapping[str, Any]) -> list[str]:
        """Parts that differ from a recorded fingerprint: ``settings``, ``code`` or roles of inputs."""
        own, other = self._parts(asdict(self)), self._parts(recorded)
        return [name for name in {**own, **other} if own.get(name) != other.get(name)]

    @staticmethod
    def _parts(value: Mapping[str, Any]) -> dict[str, Any]:
        return {"settings": value.get("settings"), "code": value.get("code"), **(value.get("inputs") or {})}


def fingerprint(settings: object, code: Iterable[str], inputs: Mapping[str, Path] | None = None) -> Fingerprint:
    """The fingerprint of an output that is to be made; UserError if an input has no manifest yet.

    ``settings`` are plain data, ``code`` packages or modules below ``vpd``, ``inputs`` folders with a manifest by role.
    """
    found = {role: sha256(manifest_path(folder)) for role, folder in (inputs or {}).items()}
    return Fingerprint(digest(settings), code_digest(*code), found)


def manifest_path(folder: Path) -> Path:
    """The manifest of ``folder``; UserError if the stage that makes it has not run."""
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(f"{path} does not exist; run the stage that makes {folder} first")
    return path


def write_manifest(
    folder: Path, made_from: Fingerprint, facts: Mapping[str, Any], files: Mapping[str, str] | None = None
) -> None:
    """Complete ``folder``: write its fingerprint and, last, its manifest, of all files if not given (name -> SHA-256).

    ``facts`` are what else the manifest says about the content; nothing that depends on time or place.
    """
    own = (MANIFEST, FINGERPRINT)
    files = files if files is not None else digests(folder, [name for name in tree(folder) if name not in own])
    write_json(folder / FINGERPRINT, asdict(made_from))
    write_json(folder / MANIFEST, {"schema": SCHEMA, **facts, "files": dict(files)})


def read_manifest(folder: Path, *facts: str) -> Any:
    """The manifest of ``folder``; UserError if it is missing, damaged, of another version of vpd, or lacks one of ``facts``."""
    path = manifest_path(folder)
    if (found := read_json(path).get("schema")) != SCHEMA:
        raise UserError(
            f"{path} has schema {found}, this version of vpd reads {SCHEMA}; run the stage that makes it again"
        )
    manifest = read_as(Manifest, path)
    if lacking := [fact for fact in facts if fact not in manifest]:
        raise UserError(f"{path} has no {lacking[0]}; {AGAIN}")
    return manifest


def read_fingerprint(folder: Path) -> Recorded:
    """What the content of ``folder`` was made from; UserError if that is missing or damaged."""
    return read_as(Recorded, folder / FINGERPRINT)


def check_intact(folder: Path, stage: str) -> None:
    """UserError naming the first file of ``folder`` that changed since its manifest; ``stage`` makes the folder.

    Unchanged files are told by size, times and inode, without reading them.
    """
    manifest = read_manifest(folder)
    for name in changed(files_at := folder / manifest.get("place", ""), manifest["files"]):
        how = "changed" if (files_at / name).is_file() else "removed"
        command = f"vpd {stage} {folder.name} --scale {folder.parent.name}"
        raise UserError(f"{files_at / name} was {how} after {MANIFEST} was written; run `{command}` again")


def is_finished(folder: Path, made_from: Fingerprint) -> bool:
    """Whether ``folder`` was completed from exactly ``made_from`` and still has the bytes its manifest lists."""
    try:
        recorded, manifest = read_fingerprint(folder), read_manifest(folder)
    except UserError:
        return False
    files_at = folder / manifest.get("place", "")
    return recorded == asdict(made_from) and not changed(files_at, manifest["files"])


# ------------------------------------------------------------------------------------------------------------------ code
@cache
def code_digest(*packages: str) -> str:
    """Sixteen hex digits of what packages (``models``) or modules (``datasets/ade20k``) do, data files included."""
    files = [path for package in packages for path in source_files(package)]

    def make() -> str:
        total = hashlib.sha256()
        for path in files:
            content = path.read_bytes()
            if path.suffix == ".py":
                content = meaning(content.decode("utf-8")).encode()
            total.update(f"{path.relative_to(ROOT)} {len(content)}\n".encode() + content)
        return total.hexdigest()[:16]

    # Parsing takes half a second. What a syntax tree looks like depends on Python's version and on this module.
    return remembered(f"code {sys.version} {packages}", [*files, Path(__file__)], make)


def git_commit(folder: Path = Path()) -> str:
    """Return the commit checked out around ``folder``, or an empty text outside a clone."""
    return _git(folder, "rev-parse", "HEAD")


def source_commit() -> str:
    """Return the commit of this source code, and whether it was edited; empty where it is installed without its clone."""
    # A package that is installed below somebody's clone is not among that clone's files.
    if not _git(ROOT, "ls-files", "--error-unmatch", Path(__file__).relative_to(ROOT).as_posix()):
        return ""
    edited = _git(ROOT, "status", "--porcelain", "--", ".")
    return git_commit(ROOT)[:12] + (" and uncommitted changes" if edited else "")


def _git(folder: Path, *arguments: str) -> str:
    try:
        answer = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True)
    except OSError:
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""


def source_files(package: str) -> list[Path]:
    """All files of a package below ``vpd``, or the one of a module."""
    place = ROOT / package
    if not place.is_dir():
        return [place.with_suffix(".py")]
    return sorted(path for path in place.rglob("*") if path.is_file() and "__pycache__" not in path.parts)


def meaning(source: str) -> str:
    """A module's syntax tree as text, without positions and docstrings."""
    syntax = ast.parse(source)
    for node in ast.walk(syntax):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            # A lone docstring is as much as `pass`; attribute docstrings are no code either.
            node.body = [line for line in node.body if not _is_text(line)] or [ast.Pass()]
    return ast.dump(syntax)


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
