"""Draws a dataset, or checks one where it lies, and completes it with preview and manifest."""

from __future__ import annotations

import os
from pathlib import Path

from vpd.config.schema import DatasetSpec
from vpd.datasets.layouts import LAYOUTS
from vpd.datasets.manifest import MANIFEST, PLACE, PREVIEW, describe, is_current
from vpd.datasets.preview import write_preview
from vpd.utils.errors import UserError
from vpd.utils.files import atomic_folder, write_json
from vpd.world.writers import draw_dataset


def prepare(name: str, spec: DatasetSpec, out: Path, archives: Path) -> None:
    """Make ``out`` hold dataset ``name``: its files or, if it was not drawn, where they lie; manifest.json comes last.

    A finished dataset of the same spec is left alone; anything else in ``out`` is replaced, whole or not at all. What a
    ``download`` dataset lacks is fetched first, through ``archives``. UserError if the dataset is absent, incomplete or
    damaged.
    """
    out = Path(out)
    if is_current(out, spec):
        return
    with atomic_folder(out) as folder:
        if spec.source == "drawn":
            draw_dataset(spec, folder)
            manifest = describe(folder, spec, name)
        else:
            _fetch(spec, archives)
            source = _source(name, spec)
            manifest = describe(source, spec, name) | {PLACE: os.path.relpath(source, out)}
        write_preview(folder if spec.source == "drawn" else source, spec.layout, folder / PREVIEW)
        write_json(folder / MANIFEST, manifest)


def _fetch(spec: DatasetSpec, archives: Path) -> None:
    if spec.source != "download" or spec.path is None:
        return
    from vpd.download import fetch

    for entry in spec.download:
        fetch(entry, Path(spec.path), archives)


def _source(name: str, spec: DatasetSpec) -> Path:
    """The folder in which the dataset lies; UserError if nothing of it is there."""
    if spec.path is None:
        raise UserError(f"dataset '{name}' has source {spec.source} but no path; say where it lies")
    source = Path(spec.path)
    tops = ", ".join(LAYOUTS[spec.layout].TOPS)
    if not source.is_dir():
        raise UserError(f"dataset '{name}': {source} does not exist; put {tops} there, or change its path")
    if not any((source / top).exists() for top in LAYOUTS[spec.layout].TOPS):
        raise UserError(f"dataset '{name}': {source} holds none of {tops}; put them there, or change its path")
    return source
