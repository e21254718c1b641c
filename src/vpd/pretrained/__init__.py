"""Weights: Stable Diffusion checkpoints from any source, and the authors' released VPD models as runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vpd.pretrained.assemble import assemble, verify_checkpoint

if TYPE_CHECKING:
    from vpd.config.schema import Spec

__all__ = ["assemble", "import_weights", "verify_checkpoint"]


def import_weights(spec: Spec, file: Path, data: Path, checkpoint: Path, run: Path) -> dict:
    """Turn the authors' released weights ``file`` into a run of ``spec``, see ``vpd.pretrained.released``."""
    from vpd.pretrained.released import import_weights as work

    return work(spec, file, data, checkpoint, run)
