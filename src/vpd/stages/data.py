"""The ``data`` stage: draws, downloads or checks a dataset and completes it with a preview and a manifest."""

from __future__ import annotations

import os
from pathlib import Path

from vpd.config.schema import DatasetSpec
from vpd.utils.digests import digest, digests, tree
from vpd.utils.errors import UserError
from vpd.utils.files import atomic_folder
from vpd.utils.fingerprint import Fingerprint, code_digest, is_finished, write_manifest

PREVIEW = "preview.png"
PREPARATIONS = {
    "ade20k": ("download/ade20k",),
    "nyuv2": ("download/nyuv2",),
    "refcoco": ("download/refcoco",),
}
"""Format -> modules that turn its published archives into files."""


def dataset_fingerprint(name: str, spec: DatasetSpec) -> Fingerprint:
    """Return what the dataset is made from: its spec, the code that makes it, and the files that it is found in.

    Args:
        name: key of the dataset in params.yaml.
        spec: its settings. Files at ``spec.path`` are read only if their size, time or inode changed since the last call.

    Raises:
        UserError: a dataset that is not synthetic has no path.
    """
    if spec.source == "synthetic":
        return Fingerprint(digest(spec.model_dump(mode="json")), code_digest("datasets", "world"))
    path = _path(name, spec)
    # Receipts of downloads lie in a hidden folder; they say when and from where, which is not content.
    files = digests(path, [file for file in tree(path) if "/." not in f"/{file}"])
    code = ("datasets", *(PREPARATIONS.get(spec.format, ()) if spec.source == "download" else ()))
    return Fingerprint(digest(spec.model_dump(mode="json")), code_digest(*code), {"files": digest(files)})


def prepare_dataset(name: str, spec: DatasetSpec, out: Path, archives: Path = Path("downloads/archives")) -> None:
    """Make ``out`` hold a dataset that can be trained on and scored.

    A finished dataset of the same fingerprint is left alone; anything else in ``out`` is replaced, whole or not at all.

    Args:
        name: key of the dataset in params.yaml.
        spec: its settings. Synthetic images are drawn into ``out``; other files stay at ``spec.path``, where they are
            checked and listed, after the entries in ``spec.download`` have been fetched.
        out: folder for the files, preview.png, fingerprint.json and, last, manifest.json.
        archives: where downloaded archives are kept.

    Raises:
        UserError: the dataset is missing, incomplete, damaged, or has nothing to score.
    """
    if spec.source == "download":
        from vpd.download import fetch

        for entry in spec.download:
            fetch(entry, _path(name, spec), archives)
    made_from = dataset_fingerprint(name, spec)
    if is_finished(out, made_from) and (out / PREVIEW).is_file():
        return
    from vpd.datasets.manifest import FORMATS, PLACE, describe
    from vpd.datasets.preview import write_preview
    from vpd.world.writers import draw_dataset

    with atomic_folder(out) as folder:
        source = folder
        if spec.source == "synthetic":
            draw_dataset(spec, folder)
        else:
            source = _path(name, spec)
            _check_present(name, source, FORMATS[spec.format].TOPS)
        facts, files = describe(source, spec, name)
        if source != folder:
            facts[PLACE] = os.path.relpath(source, out)
        write_preview(FORMATS[spec.format].preview(source), folder / PREVIEW)
        write_manifest(folder, made_from, facts, files)


def _path(name: str, spec: DatasetSpec) -> Path:
    if spec.path is None:
        raise UserError(f"dataset '{name}' has source {spec.source} but no path; add its folder as path: FOLDER")
    return Path(spec.path)


def _check_present(name: str, source: Path, tops: tuple[str, ...]) -> None:
    """UserError if nothing of the dataset is there."""
    needed = ", ".join(tops)
    if not source.is_dir():
        raise UserError(f"dataset '{name}': {source} does not exist; put {needed} there, or change its path")
    if not any((source / top).exists() for top in tops):
        raise UserError(f"dataset '{name}': {source} holds none of {needed}; put them there, or change its path")
