"""A plan in words and one table."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from vpd.planning.plan.schedule import critical_path, schedule
from vpd.utils.disk import amount

if TYPE_CHECKING:
    from vpd.planning.plan.estimate import Estimate
    from vpd.planning.plan.graph import Job

COLUMNS = ("stage", "jobs", "done", "to do", "GPU-hours", "CPU-hours", "disk")
MEGABYTE = 1 << 20
SHOWN = 8
"""Jobs that a list names before it says how many more there are."""


def describe(title: str, jobs: Mapping[str, Job], found: Mapping[str, Estimate], gpus: int, cores: int) -> str:
    """Jobs, hours and disk by stage, the longest chain, and the time on ``gpus`` and ``cores``."""
    stages = list(dict.fromkeys(job.stage for job in jobs.values()))
    rows = [_row(stage, [found[name] for name, job in jobs.items() if job.stage == stage]) for stage in stages]
    rows.append(_row("all", list(found.values())))
    plan, chain = schedule(jobs, found, gpus, cores), critical_path(jobs, found, gpus)
    lines = [title, "", *_table([COLUMNS, *rows]), ""]
    lines.append(f"On {_machine(found, gpus, cores)}: {duration(plan.hours)}.")
    if chain:
        longest = sum(found[name].hours_on(gpus) for name in chain)
        lines.append(f"Critical path, {duration(longest)}: {' -> '.join(chain)}.")
    state = max((estimate.state for estimate in found.values() if not estimate.present), default=0)
    if state:
        lines.append(f"While it trains, a job keeps up to {amount(state)} per seed of resumable state besides.")
    unknown = [name for name in jobs if found[name].hours is None and not found[name].present]
    if unknown:
        lines.append(f"Not known beforehand and counted as nothing: the time of {_named(unknown)}.")
    return "\n".join(lines)


def listing(jobs: Mapping[str, Job], found: Mapping[str, Estimate]) -> str:
    """Every job with its state and what it needs, a line each; a dash where nobody knows or nothing is needed."""
    rows = [("job", "state", "time", "GPUs", "GPU memory", "memory", "cores")]
    for name in jobs:
        needs = found[name]
        memory = (amount(size * MEGABYTE) if size else "-" for size in (needs.gpu_mem_mb, needs.mem_mb))
        time = "-" if needs.hours is None else duration(needs.hours)
        rows.append(
            (name, "done" if needs.present else "to do", time, str(needs.gpus or "-"), *memory, str(needs.cores))
        )
    return "\n".join(_table(rows))


def annotated(line: str, found: Mapping[str, Estimate]) -> str:
    """A line of a dry run of DVC; where it names a stage, with what that needs."""
    named = re.search(r"stage '([^']+)'", line)
    return f"{line} {needs(found[named[1]])}" if named and named[1] in found else line


def needs(job: Estimate) -> str:
    """``8 GPUs of 23.6 GB, 40 cores, 207.4 GB of memory, 12.0 h``, as far as it is known."""
    parts = [f"{job.gpus} GPU{'s' * (job.gpus != 1)} of {amount(job.gpu_mem_mb * MEGABYTE)}"] if job.gpus else []
    parts.append(f"{job.cores} core{'s' * (job.cores != 1)}")
    parts += [f"{amount(job.mem_mb * MEGABYTE)} of memory"] if job.mem_mb else []
    parts += [duration(job.hours)] if job.hours is not None else []
    return ", ".join(parts)


def duration(hours: float) -> str:
    """``0.4`` -> ``24 min``; ``30`` -> ``30 h``; ``100`` -> ``4.2 days``."""
    if hours < 1:
        return f"{hours * 60:.0f} min"
    return f"{hours:.1f} h" if hours < 72 else f"{hours / 24:.1f} days"


def _row(stage: str, group: list[Estimate]) -> tuple[str, ...]:
    todo = [estimate for estimate in group if not estimate.present]
    gpu = sum((estimate.hours or 0.0) * estimate.gpus for estimate in todo)
    cpu = sum((estimate.hours or 0.0) * estimate.cores for estimate in todo if not estimate.gpus)
    disk = sum(estimate.written for estimate in todo)
    counts = (len(group), len(group) - len(todo), len(todo))
    return (stage, *map(str, counts), f"{gpu:.1f}", f"{cpu:.1f}", amount(disk) if disk else "-")


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    cells = [[f"{cell:{'<' if place == 0 else '>'}{width}}" for place, (cell, width) in enumerate(zip(row, widths, strict=True))]
             for row in rows]  # fmt: skip
    return ["  ".join(row) for row in cells]


def _machine(found: Mapping[str, Estimate], gpus: int, cores: int) -> str:
    used = any(estimate.gpus for estimate in found.values())
    return f"{gpus} GPU{'s' * (gpus != 1)}" if used else f"{cores} core{'s' * (cores != 1)}"


def _named(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
