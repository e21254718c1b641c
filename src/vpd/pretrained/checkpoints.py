"""Stable Diffusion checkpoint folders, made from any source. Planning imports this module, so it loads no torch at the top.

``manifest.json`` describes the content alone, so that the same weights from a mirror make no training run stale;
``origin.json`` says where they came from.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from vpd.config.schema import CheckpointSpec
from vpd.pretrained import stable_diffusion as sd
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
    repository counts by its name alone. UserError if the pre-training, where it is the source, has not run.
    """
    settings = {"checkpoint": name, **spec.model_dump(mode="json")}
    if spec.source == "pretrained":
        return fingerprint(settings, CODE, {"pretraining": pretraining})
    if spec.source == "folder":
        return with_files(fingerprint(settings, CODE), spec.path, sd.FILES)
    if spec.source == "file" and spec.path:
        path = Path(spec.path)
        made_from = with_files(fingerprint(settings, FILE_CODE), str(path.parent), [path.name])
        tokenizer = [f"{parent}{name}" for name in sd.TOKENIZER_FILES for parent in ("tokenizer/", "")]
        return with_files(made_from, spec.repo, tokenizer, role="tokenizer")
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
        made = _fill(name, spec, pretraining, folder)
        names = sd.pipeline_files(folder)
        files = {**digests(folder, [file for file in names if file not in made.digests]), **made.digests}
        if spec.source != "file":
            check_digests(name, files, spec.sha256)
        write_json(folder / ORIGIN, {"source": spec.source, **made.origin})
        write_manifest(folder, made_from, {"parameters": made.parameters}, {file: files[file] for file in names})


def check_digests(name: str, found: Mapping[str, str], expected: Mapping[str, str]) -> None:
    """Compare a checkpoint's digests with those, or the beginnings of those, in params.yaml."""
    for file, start in expected.items():
        if file not in found:
            raise UserError(f"checkpoints.{name}.sha256: unknown file '{file}'; {nearest(file, found)}")
        if not found[file].startswith(start.lower()):
            raise UserError(
                f"checkpoints.{name}: {file} has sha256 {found[file]}, expected {start}; fetch it again, or correct "
                f"checkpoints.{name}.sha256"
            )


def _fill(name: str, spec: CheckpointSpec, pretraining: Path, target: Path) -> Assembled:
    """Write the pipeline to the empty folder ``target``."""
    entry = f"checkpoints.{name}"
    if spec.source == "pretrained":
        # Copied, because pre-training writes its folders anew.
        return _copied(_milestone(name, pretraining), target, link=False)
    if spec.source == "hub":
        from vpd.pretrained.hub import download, repositories

        repository = download(entry, repositories(entry, spec), sd.FILES, [sd.INDEX, *sd.WEIGHT_FILES])
        known = repository.digests(sd.pipeline_files(repository.folder))
        made = _copied(repository.folder, target)
        return replace(made, origin=repository.origin, digests={n: x for n, x in known.items() if n != sd.INDEX})
    if spec.path is None:
        raise UserError(f"{entry} has source '{spec.source}' but no path; give the path of the {spec.source}")
    path = Path(spec.path)
    if spec.source == "folder":
        return _copied(path, target)
    from vpd.pretrained.original import convert_file

    digest_of = digests(path.parent, [path.name])
    if digest_of:  # A missing file is reported where it is read.
        check_digests(name, digest_of, spec.sha256)
    parameters, origin = convert_file(entry, path, spec, target)
    return Assembled(parameters, {"file": path.name, "sha256": digest_of[path.name], **origin})


def _milestone(name: str, pretraining: Path) -> Path:
    """Return the folder of a milestone of our own pre-training; UserError unless it is as its manifest says."""
    path = manifest_path(pretraining)
    manifest = read_json(path)
    pick(name, manifest["milestones"], "milestone", str(path))
    own = {file: sha256 for file, sha256 in manifest["files"].items() if file.startswith(f"{name}/")}
    if differing := changed(pretraining, own):
        raise UserError(
            f"{pretraining} differs from its manifest in {', '.join(differing)}; run the pre-training again"
        )
    return pretraining / name


def _copied(source: Path, target: Path, link: bool = True) -> Assembled:
    """Check and copy a pipeline folder; with ``link``, weights become hard links where the file system allows."""
    parameters = sd.check_pipeline(source)
    for name in sd.pipeline_files(source):
        (target / name).parent.mkdir(exist_ok=True)
        linked = link and name in sd.WEIGHT_FILES and _link(source / name, target / name)
        if not linked:
            shutil.copyfile(source / name, target / name)
    index = read_json(source / sd.INDEX)
    write_json(target / sd.INDEX, index | {key: value for key, value in sd.UNUSED.items() if key in index})
    return Assembled(parameters)


def _link(source: Path, target: Path) -> bool:
    """Make a hard link, which costs no disk space; False on another disk or a file system without them."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        return False
    return True
