"""What each job takes: hours as recorded here, else as ``vpd cost`` computed them, and the bytes that it will write."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel

from vpd.utils.files import read_json

if TYPE_CHECKING:
    from vpd.config.params import Params
    from vpd.planning.plan.graph import Job

FLOAT = 4
STATE = 3 * FLOAT
"""Bytes per trained parameter of a resumable state: the weight and AdamW's two moments."""
SD1_BYTES = 4_265_000_000
"""Of one Stable Diffusion 1 checkpoint in single precision: U-Net 859.5 M, VAE 83.7 M and text encoder 123.1 M parameters."""
DATA_CORES = 2
"""Cores of a data job, as both workflows have it."""


class Computed(BaseModel):
    """An experiment in the file of ``vpd cost --out``."""

    resources: dict[str, dict[str, int]]
    hours: dict[str, float]
    trainable: int


@dataclass(frozen=True)
class Estimate:
    """What one job takes."""

    present: bool
    """Whether its outputs are there, those of all that it needs too, and made with the present settings."""
    hours: float | None
    """On the clock, with all its seeds, on as many GPUs as it may use; None if nobody knows."""
    gpus: int = 0
    gpu_mem_mb: int = 0
    mem_mb: int = 0
    cores: int = 1
    written: int = 0
    """Bytes that stay, as far as they are known."""
    state: int = 0
    """Bytes of resumable state while it runs."""

    def hours_on(self, gpus: int) -> float:
        """Hours still to come where there are ``gpus``, of which it uses all that it may; none if present or unknown."""
        hours = 0.0 if self.present else self.hours or 0.0
        return hours * self.gpus / min(self.gpus, gpus) if self.gpus else hours


def estimates(
    params: Params, jobs: Mapping[str, Job], computed: Mapping[str, Computed], root: Path = Path()
) -> dict[str, Estimate]:
    """An estimate of every job, whose paths are relative to ``root``; ``jobs`` come after those that they need."""
    found: dict[str, Estimate] = {}
    for name, job in jobs.items():
        ready = all(found[needed].present for needed in job.needs if needed in found)
        found[name] = _estimate(params, job, computed, root, ready)
    return found


def _estimate(params: Params, job: Job, computed: Mapping[str, Computed], root: Path, ready: bool) -> Estimate:
    present = ready and _made(params, job, root)
    recorded = _recorded(job, root)
    if job.stage not in ("train", "evaluate"):
        return Estimate(present, recorded, cores=_cores(params, job), written=_written(params, job, computed))
    spec, cost = params.resolve(job.key), computed.get(job.key)
    if spec.training.threads or cost is None:  # of another scale's networks, or of none
        return Estimate(present, recorded, cores=spec.training.threads or 1)
    needs, hours = cost.resources[job.stage], cost.hours[job.stage]
    trains = job.stage == "train"
    return Estimate(
        present,
        hours / max(needs["gpus"], 1) if recorded is None else recorded,
        gpus=needs["gpus"],
        gpu_mem_mb=needs["gpu_mem_mb"],
        mem_mb=needs["mem_mb"],
        cores=needs["cpus"],
        written=FLOAT * cost.trainable * len(spec.seeds) * len(spec.training.milestones) if trains else 0,
        state=STATE * cost.trainable if trains else 0,
    )


def _made(params: Params, job: Job, root: Path) -> bool:
    if not all((root / out).exists() for out in job.outs):
        return False
    if job.stage != "train":
        return True
    manifests = [root / out / "manifest.json" for out in job.outs if (root / out / "manifest.json").is_file()]
    wanted = params.resolve(job.key).training_digest()
    return any(read_json(manifest).get("spec") == wanted for manifest in manifests)


def _recorded(job: Job, root: Path) -> float | None:
    """Hours that the job took when it last ran here."""
    files = [root / out for out in job.outs if "timing" in Path(out).parts]
    seconds = [read_json(file).get("seconds") for file in files if file.is_file()]
    return seconds[0] / 3600 if seconds and seconds[0] is not None else None


def _cores(params: Params, job: Job) -> int:
    if job.stage == "pretrain":
        return params.pretraining.threads
    return DATA_CORES if job.stage == "data" else 1


def _written(params: Params, job: Job, computed: Mapping[str, Computed]) -> int:
    """Bytes of downloads and of what is made of them; drawn data and small networks are not worth counting."""
    if job.stage == "data":
        return _downloads(params, job.key)
    if job.stage == "checkpoint":
        return 0 if params.checkpoint(job.key).source == "pretrained" else SD1_BYTES
    if job.stage == "backbone" and params.backbone(job.key).source != "pretrained":
        users = [name for name, line in params.experiments.items() if line.checkpoint == job.key and name in computed]
        return max((FLOAT * computed[name].trainable for name in users), default=0)
    return 0


def _downloads(params: Params, dataset: str) -> int:
    from vpd.download.sources import load_sources

    names = params.dataset(dataset).download
    entries = [load_sources().entries[name] for name in names]
    return sum(entry.prepared + sum(file.expected_size for file in entry.files.values()) for entry in entries)
