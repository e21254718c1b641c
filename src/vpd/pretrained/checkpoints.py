"""Checkpoint folders: what each is made from, and Stable Diffusion's, made from any source. Planning imports it without torch."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from vpd.config.schema import BackboneSpec, CheckpointSpec
from vpd.pretrained import stable_diffusion as sd
from vpd.pretrained.shipped import check_shipped
from vpd.utils.digests import changed, digest, digests
from vpd.utils.errors import UserError, nearest, pick
from vpd.utils.files import atomic_folder, files_in, read_json, write_json
from vpd.utils.fingerprint import (
    MANIFEST,
    Fingerprint,
    fingerprint,
    is_finished,
    manifest_path,
    read_manifest,
    write_manifest,
)

ORIGIN = "origin.json"  # where weights came from; not in the manifest, so that those of a mirror make no run stale
CODE = tuple(f"pretrained/{name}" for name in ("checkpoints", "stable_diffusion", "tensors", "hub"))
FILE_CODE = (*CODE, "pretrained/original")
SHIPPED_CODE = (*CODE, "pretrained/shipped")
BACKBONE_CODE = (
    "models/backbones",
    *(f"pretrained/{name}" for name in ("checkpoints", "backbones", "shipped", "tensors", "hub")),
)
# Fields of the spec that matter for public weights; the others are for backbones that are pre-trained here.
BACKBONE_SETTINGS = {"source", "objective", "vision", "language", "repo", "revision", "mirrors", "path", "recipe"}
KINDS = {".json", ".safetensors", ".bin", ".txt"}  # endings of the files of a repository that can matter


def checkpoint_fingerprint(name: str, spec: CheckpointSpec, pretraining: Path) -> Fingerprint:
    """Return what checkpoint ``name`` is made from: local files by digest, a hub repository by name; UserError if missing."""
    settings = {"checkpoint": name, **spec.model_dump(mode="json")}
    if spec.source == "pretrained":
        return fingerprint(settings, CODE, {"pretraining": pretraining})
    if spec.source == "shipped":
        return _with_files(fingerprint(settings, SHIPPED_CODE), spec.path, [MANIFEST])
    if spec.source == "folder":
        return _with_files(
            fingerprint(settings, CODE), spec.path, (*sd.FILES, *sd.HALF_FILES, *sd.shards(Path(spec.path or "")))
        )
    if spec.source == "file" and spec.path:
        path = Path(spec.path)
        made_from = _with_files(fingerprint(settings, FILE_CODE), str(path.parent), [path.name])
        return _with_files(made_from, spec.repo, sd.TOKENIZER_PATHS, role="tokenizer")
    return fingerprint(settings, CODE)


def fetched_backbone_fingerprint(name: str, spec: BackboneSpec) -> Fingerprint:
    """Return what a backbone with public weights is made from, as ``checkpoint_fingerprint`` does."""
    settings = {"backbone": name, **spec.model_dump(mode="json", include=BACKBONE_SETTINGS)}
    made_from = fingerprint(settings, BACKBONE_CODE)
    for role, folder in (("source", spec.path), ("language", spec.language.repo if spec.language else None)):
        files = files_in(Path(folder)) if folder else ()
        made_from = _with_files(made_from, folder, [file.name for file in files if file.suffix in KINDS], role)
    return made_from


def _with_files(made_from: Fingerprint, folder: str | None, names: Iterable[str], role: str = "source") -> Fingerprint:
    """Add the files of a local folder, where there is one, to the inputs of a fingerprint."""
    if folder is None or not Path(folder).is_dir():
        return made_from
    return replace(made_from, inputs={**made_from.inputs, role: digest(digests(Path(folder), names))})


def assemble(name: str, spec: CheckpointSpec, pretraining: Path, out: Path) -> None:
    """Write checkpoint ``name`` to ``out``, a Stable Diffusion pipeline folder, unless it was made from the same.

    Args:
        name: entry of params.yaml's ``checkpoints``; for source ``pretrained`` also the milestone.
        spec: its source: a milestone, a pipeline folder, a hub repository, or an original file.
        pretraining: output of this scale's own pre-training.
        out: the folder, complete or absent.

    Raises:
        UserError: the source is missing, damaged or not of the spec's family.
    """
    made_from = checkpoint_fingerprint(name, spec, pretraining)
    if is_finished(out, made_from):
        return
    with atomic_folder(out) as folder:
        parameters, origin = _fill(name, spec, pretraining, folder)
        files = digests(folder, sd.pipeline_files(folder, sd.FAMILIES[spec.family]))
        if spec.source != "file":
            _check_digests(name, files, spec.sha256)
        write_json(folder / ORIGIN, {"source": spec.source, **origin})
        write_manifest(folder, made_from, {"parameters": parameters}, files)


def _check_digests(name: str, found: Mapping[str, str], expected: Mapping[str, str]) -> None:
    """Compare a checkpoint's digests with those, or the beginnings of those, in params.yaml."""
    for file, start in expected.items():
        if file not in found:
            raise UserError(f"checkpoints.{name}.sha256: unknown file '{file}'; {nearest(file, found)}")
        if not found[file].startswith(start.lower()):
            raise UserError(
                f"checkpoints.{name}: {file} has sha256 {found[file]}, expected {start}; fetch it again, or correct "
                f"checkpoints.{name}.sha256"
            )


def _fill(name: str, spec: CheckpointSpec, pretraining: Path, target: Path) -> tuple[dict[str, int], dict[str, str]]:
    """Write the pipeline to the empty folder ``target``; return parameters by network, and where they come from."""
    entry, family = f"checkpoints.{name}", sd.FAMILIES[spec.family]
    if spec.source == "pretrained":
        # Copied, because pre-training writes its folders anew.
        return _copy(_milestone(name, pretraining), target, family, link=False), {}
    if spec.source == "hub":
        from vpd.pretrained.hub import download, repositories

        repository = download(entry, repositories(entry, spec), family.files, [sd.INDEX, *family.weights])
        repository.check(sd.pipeline_files(repository.folder, family))
        return _copy(repository.folder, target, family), repository.origin
    if spec.path is None:
        raise UserError(f"{entry} has source '{spec.source}' but no path; give the path of the {spec.source}")
    path = Path(spec.path)
    if spec.source == "shipped":
        check_shipped(path, spec.recipe)
        return _copy(path, target, family, link=False), {}
    if spec.source == "folder":
        return _copy(path, target, family), {}
    from vpd.pretrained.original import convert_file

    digest_of = digests(path.parent, [path.name])
    if digest_of:  # A missing file is reported where it is read.
        _check_digests(name, digest_of, spec.sha256)
    parameters, origin = convert_file(entry, path, spec, target)
    return parameters, {"file": path.name, "sha256": digest_of[path.name], **origin}


def _milestone(name: str, pretraining: Path) -> Path:
    """Return the folder of a milestone of our own pre-training; UserError unless it is as its manifest says."""
    manifest = read_manifest(pretraining, "milestones")
    pick(name, manifest["milestones"], "milestone", str(manifest_path(pretraining)))
    own = {file: sha256 for file, sha256 in manifest["files"].items() if file.startswith(f"{name}/")}
    if differing := changed(pretraining, own):
        raise UserError(
            f"{pretraining} differs from its manifest in {', '.join(differing)}; run the pre-training again"
        )
    return pretraining / name


def _copy(source: Path, target: Path, family: sd.Family, link: bool = True) -> dict[str, int]:
    """Check and copy a pipeline folder; with ``link``, weights become hard links, which cost no disk, where that works."""
    parameters = sd.check_pipeline(source, family)
    for name in sd.pipeline_files(source, family):
        (target / name).parent.mkdir(exist_ok=True)
        with contextlib.suppress(OSError):  # another disk, or a file system without hard links
            if link and name.endswith(".safetensors"):
                os.link(sd.at(source, name).resolve(), target / name)
                continue
        shutil.copyfile(sd.at(source, name), target / name)
    index = read_json(source / sd.INDEX)
    write_json(target / sd.INDEX, index | {key: value for key, value in sd.UNUSED.items() if key in index})
    return parameters
