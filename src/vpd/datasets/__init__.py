"""Datasets: prepared on disk in the real layouts, read as samples. torch is imported only when a reader is built."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from vpd.utils.errors import pick

if TYPE_CHECKING:
    from vpd.config.schema import DatasetSpec, Spec
    from vpd.datasets.dataset import Dataset

READERS = {
    "segmentation": ("vpd.datasets.ade20k", "ADE20K"),
    "referring": ("vpd.datasets.refcoco", "RefCOCO"),
    "depth": ("vpd.datasets.nyuv2", "NYUv2"),
}
"""Task -> module and class of its reader."""


def prepare(name: str, spec: DatasetSpec, out: Path, archives: Path = Path("downloads/archives")) -> None:
    """Draw the dataset, or fetch, verify and link it, into ``out``; preview.png and manifest.json come last."""
    from vpd.stages.prepare import prepare as run

    run(name, spec, out, archives)


def verify(root: Path, spec: DatasetSpec) -> None:
    """UserError unless ``root`` still holds exactly what its manifest says."""
    from vpd.datasets.manifest import verify as run

    run(root, spec)


def build_dataset(spec: Spec, root: Path, split: str, seed: int = 0) -> Dataset:
    """The reader of ``spec.task`` over the dataset prepared in ``root``; ``split`` is ``train`` or ``val``."""
    from vpd.datasets.manifest import located

    module, name = pick(spec.task, READERS, "task")
    return getattr(importlib.import_module(module), name)(spec, located(Path(root)), split, seed)
