"""The course of a pre-training as a table: the loss of every phase, averaged over a few steps."""

from __future__ import annotations

import csv
from pathlib import Path

from vpd.utils.files import atomic_path

HISTORY_EVERY = 10
"""Steps that one line of history.csv averages."""
Row = tuple[str, int, float]
"""Phase, step, loss."""


def averaged(losses: dict[str, list[float]]) -> list[Row]:
    """Mean loss of every HISTORY_EVERY steps (fewer at a phase's end), at the last of them; ``losses`` are by phase."""
    rows = []
    for phase, values in losses.items():
        for start in range(0, len(values), HISTORY_EVERY):
            chunk = values[start : start + HISTORY_EVERY]
            rows.append((phase, start + len(chunk), sum(chunk) / len(chunk)))
    return rows


def write_history(rows: list[Row], path: Path) -> None:
    """Write phase, step and loss, a line per row."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("phase", "step", "loss"))
        writer.writerows((phase, step, f"{loss:.6f}") for phase, step, loss in rows)
