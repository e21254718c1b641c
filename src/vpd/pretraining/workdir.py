"""The fingerprint of a pre-training, for planning without torch, and the folder that an interrupted one resumes from."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vpd.config.schema import BackboneSpec, MeasuresSpec, PretrainingSpec
from vpd.utils.devices import device_type
from vpd.utils.files import locked
from vpd.utils.fingerprint import Fingerprint, fingerprint

if TYPE_CHECKING:
    import torch

SHARED = (
    *(f"pretraining/{module}" for module in ("captions", "clip", "loop", "workdir")),
    *("datasets/captions", "datasets/images"),
)
# Cache keys follow the folders: editing one backbone objective does not retrain the small Stable Diffusion, nor the reverse.
DIFFUSION_CODE = (*SHARED, "pretraining/diffusion")
BACKBONE_CODE = (*SHARED, "pretraining/backbones", "models/backbones", "datasets/objects")


def pretraining_fingerprint(spec: PretrainingSpec, data: Path) -> Fingerprint:
    """Fingerprint the small Stable Diffusion; UserError if its captions dataset, read for milestones alone, is missing."""
    return fingerprint(spec.model_dump(mode="json"), DIFFUSION_CODE, {"captions": data} if spec.milestones else {})


def backbone_fingerprint(name: str, spec: BackboneSpec, captions: Path, objects: Path) -> Fingerprint:
    """Fingerprint backbone ``name``, pre-trained on two datasets; UserError if one of them has no manifest."""
    settings = {"name": name, **spec.model_dump(mode="json")}
    return fingerprint(settings, BACKBONE_CODE, {"captions": captions, "objects": objects})


@dataclass(frozen=True)
class Workdir:
    """Where and how often (in steps) phases save their state, the seed of all their randomness, and their device."""

    folder: Path
    seed: int
    save_every: int
    device: torch.device


@contextlib.contextmanager
def open_workdir(
    state: Path, made_from: Fingerprint, spec: PretrainingSpec | BackboneSpec | MeasuresSpec, save_every: int
) -> Iterator[Workdir]:
    """Lock ``state`` and compute with ``spec.threads`` threads in the block; remove ``state`` if the block succeeds."""
    import torch

    with locked(state):
        folder = state / made_from.key
        # To resume a state of another fingerprint would mix two settings, data or versions of the code.
        for other in state.iterdir():
            if other.is_dir() and other != folder:
                shutil.rmtree(other)
        folder.mkdir(exist_ok=True)
        torch.set_num_threads(spec.threads)  # another number of threads gives other last bits
        yield Workdir(folder, spec.seed, save_every, torch.device(device_type()))
        shutil.rmtree(state)
