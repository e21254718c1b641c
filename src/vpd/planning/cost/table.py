"""Costs as a markdown table beside the paper's figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from vpd.config.reported import load_reported
from vpd.planning.cost.estimate import GIB, Cost

if TYPE_CHECKING:
    from vpd.config.params import Params

NOTE = (
    "Multiply-adds are those of the forward pass of one training image. The paper's GFLOPs are multiply-adds as mmcv "
    "counts them, without the products inside attention. Activations are what one training image keeps for the backward "
    "pass, without and with gradient checkpointing. GPU memory is that of one GPU that computes the spec's whole "
    "micro-batch. GPU-hours are V100-hours of one run, scaled from the authors' reported times."
)
COLUMNS = (
    "experiment",
    "parameters (M)",
    "trainable (M)",
    "GMACs",
    "GMACs, mmcv",
    "GFLOPs, paper",
    "activations (GiB)",
    "checkpointed (GiB)",
    "GPU memory (GiB)",
    "GPU-hours",
)


def figures(cost: Cost) -> dict[str, float]:
    """The numbers of one row, by column, rounded as they are shown."""
    values = (
        _shown(cost.parameters / 1e6, 1),
        _shown(cost.trainable / 1e6, 1),
        _shown(cost.macs / 1e9, 2),
        _shown(cost.mmcv_macs / 1e9, 2),
        _shown(cost.kept.per_image / GIB, 2),
        _shown(cost.kept_checkpointed.per_image / GIB, 2),
        _shown(cost.gpu_bytes() / GIB, 1),
        _shown(cost.gpu_hours, 1),
    )
    measured = [column for column in COLUMNS if column not in ("experiment", "GFLOPs, paper")]
    return dict(zip(measured, values, strict=True))


def _shown(value: float, decimals: int) -> float:
    """Round to so many decimals, or to two digits where that would leave fewer."""
    return round(value, decimals) if value >= 1 else float(f"{value:.2g}")


def paper_gflops(params: Params) -> dict[str, float]:
    """Experiment -> GFLOPs that the paper prints in the table row that this experiment fills."""
    printed = {}
    for name, table in params.tables.items():
        reported = load_reported()[name]
        for row in table.rows if "gflops" in reported.columns else ():
            value = reported.rows[reported.matching(row.match)[0]].get("gflops")
            if value is not None and row.experiment:
                printed[row.experiment] = value
    return printed


def markdown(costs: Mapping[str, Cost], paper: Mapping[str, float] | None = None) -> str:
    """Table of experiments and their costs; ``paper`` are the paper's GFLOPs by experiment (``paper_gflops``)."""
    lines = [COLUMNS, ("---",) + ("---:",) * (len(COLUMNS) - 1)]
    for name, cost in costs.items():
        shown = {"experiment": name, "GFLOPs, paper": (paper or {}).get(name, "–"), **figures(cost)}
        lines.append([str(shown[column]) for column in COLUMNS])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{NOTE}\n"
