"""The file and the table that ``vpd cost`` writes; reading them needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NotRequired, TypeVar

from pydantic import BaseModel, Field
from typing_extensions import TypedDict

from vpd.config.reported import load_reported
from vpd.utils.validation import read_as

if TYPE_CHECKING:
    from vpd.config.params import Params
    from vpd.planning.cost import Cost

Entry = TypeVar("Entry", bound=BaseModel)
NOTE = (
    "Multiply-adds are those of the forward pass of one training image. The paper's GFLOPs are multiply-adds as mmcv "
    "counts them, without the products inside attention. GPU memory is an estimate for one GPU that computes the spec's "
    "whole micro-batch. GPU-hours are V100-hours of one run, scaled from the authors' reported times."
)
GIB = 1 << 30


def read_entries(path: Path, entry: type[Entry]) -> dict[str, Entry]:
    """Read a file of ``vpd cost --out``: by experiment, the fields of the model ``entry``; UserError if it is damaged."""
    return read_as(dict[str, entry], path, "write it again with vpd cost --out")  # type: ignore[valid-type]


Amount = Annotated[float, Field(ge=0.0, le=1e10)]


class Spent(TypedDict):
    """How long something took."""

    seconds: Amount


class Trained(Spent):
    """How long a training took, and when it ended, in seconds since 1970."""

    ended: Amount


class Timing(Spent):
    """How long a job took, the most memory of its processes and, of a training, the machine."""

    stage: str
    name: str
    peak_mb: NotRequired[Amount | None]
    machine: NotRequired[str]


def read_timing(path: Path) -> Timing:
    """Read the file that every stage leaves; UserError if it is damaged."""
    return read_as(Timing, path)


def figures(cost: Cost) -> dict[str, float]:
    """Return the numbers of one table row by column, rounded as they are shown."""
    values: dict[str, tuple[float, int]] = {
        "parameters (M)": (cost.total.parameters / 1e6, 1),
        "trainable (M)": (cost.total.trainable / 1e6, 1),
        "GMACs": (cost.total.macs / 1e9, 2),
        "GMACs, mmcv": (cost.total.mmcv_macs / 1e9, 2),
        "GPU memory (GiB)": (cost.gpu_bytes() / GIB, 1),
        "GPU-hours": (cost.gpu_hours, 1),
    }
    # Numbers below one keep two significant digits: the small networks of the smoke scale would otherwise read 0.0.
    return {name: round(n, decimals) if n >= 1 else float(f"{n:.2g}") for name, (n, decimals) in values.items()}


def paper_gflops(params: Params) -> dict[str, float]:
    """Return the GFLOPs that the paper prints in the table row of an experiment, by experiment."""
    printed: dict[str, float] = {}
    for name, table in params.tables.items():
        reported = load_reported()[name]
        for row in table.rows if "gflops" in reported.columns else ():
            value = reported.rows[reported.matching(row.match)[0]].get("gflops")
            if isinstance(value, int | float) and row.experiment:
                printed[row.experiment] = value
    return printed


def markdown(costs: Mapping[str, Cost], paper: Mapping[str, float]) -> str:
    """Format costs by experiment as a table beside the paper's GFLOPs (``paper_gflops``)."""
    rows: list[list[str]] = []
    for name, cost in costs.items():
        columns = [("experiment", name), *((column, str(value)) for column, value in figures(cost).items())]
        columns.insert(5, ("GFLOPs, paper", str(paper.get(name, "–"))))
        rows = rows or [[column for column, _ in columns], ["---"] + ["---:"] * (len(columns) - 1)]
        rows.append([value for _, value in columns])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + f"\n\n{NOTE}\n"
