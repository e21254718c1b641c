"""How long jobs take together: the longest chain, and a schedule on so many GPUs and cores."""

from __future__ import annotations

import heapq
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vpd.planning.plan.estimate import Estimate
    from vpd.planning.plan.graph import Job


@dataclass(frozen=True)
class Schedule:
    """Hours from the start at which each job begins, and at which the last one ends."""

    starts: dict[str, float]
    hours: float


def enough_cores(found: Mapping[str, Estimate], gpus: int) -> int:
    """Cores that keep ``gpus`` busy; those of this machine where no job has a GPU."""
    per_gpu = max((estimate.cores / estimate.gpus for estimate in found.values() if estimate.gpus), default=0.0)
    return math.ceil(gpus * per_gpu) or len(os.sched_getaffinity(0))


def remaining(jobs: Mapping[str, Job], found: Mapping[str, Estimate], gpus: int) -> dict[str, float]:
    """Hours of each job and of the longest chain of jobs behind it; what is present or unknown takes none."""
    longest: dict[str, float] = {}
    behind: dict[str, float] = dict.fromkeys(jobs, 0.0)
    for name in reversed(jobs):  # jobs come after what they need
        longest[name] = found[name].hours_on(gpus) + behind[name]
        for needed in jobs[name].needs:
            if needed in behind:
                behind[needed] = max(behind[needed], longest[name])
    return longest


def critical_path(jobs: Mapping[str, Job], found: Mapping[str, Estimate], gpus: int) -> list[str]:
    """The longest chain of jobs that are still to do, none of which may use more than ``gpus``."""
    longest = remaining(jobs, found, gpus)
    chain: list[str] = []
    ready = [name for name, job in jobs.items() if not any(needed in jobs for needed in job.needs)]
    while ready:
        first = max(ready, key=longest.__getitem__)
        chain.append(first)
        ready = [name for name, job in jobs.items() if first in job.needs]
    return [name for name in chain if not found[name].present]


def schedule(jobs: Mapping[str, Job], found: Mapping[str, Estimate], gpus: int, cores: int) -> Schedule:
    """Start whatever is ready and fits, the longest chain first, until all is done.

    A job that may use more than there is uses all of it, and with fewer GPUs takes longer.
    """
    longest = remaining(jobs, found, gpus)
    todo = {name: job for name, job in jobs.items() if not found[name].present}
    taken = {name: (min(found[name].gpus, gpus), min(found[name].cores, cores)) for name in todo}
    waiting = {name: sum(needed in todo for needed in job.needs) for name, job in todo.items()}
    followers: dict[str, list[str]] = {name: [] for name in todo}
    for name, job in todo.items():
        for needed in job.needs:
            if needed in todo:
                followers[needed].append(name)
    ready = [(-longest[name], name) for name, count in waiting.items() if count == 0]
    heapq.heapify(ready)
    running: list[tuple[float, str]] = []
    starts: dict[str, float] = {}
    clock, free = 0.0, [gpus, cores]
    while ready or running:
        for name in _fitting(ready, taken, free):
            starts[name] = clock
            heapq.heappush(running, (clock + found[name].hours_on(gpus), name))
        clock, ended = heapq.heappop(running)
        free = [had + back for had, back in zip(free, taken[ended], strict=True)]
        for follower in followers[ended]:
            waiting[follower] -= 1
            if not waiting[follower]:
                heapq.heappush(ready, (-longest[follower], follower))
    return Schedule(starts, clock)


def _fitting(ready: list[tuple[float, str]], taken: Mapping[str, tuple[int, int]], free: list[int]) -> list[str]:
    """Move from ``ready`` what fits into the ``free`` GPUs and cores, which are lessened."""
    fitting, left = [], []
    while ready:
        entry = heapq.heappop(ready)
        gpus, cores = taken[entry[1]]
        if gpus <= free[0] and cores <= free[1]:
            free[0] -= gpus
            free[1] -= cores
            fitting.append(entry[1])
        else:
            left.append(entry)
    ready.extend(left)  # in order already, which is a heap
    return fitting
