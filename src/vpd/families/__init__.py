"""Miniature pre-training of the baselines' backbones on drawn images, each with its family's own objective."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vpd.checkpoints.loop import Observer
    from vpd.spec import BackboneSpec


def pretrain_backbone(
    name: str,
    spec: BackboneSpec,
    captions: Path,
    objects: Path,
    out: Path,
    state: Path,
    *,
    save_every: int = 100,
    observers: Sequence[Observer] = (),
) -> None:
    """Train backbone ``name`` into the checkpoint folder ``out``, see ``vpd.families.pretrain``."""
    from vpd.families.pretrain import pretrain_backbone as work

    work(name, spec, captions, objects, out, state, save_every=save_every, observers=observers)
