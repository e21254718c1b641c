"""What a run will take before it is paid for: jobs, GPU-hours, disk and the time that N GPUs need."""

from __future__ import annotations

from vpd.planning.plan.estimate import Computed, Estimate, estimates
from vpd.planning.plan.graph import Job, ancestors, read_graph
from vpd.planning.plan.schedule import Schedule, critical_path, enough_cores, schedule
from vpd.planning.plan.selection import select
from vpd.planning.plan.text import annotated, describe, listing

__all__ = [
    "Computed",
    "Estimate",
    "Job",
    "Schedule",
    "ancestors",
    "annotated",
    "critical_path",
    "describe",
    "enough_cores",
    "estimates",
    "listing",
    "read_graph",
    "schedule",
    "select",
]
