"""``vpd plan``: what a run takes before it is paid for, by stage and job: hours, GPUs, memory, disk, and what is done."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel

from vpd.utils.disk import amount
from vpd.utils.errors import pick
from vpd.utils.files import read_json

if TYPE_CHECKING:
    from vpd.config.params import Params
    from vpd.planning.graph import Job

FLOAT = 4
SD1_BYTES = 4_265_000_000
"""One Stable Diffusion 1 checkpoint in single precision: U-Net 859.5 M, VAE 83.7 M and text encoder 123.1 M parameters."""
DATA_CORES = 2
"""Cores of a data job in both workflows."""
MEBIBYTE = 1 << 20
NAMED = 8
"""Jobs that a sentence names before it says how many more there are."""


class Computed(BaseModel):
    """An experiment in the file of ``vpd cost --out``."""

    resources: dict[str, dict[str, int]]
    hours: dict[str, float]
    trainable: int


@dataclass(frozen=True)
class Estimate:
    """What one job takes."""

    done: bool
    """Whether its outputs and those of all that it needs exist and were made with the present settings."""
    hours: float | None
    """Wall time with all its seeds on as many GPUs as it may use; None if unknown."""
    gpus: int = 0
    gpu_mem_mb: int = 0
    mem_mb: int = 0
    cores: int = 1
    written: int = 0
    """Bytes that stay, as far as they are known."""


def select(params: Params, words: Sequence[str]) -> list[str]:
    """Return the experiments that any of ``words`` names, in the matrix's order; all without words.

    Raises:
        UserError: a word is no experiment, task, or table or figure of the paper; names the nearest.
    """
    meanings = {name: {name} for name in params.experiments}
    for name, line in params.experiments.items():
        meanings.setdefault(line.task, set()).add(name)
    for table_name, table in params.tables.items():
        meanings[table_name] = {used for row in table.rows for used in row.trained.values()}
    meanings |= {name: set(figure.experiments) for name, figure in params.figures.items() if figure.experiments}
    kinds, source = "experiment, task, table or figure", str(params.source)
    wanted = {name for word in words for name in pick(word, meanings, kinds, source)}
    return [name for name in params.experiments if name in wanted or not words]


# --------------------------------------------------------------------------------------------------------------- estimates
def estimates(
    params: Params,
    jobs: Mapping[str, Job],
    computed: Mapping[str, Computed],
    is_done: Callable[[str, str], bool],
    root: Path = Path(),
) -> dict[str, Estimate]:
    """Estimate every job: hours as recorded here, else as ``vpd cost`` computed them, and the bytes that it writes.

    Args:
        params: settings of the present scale.
        jobs: by name, each after those that it needs.
        computed: costs by experiment.
        is_done: whether the output of (stage, name) is current.
        root: folder that the jobs' paths are relative to.
    """
    result: dict[str, Estimate] = {}
    for name, job in jobs.items():
        ready = all(result[needed].done for needed in job.needs if needed in result)
        result[name] = _estimate(params, job, computed, root, ready and is_done(job.stage, job.key))
    return result


def _estimate(params: Params, job: Job, computed: Mapping[str, Computed], root: Path, done: bool) -> Estimate:
    recorded = _recorded(job, root)
    if job.stage not in ("train", "evaluate"):
        cores = {"pretrain": params.pretraining.threads, "data": DATA_CORES}.get(job.stage, 1)
        return Estimate(done, recorded, cores=cores, written=_written(params, job, computed))
    spec, cost = params.resolve(job.key), computed.get(job.key)
    if spec.training.threads or cost is None:  # the file has the costs of another scale, or not of this experiment
        return Estimate(done, recorded, cores=spec.training.threads or 1)
    needs, runs = cost.resources[job.stage], len(spec.seeds) * len(spec.training.milestones)
    return Estimate(
        done,
        cost.hours[job.stage] / max(needs["gpus"], 1) if recorded is None else recorded,
        gpus=needs["gpus"],
        gpu_mem_mb=needs["gpu_mem_mb"],
        mem_mb=needs["mem_mb"],
        cores=needs["cpus"],
        written=FLOAT * cost.trainable * runs if job.stage == "train" else 0,
    )


def _recorded(job: Job, root: Path) -> float | None:
    """Return the hours that the job took when it last ran here."""
    files = [root / out for out in job.outs if "timing" in Path(out).parts]
    seconds = [read_json(file).get("seconds") for file in files if file.is_file()]
    return seconds[0] / 3600 if seconds and seconds[0] is not None else None


def _written(params: Params, job: Job, computed: Mapping[str, Computed]) -> int:
    """Return the bytes of downloads and prepared data; synthetic data and small networks are too small to count."""
    if job.stage == "data":
        from vpd.download.sources import load_sources

        entries = [load_sources().entries[name] for name in params.dataset(job.key).download]
        return sum(entry.prepared + sum(file.expected_size for file in entry.files.values()) for entry in entries)
    if job.stage == "checkpoint" and params.checkpoint(job.key).source != "pretrained":
        return SD1_BYTES
    if job.stage == "backbone" and params.backbone(job.key).source != "pretrained":
        users = [name for name, line in params.experiments.items() if line.checkpoint == job.key and name in computed]
        return max((FLOAT * computed[name].trainable for name in users), default=0)
    return 0


# -------------------------------------------------------------------------------------------------------------------- text
def describe(title: str, jobs: Mapping[str, Job], needs: Mapping[str, Estimate], gpus: int) -> str:
    """Format jobs, hours and disk by stage, and the least time on ``gpus`` GPUs."""
    stages = list(dict.fromkeys(job.stage for job in jobs.values()))
    rows: list[tuple[str, ...]] = [("stage", "jobs", "done", "to do", "GPU-hours", "CPU-hours", "disk")]
    rows += [_row(stage, [needs[name] for name, job in jobs.items() if job.stage == stage]) for stage in stages]
    lines = [title, "", *_table([*rows, _row("all", list(needs.values()))]), ""]
    todo = {name: estimate for name, estimate in needs.items() if not estimate.done}
    if any(estimate.gpus for estimate in todo.values()):
        total = sum((estimate.hours or 0.0) * estimate.gpus for estimate in todo.values())
        lines.append(
            f"At least {duration(total / gpus)} on {gpus} GPU{'s' * (gpus != 1)}, if all are busy all the time."
        )
    unknown = [name for name, estimate in todo.items() if estimate.hours is None]
    if unknown:
        more = f" and {len(unknown) - NAMED} more" if len(unknown) > NAMED else ""
        lines.append(f"Unknown and counted as zero: the time of {', '.join(unknown[:NAMED])}{more}.")
    return "\n".join(lines)


def listing(jobs: Mapping[str, Job], needs: Mapping[str, Estimate]) -> str:
    """Format every job with its state and needs, one per line; a dash for what is unknown or not needed."""
    rows: list[tuple[str, ...]] = [("job", "state", "time", "GPUs", "GPU memory", "memory", "cores")]
    for name in jobs:
        job = needs[name]
        memory = (amount(size * MEBIBYTE) if size else "-" for size in (job.gpu_mem_mb, job.mem_mb))
        time, state = "-" if job.hours is None else duration(job.hours), "done" if job.done else "to do"
        rows.append((name, state, time, str(job.gpus or "-"), *memory, str(job.cores)))
    return "\n".join(_table(rows))


def annotated(line: str, needs: Mapping[str, Estimate]) -> str:
    """Add to a line of ``dvc repro --dry`` that names a stage what the stage needs; return other lines as they are."""
    named = re.search(r"stage '([^']+)'", line)
    if not named or named[1] not in needs:
        return line
    job = needs[named[1]]
    parts = [f"{job.gpus} GPU{'s' * (job.gpus != 1)} of {amount(job.gpu_mem_mb * MEBIBYTE)}"] if job.gpus else []
    parts.append(f"{job.cores} core{'s' * (job.cores != 1)}")
    parts += [f"{amount(job.mem_mb * MEBIBYTE)} of memory"] if job.mem_mb else []
    parts += [duration(job.hours)] if job.hours is not None else []
    return f"{line} {', '.join(parts)}"


def duration(hours: float) -> str:
    """``0.4`` -> ``24 min``; ``30`` -> ``30.0 h``; ``100`` -> ``4.2 days``."""
    if hours < 1:
        return f"{hours * 60:.0f} min"
    return f"{hours:.1f} h" if hours < 72 else f"{hours / 24:.1f} days"


def _row(stage: str, group: list[Estimate]) -> tuple[str, ...]:
    todo = [estimate for estimate in group if not estimate.done]
    gpu = sum((estimate.hours or 0.0) * estimate.gpus for estimate in todo)
    cpu = sum((estimate.hours or 0.0) * estimate.cores for estimate in todo if not estimate.gpus)
    disk = sum(estimate.written for estimate in todo)
    counts = (len(group), len(group) - len(todo), len(todo))
    return (stage, *map(str, counts), f"{gpu:.1f}", f"{cpu:.1f}", amount(disk) if disk else "-")


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if index else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
