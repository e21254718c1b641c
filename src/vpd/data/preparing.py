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
        else:
            _link(name, spec, folder)
        manifest = describe(folder, spec)
        write_preview(folder, spec.layout, folder / PREVIEW)
        write_json(folder / MANIFEST, manifest)


def _link(name: str, spec: DatasetSpec, folder: Path) -> None:
    """Link the layout's files and folders that lie at ``spec.path``."""
    if spec.path is None:
        raise UserError(f"dataset '{name}' has source folder but no path; say where it lies")
    source = Path(spec.path)
    tops = LAYOUTS[spec.layout].TOPS
    if not source.is_dir():
        raise UserError(f"dataset '{name}': {source} does not exist; put {', '.join(tops)} there, or change its path")
    found = [top for top in tops if (source / top).exists()]
    if not found:
        raise UserError(
            f"dataset '{name}': {source} holds none of {', '.join(tops)}; put them there, or change its path"
        )
    for top in found:
        (folder / top).symlink_to((source / top).resolve())
