"""The ``track`` stage: logs all results of a scale to MLflow and says where to look at them."""

from __future__ import annotations

from vpd.config.params import Params
from vpd.config.paths import Paths


def track_results(params: Params, paths: Paths, uri: str, strict: bool) -> None:
    """Log every finished run and print how to open the runs; ``strict``: an unreachable store is an error."""
    from vpd.tracking import shown, sync, ui_command

    summary = sync(paths.results, params, uri, paths.datasets, paths.checkpoints, paths.tracked, strict=strict)
    print(summary)
    if summary.missed:
        return
    command = ui_command(uri)
    print(f"open the runs with: {command}" if command else f"the runs are at {shown(uri)}")
    for table, link in summary.links.items():
        print(f"  {table} side by side: {link}")
