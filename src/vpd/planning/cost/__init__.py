"""What experiments cost, known before they run: size, multiply-adds, memory and GPU-hours, for tables and schedulers."""

from __future__ import annotations

from vpd.planning.cost.estimate import Cost, cost
from vpd.planning.cost.network import read_parts
from vpd.planning.cost.reserve import all_costs, evaluation_resources, resources, write_costs
from vpd.planning.cost.table import markdown, paper_gflops

__all__ = [
    "Cost",
    "all_costs",
    "cost",
    "evaluation_resources",
    "markdown",
    "paper_gflops",
    "read_parts",
    "resources",
    "write_costs",
]
