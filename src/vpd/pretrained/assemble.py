"""Checkpoint folders: brought from their source, checked, and listed file by file in a manifest that readers verify."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from vpd.config.schema import CheckpointSpec
from vpd.pretrained.stable_diffusion import INDEX, check_pipeline, pipeline_files, possible_files, weight_files
from vpd.utils.digests import sha256
from vpd.utils.errors import UserError, nearest, pick
from vpd.utils.files import atomic_folder, read_json, write_json

MANIFEST = "manifest.json"
UNUSED = {"safety_checker": [None, None], "feature_extractor": [None, None], "requires_safety_checker": False}
"""What model_index.json says of the parts that are left out."""
Origin = tuple[dict, dict[str, str]]
"""What the manifest says about where the files come from, and digests of files that are known already."""


def assemble(name: str, spec: CheckpointSpec, pretraining: Path, out: Path) -> None:
    """Write checkpoint ``name`` to ``out``: a Stable Diffusion 1 pipeline folder and, last, manifest.json.

    It comes from a milestone of ``pretraining``, the pipeline folder ``spec.path``, the hub repository ``spec.repo`` or
    the original file ``spec.path``. UserError if that is missing, damaged or not Stable Diffusion 1.
    """
    with atomic_folder(out) as temporary:
        origin, known = SOURCES[spec.source](name, spec, pretraining, temporary)
        parameters = check_pipeline(temporary)
        names = [INDEX, *pipeline_files(temporary)]
        files = {file: known.get(file) or sha256(temporary / file) for file in names}
        if spec.source != "file":
            check_digests(name, files, spec.sha256, f"fetch it again, or correct checkpoints.{name}.sha256")
        manifest = {"name": name, "source": spec.source, **origin, "parameters": parameters, "files": files}
        write_json(temporary / MANIFEST, manifest)


# -------------------------------------------------------------------------------------------------------------- sources
def _from_milestone(name: str, spec: CheckpointSpec, pretraining: Path, target: Path) -> Origin:
    manifest = read_json(pretraining / MANIFEST)
    pick(name, manifest["milestones"], "milestone", str(pretraining / MANIFEST))
    own = {file: digest for file, digest in manifest["files"].items() if file.startswith(f"{name}/")}
    _compare(pretraining, own, "run the pre-training again")
    check_pipeline(pretraining / name)
    _copy(pretraining / name, target, link=False)
    return {}, {}


def _from_folder(name: str, spec: CheckpointSpec, pretraining: Path, target: Path) -> Origin:
    if spec.path is None:
        raise UserError(f"checkpoints.{name} has source 'folder' but no path; give the path of a diffusers folder")
    check_pipeline(Path(spec.path))
    _copy(Path(spec.path), target, link=True)
    return {}, {}


def _from_hub(name: str, spec: CheckpointSpec, pretraining: Path, target: Path) -> Origin:
    from vpd.pretrained.hub import checked_digests, download

    snapshot = download(name, spec, [INDEX, *possible_files()], [INDEX, *weight_files()])
    found = checked_digests(f"checkpoints.{name}", snapshot.folder, pipeline_files(snapshot.folder))
    check_pipeline(snapshot.folder)
    _copy(snapshot.folder, target, link=True)
    return {"repo": snapshot.repo, "revision": snapshot.revision}, found


def _from_file(name: str, spec: CheckpointSpec, pretraining: Path, target: Path) -> Origin:
    from vpd.pretrained.original import convert_file

    return convert_file(name, spec, target), {}


SOURCES = {"pretrained": _from_milestone, "folder": _from_folder, "hub": _from_hub, "file": _from_file}
"""Source -> function that fills a folder and returns where the files come from."""


# -------------------------------------------------------------------------------------------------------------- copying
def _copy(source: Path, target: Path, link: bool) -> None:
    """Copy what belongs to the checkpoint; with ``link``, weights become hard links where that is possible."""
    index = read_json(source / INDEX)
    write_json(target / INDEX, index | {key: value for key, value in UNUSED.items() if key in index})
    for name in pipeline_files(source):
        (target / name).parent.mkdir(exist_ok=True)
        if link and name.endswith(".safetensors"):
            _link_or_copy(source / name, target / name)
        else:
            shutil.copyfile(source / name, target / name)


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


# ------------------------------------------------------------------------------------------------------------- checking
def check_digests(name: str, found: dict[str, str], expected: dict[str, str], cure: str) -> None:
    """UserError with ``cure`` where a file of checkpoint ``name`` has not the digest, or the beginning of one, it must."""
    for file, digest in expected.items():
        if file not in found:
            raise UserError(f"checkpoints.{name}.sha256: unknown file '{file}'; {nearest(file, found)}")
        if not found[file].startswith(digest.lower()):
            raise UserError(f"checkpoints.{name}: {file} has sha256 {found[file]}, expected {digest}; {cure}")


def verify_checkpoint(folder: Path) -> None:
    """Raise UserError naming the files of ``folder`` that are missing or differ from its manifest."""
    _compare(folder, read_json(folder / MANIFEST)["files"], "run the checkpoint stage again")


def _compare(folder: Path, files: dict[str, str], cure: str) -> None:
    missing = [name for name in files if not (folder / name).is_file()]
    changed = [name for name in files if name not in missing and sha256(folder / name) != files[name]]
    faults = [f"{word} {', '.join(names)}" for word, names in (("missing", missing), ("changed", changed)) if names]
    if faults:
        raise UserError(f"{folder} differs from its manifest ({'; '.join(faults)}); {cure}")
