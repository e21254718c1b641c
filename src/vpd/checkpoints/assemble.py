"""Checkpoint folders: checked, copied, and listed file by file in a manifest that readers verify."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from vpd.checkpoints.stable_diffusion import INDEX, check_pipeline, pipeline_files
from vpd.errors import UserError, pick
from vpd.files import atomic_folder, read_json, sha256, write_json
from vpd.spec import CheckpointSpec

MANIFEST = "manifest.json"
UNUSED = {"safety_checker": [None, None], "feature_extractor": [None, None], "requires_safety_checker": False}
"""What model_index.json says of the parts that are left out."""


def assemble(name: str, spec: CheckpointSpec, pretraining: Path, out: Path) -> None:
    """Write checkpoint ``name`` to ``out``: a Stable Diffusion 1 pipeline folder and, last, manifest.json.

    It comes from a milestone of ``pretraining`` or from the pipeline folder that ``spec.path`` names. UserError if that
    is missing, damaged or not Stable Diffusion 1.
    """
    source = _milestone(name, pretraining) if spec.source == "pretrained" else _folder(name, spec)
    parameters = check_pipeline(source)
    with atomic_folder(out) as temporary:
        _copy(source, temporary, link=spec.source == "folder")
        files = {file: sha256(temporary / file) for file in [INDEX, *pipeline_files(temporary)]}
        manifest = {"name": name, "source": spec.source, "parameters": parameters, "files": files}
        write_json(temporary / MANIFEST, manifest)


def _milestone(name: str, pretraining: Path) -> Path:
    manifest = read_json(pretraining / MANIFEST)
    pick(name, manifest["milestones"], "milestone", str(pretraining / MANIFEST))
    own = {file: digest for file, digest in manifest["files"].items() if file.startswith(f"{name}/")}
    _compare(pretraining, own, "run the pre-training again")
    return pretraining / name


def _folder(name: str, spec: CheckpointSpec) -> Path:
    if spec.path is None:
        raise UserError(f"checkpoints.{name} has source 'folder' but no path; give the path of a diffusers folder")
    return Path(spec.path)


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


def verify_checkpoint(folder: Path) -> None:
    """Raise UserError naming the files of ``folder`` that are missing or differ from its manifest."""
    _compare(folder, read_json(folder / MANIFEST)["files"], "run the checkpoint stage again")


def _compare(folder: Path, files: dict[str, str], cure: str) -> None:
    missing = [name for name in files if not (folder / name).is_file()]
    changed = [name for name in files if name not in missing and sha256(folder / name) != files[name]]
    faults = [f"{word} {', '.join(names)}" for word, names in (("missing", missing), ("changed", changed)) if names]
    if faults:
        raise UserError(f"{folder} differs from its manifest ({'; '.join(faults)}); {cure}")
