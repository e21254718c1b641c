"""Draws or links a dataset, checks it, and completes it with preview and manifest."""

from __future__ import annotations

from pathlib import Path

from vpd.data.drawing import draw_dataset
from vpd.data.layouts import LAYOUTS
from vpd.data.manifest import MANIFEST, PREVIEW, describe, is_current
from vpd.data.preview import write_preview
from vpd.errors import UserError
from vpd.files import atomic_folder, write_json
from vpd.spec import DatasetSpec


def prepare(name: str, spec: DatasetSpec, out: Path) -> None:
    """Make ``out`` hold dataset ``name``: real layout, preview.png, and manifest.json last.

    A finished dataset of the same spec is left alone; anything else in ``out`` is replaced, whole or not at all.
    UserError if a ``folder`` dataset is absent, incomplete or damaged.
    """
    out = Path(out)
    if is_current(out, spec):
        return
    with atomic_folder(out) as folder:
        if spec.source == "drawn":
            draw_dataset(spec, folder)
            manifest = describe(folder, spec, name)
        else:
            source = _source(name, spec)
            manifest = describe(source, spec, name)  # there, so that errors name files the user knows
            _link(source, spec, folder)
        write_preview(folder, spec.layout, folder / PREVIEW)
        write_json(folder / MANIFEST, manifest)


def _source(name: str, spec: DatasetSpec) -> Path:
    """The folder in which the dataset lies; UserError if nothing of it is there."""
    if spec.path is None:
        raise UserError(f"dataset '{name}' has source folder but no path; say where it lies")
    source = Path(spec.path)
    tops = ", ".join(LAYOUTS[spec.layout].TOPS)
    if not source.is_dir():
        raise UserError(f"dataset '{name}': {source} does not exist; put {tops} there, or change its path")
    if not any((source / top).exists() for top in LAYOUTS[spec.layout].TOPS):
        raise UserError(f"dataset '{name}': {source} holds none of {tops}; put them there, or change its path")
    return source


def _link(source: Path, spec: DatasetSpec, folder: Path) -> None:
    """Link the layout's files and folders."""
    for top in LAYOUTS[spec.layout].TOPS:
        if (source / top).exists():
            (folder / top).symlink_to((source / top).resolve())
