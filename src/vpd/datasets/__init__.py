"""Datasets: one module each for a format on disk and its reader. Nothing imports torch before a sample is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from vpd.config.schema import DepthSpec
from vpd.datasets import ade20k, nyuv2, refcoco
from vpd.datasets.dataset import Dataset
from vpd.datasets.manifest import FORMATS, located
from vpd.utils.errors import pick

if TYPE_CHECKING:
    from vpd.config.schema import Spec

__all__ = ["FORMATS", "READERS", "build_dataset", "check_scored"]

READERS: dict[str, Callable[..., Dataset]] = {
    "segmentation": ade20k.ADE20K,
    "referring": refcoco.RefCOCO,
    "depth": nyuv2.NYUv2,
}
"""Task -> its reader."""


def build_dataset(spec: Spec, root: Path, split: str, seed: int = 0) -> Dataset:
    """Open a dataset for reading; UserError if files are missing or lists are unsound.

    Args:
        spec: the experiment; its task decides the reader.
        root: folder that ``vpd data`` made, with a manifest.json.
        split: ``train`` (augmented) or ``val``; RefCOCO has ``testA``, ``testB`` or ``test`` as well.
        seed: of the augmentation.
    """
    return pick(spec.task, READERS, "task")(spec, located(Path(root)), split, seed)


def check_scored(spec: Spec, root: Path) -> None:
    """UserError if the dataset, which is sound, has a sample that ``spec`` cannot score; before hours of training are spent."""
    if isinstance(spec, DepthSpec):
        nyuv2.check_scored(located(Path(root)), spec)
