"""The ``data`` stage: draws, downloads or checks a dataset and completes it with a preview and a manifest."""

import os
from collections.abc import Iterable
from pathlib import Path

from vpd.config.schema import DatasetSpec, Spec
from vpd.utils.digests import digest, digests, tree
from vpd.utils.errors import UserError
from vpd.utils.files import atomic_folder
from vpd.utils.fingerprint import Fingerprint, code_digest, is_finished, write_manifest

PREVIEW = "preview.png"
PREPARED = ("ade20k", "nyuv2", "refcoco")
"""Formats whose published archives a module of that name in vpd.download turns into files."""


def dataset_fingerprint(name: str, spec: DatasetSpec) -> Fingerprint:
    """Return what the dataset is made from: its spec, the code that makes it, and the files that it is found in.

    Files at ``spec.path`` are read only if their size, time or inode changed since the last call.
    """
    if spec.source == "synthetic":
        return Fingerprint(digest(spec.model_dump(mode="json")), code_digest("datasets", "world"))
    path = _path(name, spec)
    # Receipts of downloads lie in a hidden folder; they say when and from where, which is not content.
    files = digests(path, [file for file in tree(path) if "/." not in f"/{file}"])
    prepared = spec.source == "download" and spec.format in PREPARED
    code = ("datasets", f"download/{spec.format}") if prepared else ("datasets",)
    return Fingerprint(digest(spec.model_dump(mode="json")), code_digest(*code), {"files": digest(files)})


def prepare_dataset(
    name: str,
    spec: DatasetSpec,
    out: Path,
    archives: Path = Path("downloads/archives"),
    experiments: Iterable[Spec] = (),
) -> None:
    """Make ``out`` hold a dataset that can be trained on and scored.

    A finished dataset of the same fingerprint is left alone; anything else in ``out`` is replaced, whole or not at all.
    Synthetic images are drawn into ``out``; other files stay at ``spec.path``, where they are checked and listed, after the
    entries in ``spec.download`` have been fetched. UserError if the dataset is incomplete, damaged, or cannot be scored,
    also by one of the ``experiments`` that use it.
    """
    made_from = dataset_fingerprint(name, spec)
    if is_finished(out, made_from) and (out / PREVIEW).is_file():
        return
    if spec.source == "download":
        from vpd.download import fetch

        for entry in spec.download:
            fetch(entry, _path(name, spec), archives)
        made_from = dataset_fingerprint(name, spec)  # of the files that have come
    from vpd.datasets import check_scored
    from vpd.datasets.manifest import FORMATS, PLACE, describe
    from vpd.datasets.preview import write_preview
    from vpd.world.writers import draw_dataset

    with atomic_folder(out) as folder:
        source = folder
        if spec.source == "synthetic":
            draw_dataset(spec, folder)
        else:
            source, tops = _path(name, spec), FORMATS[spec.format].TOPS
            if not any((source / top).exists() for top in tops):
                needed = f"{source} holds none of {', '.join(tops)}"
                raise UserError(f"dataset '{name}': {needed}; put them there, or change its path")
        facts, files = describe(source, spec, name)
        for ranges in {(one.data, one.evaluation): one for one in experiments}.values():
            check_scored(ranges, source)
        if source != folder:
            facts[PLACE] = os.path.relpath(source, out)
        write_preview(FORMATS[spec.format].preview(source), folder / PREVIEW)
        write_manifest(folder, made_from, facts, files)


def _path(name: str, spec: DatasetSpec) -> Path:
    if spec.path is None:
        raise UserError(f"dataset '{name}' has source {spec.source} but no path; add its folder as path: FOLDER")
    return Path(spec.path)
