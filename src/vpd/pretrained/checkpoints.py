"""Stable Diffusion checkpoint folders, made from any source. Planning imports this module, so it loads no torch at the top.

``manifest.json`` describes the content alone, so that the same weights from a mirror make no training run stale;
``origin.json`` says where they came from.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from vpd.config.schema import CheckpointSpec
from vpd.pretrained.stable_diffusion import (
    FILES,
    INDEX,
    TOKENIZER_FILES,
    UNUSED,
    WEIGHT_FILES,
    WEIGHTS,
    check_pipeline,
    pipeline_files,
)
from vpd.utils.digests import changed, digest, digests
from vpd.utils.errors import UserError, nearest, pick
from vpd.utils.files import atomic_folder, read_json, write_json
from vpd.utils.fingerprint import Fingerprint, fingerprint, is_finished, manifest_path, write_manifest

ORIGIN = "origin.json"
CODE = tuple(f"pretrained/{name}" for name in ("checkpoints", "stable_diffusion", "tensors", "hub"))
FILE_CODE = (*CODE, "pretrained/original", "pretrained/keymap")


@dataclass(frozen=True)
class Assembled:
    """What a source knows about the checkpoint that it wrote."""

    parameters: dict[str, int]
    """By network."""
    origin: dict[str, str] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    """SHA-256 of files that were read anyway."""


def checkpoint_fingerprint(name: str, spec: CheckpointSpec, pretraining: Path) -> Fingerprint:
    """Return what checkpoint ``name`` is made from; loads neither torch nor diffusers.

    Local sources count with the digests of their files, so that a folder changed in place is noticed; a branch of a hub
    repository counts by its name alone.

    Raises:
        UserError: source ``pretrained``, and the pre-training has not run.
    """
    settings = {"checkpoint": name, **spec.model_dump(mode="json")}
    if spec.source == "pretrained":
        return fingerprint(settings, CODE, {"pretraining": pretraining})
    if spec.source == "folder":
        return with_files(fingerprint(settings, CODE), spec.path, FILES)
    if spec.source == "file" and spec.path:
        path = Path(spec.path)
        made_from = with_files(fingerprint(settings, FILE_CODE), str(path.parent), [path.name])
        text_files = [*TOKENIZER_FILES, *(name for name in FILES if name.startswith(("tokenizer/", "text_encoder/")))]
        return with_files(made_from, spec.repo, text_files, role="tokenizer")
    return fingerprint(settings, CODE)


def with_files(made_from: Fingerprint, folder: str | None, names: Iterable[str], role: str = "source") -> Fingerprint:
    """Add the files of a local folder, where there is one, to the inputs of a fingerprint."""
    if folder is None or not Path(folder).is_dir():
        return made_from
    return replace(made_from, inputs={**made_from.inputs, role: digest(digests(Path(folder), names))})


def assemble(name: str, spec: CheckpointSpec, pretraining: Path, out: Path) -> None:
    """Write checkpoint ``name`` to ``out``: a Stable Diffusion 1 pipeline folder, complete or not at all.

    Args:
        name: entry of params.yaml's ``checkpoints``; for source ``pretrained`` also the milestone.
        spec: its source: a milestone, a pipeline folder, a hub repository, or an original file.
        pretraining: output of this scale's own pre-training.
        out: the folder, which is left alone if it was made from the same.

    Raises:
        UserError: the source is missing, damaged or not Stable Diffusion 1.
    """
    made_from = checkpoint_fingerprint(name, spec, pretraining)
    if is_finished(out, made_from):
        return
    with atomic_folder(out) as folder:
        made = SOURCES[spec.source](name, spec, pretraining, folder)
        names = pipeline_files(folder)
        files = {**digests(folder, [file for file in names if file not in made.digests]), **made.digests}
        if spec.source != "file":
            check_digests(name, files, spec.sha256)
        write_json(folder / ORIGIN, {"source": spec.source, **made.origin})
        write_manifest(folder, made_from, {"parameters": made.parameters}, {file: files[file] for file in names})


def check_digests(name: str, found: Mapping[str, str], expected: Mapping[str, str]) -> None:
    """Compare digests of checkpoint ``name`` with those, or the beginnings of those, in params.yaml."""
    for file, start in expected.items():
        if file not in found:
            raise UserError(f"checkpoints.{name}.sha256: unknown file '{file}'; {nearest(file, found)}")
        if not found[file].startswith(start.lower()):
            raise UserError(
                f"checkpoints.{name}: {file} has sha256 {found[file]}, expected {start}; fetch it again, or correct "
                f"checkpoints.{name}.sha256"
            )


# -------------------------------------------------------------------------------------------------------------- sources
def _from_milestone(name: str, spec: CheckpointSpec, pretraining: Path, target: Path) -> Assembled:
    manifest = read_json(manifest_path(pretraining))
    pick(name, manifest["milestones"], "milestone", str(manifest_path(pretraining)))
    own = {file: sha for file, sha in manifest["files"].items() if file.startswith(f"{name}/")}
    if differing := changed(pretraining, own):
        raise UserError(
            f"{pretraining} differs from its manifest in {', '.join(differing)}; run the pre-training again"
        )
    return _copied(pretraining / name, target, link=False)


def _from_folder(name: str, spec: CheckpointSpec, pretraining: Path, target: Path) -> Assembled:
    return _copied(_path(name, spec, "a diffusers folder"), target, link=True)


def _from_hub(name: str, spec: CheckpointSpec, pretraining: Path, target: Path) -> Assembled:
    from vpd.pretrained.hub import checked_digests, download, repositories

    where = f"checkpoints.{name}"
    snapshot = download(where, repositories(where, spec), FILES, [INDEX, *WEIGHT_FILES])
    known = checked_digests(where, snapshot.folder, pipeline_files(snapshot.folder))
    made = _copied(snapshot.folder, target, link=True)
    del known[INDEX]  # It is rewritten.
    return replace(made, origin={"repo": snapshot.repo, "revision": snapshot.revision}, digests=known)


def _from_file(name: str, spec: CheckpointSpec, pretraining: Path, target: Path) -> Assembled:
    from vpd.pretrained.original import convert_file

    path = _path(name, spec, "a .ckpt or .safetensors file")
    digest_of = digests(path.parent, [path.name])
    if digest_of:  # A missing file is reported where it is read.
        check_digests(name, digest_of, spec.sha256)
    parameters, origin = convert_file(f"checkpoints.{name}", path, spec, target)
    return Assembled(parameters, {"file": path.name, "sha256": digest_of[path.name], **origin})


SOURCES: dict[str, Callable[[str, CheckpointSpec, Path, Path], Assembled]] = {
    "pretrained": _from_milestone,
    "folder": _from_folder,
    "hub": _from_hub,
    "file": _from_file,
}
"""Source -> function that fills an empty folder."""


def _path(name: str, spec: CheckpointSpec, what: str) -> Path:
    if spec.path is None:
        raise UserError(f"checkpoints.{name} has source '{spec.source}' but no path; give the path of {what}")
    return Path(spec.path)


def _copied(source: Path, target: Path, link: bool) -> Assembled:
    """Check and copy a pipeline folder; with ``link``, weights become hard links where that is possible."""
    parameters = check_pipeline(source)
    for name in pipeline_files(source):
        (target / name).parent.mkdir(exist_ok=True)
        weights = Path(name).name in WEIGHTS.values()
        copy_file(source / name, target / name, link=link and weights)
    index = read_json(source / INDEX)
    write_json(target / INDEX, index | {key: value for key, value in UNUSED.items() if key in index})
    return Assembled(parameters)


def copy_file(source: Path, target: Path, link: bool) -> None:
    """Copy a file, or make a hard link to it where the file system allows, which costs no disk space."""
    if link:
        try:
            os.link(source.resolve(), target)
            return
        except OSError:  # Another disk, or a file system without hard links.
            pass
    shutil.copyfile(source, target)
