"""Links that open the runs of one of the paper's tables side by side in the MLflow UI."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from vpd.tracking.store import connected, database_file, experiment_id, scheme, shown
from vpd.tracking.sync import tracked_runs
from vpd.tracking.tags import HASH, KEY, row_experiments, run_key
from vpd.utils.errors import pick

if TYPE_CHECKING:
    from mlflow import MlflowClient

LOCAL_UI = "http://127.0.0.1:5000"


def table_runs(uri: str, params: Any, table: str, seed: int | None = None) -> list[tuple[str, str]]:
    """Row labels and run ids of one table in the paper's order; by default the lowest seed that is logged.

    A row whose columns come from several experiments gives several runs; a row without a finished run gives none.
    """
    with connected(uri) as client:
        return _rows(params, table, _finished(client, experiment_id(client, uri, params.scale)), seed)


def compare_url(uri: str, experiment: str, runs: list[str]) -> str:
    """Address of the UI's compare page for ``runs`` (ids) of one MLflow experiment (id)."""
    base = shown(uri).rstrip("/") if scheme(uri) in ("http", "https") else LOCAL_UI
    listed = [quote(json.dumps(ids, separators=(",", ":"))) for ids in (runs, [experiment])]
    return f"{base}/#/compare-runs?runs={listed[0]}&experiments={listed[1]}"


def compare_links(uri: str, params: Any) -> dict[str, str]:
    """Compare page of every table that has at least two runs, each row by its lowest seed."""
    with connected(uri) as client:
        experiment = experiment_id(client, uri, params.scale)
        finished = _finished(client, experiment)
    links = {}
    for table in params.tables:
        runs = list(dict.fromkeys(run for _, run in _rows(params, table, finished, None)))
        if len(runs) > 1:
            links[table] = compare_url(uri, experiment, runs)
    return links


def ui_command(uri: str) -> str | None:
    """Command that shows a local database at the address of ``compare_links``; None when a server shows it already."""
    path = database_file(uri)
    return f"mlflow server --backend-store-uri sqlite:///{path} --workers 1" if path else None


def _finished(client: MlflowClient, experiment: str) -> dict[str, tuple[int, str]]:
    """Key -> (seed, run id) of synchronised runs; a run that was only logged live has no final metrics."""
    runs = tracked_runs(client, experiment, "attributes.status = 'FINISHED'")
    found = ((run.info.run_id, run.data.tags) for run in runs if HASH in run.data.tags)
    return {tags[KEY]: (int(tags.get("seed", 0)), run) for run, tags in found}


def _rows(params: Any, table: str, finished: dict[str, tuple[int, str]], seed: int | None) -> list[tuple[str, str]]:
    rows = []
    for row in pick(table, params.tables, "table", "params.yaml").rows:
        for experiment in row_experiments(row):
            prefix = run_key(params.scale, params.protocol, experiment, 0)[:-1]
            found = sorted(entry for key, entry in finished.items() if key.startswith(prefix))
            rows += [(row.label, run) for number, run in found if seed is None or number == seed][:1]
    return rows
