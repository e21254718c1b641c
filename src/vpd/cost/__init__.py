"""What experiments cost, known before they run: size, multiply-adds, memory and GPU-hours, for tables and schedulers."""

from __future__ import annotations

from vpd.cost.estimate import Cost, cost
from vpd.cost.network import read_parts
from vpd.cost.reserve import all_costs, evaluation_resources, resources, write_costs
from vpd.cost.table import markdown, paper_gflops

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
