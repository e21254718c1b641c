"""How the published archives become the trees that vpd.datasets reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from vpd.download import ade20k, nyuv2, refcoco

PREPARE: dict[str, Callable[[dict[str, Path], Path], None]] = {
    "ade20k": ade20k.prepare,
    "nyuv2-labeled": nyuv2.prepare_labeled,
    "nyuv2-sync": nyuv2.prepare_sync,
    "refcoco": refcoco.prepare_references,
    "coco": refcoco.prepare_images,
}
"""Kind of source -> what makes its part of the tree ``out`` from its files by role, whole or not at all.

Roles: ``archive``; for nyuv2-labeled ``labeled`` and ``splits``; for nyuv2-sync ``archive`` and, if the archive holds more
than the training set, ``list``.
"""
