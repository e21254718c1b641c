"""Bring an MLflow store in line with the result files: one run per experiment and seed, and one of the report."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from vpd.config.params import Params
from vpd.tracking.models import networks_to_register, register
from vpd.tracking.records import HASH, KEY, UNKNOWN, Point, Record, collect, run_key
from vpd.tracking.store import Unavailable, connected, database_file, experiment_id, scheme, shown
from vpd.utils.files import exclusive, write_json
from vpd.utils.progress import Progress

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

METRICS_PER_BATCH, PARAMS_PER_BATCH, RUNS_PER_PAGE = 500, 100, 500
LOCAL_UI = "http://127.0.0.1:5000"
TRAINING = "workflowType=machine_learning"  # otherwise the UI opens its pages for language models, which are empty


@dataclass
class Summary:
    """What one synchronisation did; counts are runs unless stated otherwise."""

    uri: str
    experiment: str
    added: int = 0
    replaced: int = 0
    kept: int = 0
    missed: int = 0
    unfinished: int = 0  # experiments without final results
    models: int = 0
    new_versions: int = 0
    runs: str = ""  # page that lists the runs
    links: dict[str, str] = field(default_factory=dict)  # table -> page that compares its runs

    def __str__(self) -> str:
        text = f"MLflow experiment {self.experiment} at {self.uri}: "
        text += f"{self.added} runs added, {self.replaced} replaced, {self.kept} kept"
        text += f", {self.missed} not logged" if self.missed else ""
        text += f"; {self.models} registered models, {self.new_versions} new versions" if self.models else ""
        return text + (f"; {self.unfinished} experiments have no final results yet" if self.unfinished else "")

    def as_dict(self) -> dict[str, str | int]:
        """The state that was reached, equal on every machine and for every repetition."""
        counts = {"missed": self.missed, "unfinished": self.unfinished, "models": self.models}
        return {"experiment": self.experiment, "runs": self.added + self.replaced + self.kept, **counts}


def sync(
    results: Path,
    params: Params,
    uri: str,
    data: Path,
    checkpoints: Path,
    out: Path | None = None,
    *,
    strict: bool = True,
) -> Summary:
    """Log every finished run that the store does not show as it is now, then register the trained networks.

    A run with the same key and content is kept; one with other content, a killed attempt or a live run is replaced. Runs of
    other keys are left alone. Two machines that track the same results to one server at the same moment may log a run
    twice, and the next ``sync`` deletes the second.

    Args:
        results: folder of one scale.
        params: parameters of that scale; ``registered`` names the networks to register.
        uri: the store.
        data: folder of the prepared datasets.
        checkpoints: folder of the checkpoints.
        out: JSON file for the summary.
        strict: whether an unavailable store raises Unavailable, or is reported in one line.
    """
    records, unfinished = collect(results, params)
    networks = networks_to_register(results, params, data, checkpoints)
    summary = Summary(shown(uri), f"vpd-{params.scale}", missed=len(records), unfinished=unfinished)
    try:
        with connected(uri) as client, exclusive(results / "runs" / "tracked", f"tracking of {results}"):
            experiment = experiment_id(client, uri, params.scale)
            runs = _log_runs(client, experiment, records, summary)
            summary.runs = runs_url(uri, experiment)
            for network in networks:
                if run := runs.get(run_key(network.spec, network.seed)):
                    summary.new_versions += register(client, experiment, network, client.get_run(run))
                    summary.models += 1
            summary.links = _links(client, uri, experiment, params)
    except Unavailable as error:
        if strict:
            raise
        missing = f"{summary.missed} runs are not logged" if summary.missed else "models or links may be missing"
        print(f"{str(error).partition(';')[0]}; {missing} yet; run 'vpd track' later", file=sys.stderr, flush=True)
    if out:
        write_json(out, summary.as_dict())
    return summary


def _log_runs(client: MlflowClient, experiment: str, records: list[Record], summary: Summary) -> dict[str, str]:
    """Keep or create the run of every record, delete all others of its key; return the ids of the runs by key."""
    present = list(tracked_runs(client, experiment))
    progress, runs = Progress(len(records), "MLflow", "runs"), {}
    for record in records:
        old = [run for run in present if run.data.tags[KEY] == record.key]
        current = next((run for run in old if _is_current(run, record)), None)
        if current is not None:
            runs[record.key] = current.info.run_id
            _amend(client, current, record)
            summary.kept += 1
        else:
            runs[record.key] = _create_run(client, experiment, record)
            summary.replaced += bool(old)
            summary.added += not old
        for run in old:
            if run is not current:
                client.delete_run(run.info.run_id)
        summary.missed -= 1
        progress.advance(note=record.name)
    progress.close()
    return runs


def tracked_runs(client: MlflowClient, experiment: str, condition: str = "") -> Iterator[Run]:
    """Yield the runs of an MLflow experiment that this project logged and that meet ``condition``."""
    token: str | None = None
    while token != "":
        page = client.search_runs([experiment], condition, max_results=RUNS_PER_PAGE, page_token=token)
        yield from (run for run in page if KEY in run.data.tags)
        token = page.token or ""


def _is_current(run: Run, record: Record) -> bool:
    tags, same_data = run.data.tags, run.data.tags.get("data_digest") == record.tags.get("data_digest")
    return run.info.status == "FINISHED" and tags.get(HASH) == record.digest() and same_data


def _amend(client: MlflowClient, run: Run, record: Record) -> None:
    """Bring the tags of tables and rows up to date; the commit stays that of the first time."""
    for name, value in record.tags.items():
        if name != "git_commit" and value not in (UNKNOWN, run.data.tags.get(name)):
            client.set_tag(run.info.run_id, name, value)


def _create_run(client: MlflowClient, experiment: str, record: Record) -> str:
    """Log a new run; only the status FINISHED, set last, makes it count."""
    tags = {**record.tags, HASH: record.digest()}
    started, ended = record.times or (None, None)
    run = client.create_run(experiment, started, tags, record.name).info.run_id
    log_points_and_params(client, run, record.points, record.params)
    for name, path in record.artifacts.items():
        client.log_artifact(run, str(path), name.rpartition("/")[0] or None)
    client.set_terminated(run, end_time=ended)
    return run


def log_points_and_params(client: MlflowClient, run: str, points: Sequence[Point], params: Mapping[str, str]) -> None:
    """Send metrics and parameters in as few requests as MLflow allows."""
    from mlflow.entities import Metric, Param

    items = [Param(name, value) for name, value in params.items()]
    for start in range(0, len(items), PARAMS_PER_BATCH):
        client.log_batch(run, params=items[start : start + PARAMS_PER_BATCH])
    metrics = [Metric(point.name, point.value, point.timestamp, point.step) for point in points]
    for start in range(0, len(metrics), METRICS_PER_BATCH):
        client.log_batch(run, metrics=metrics[start : start + METRICS_PER_BATCH])


def compare_links(uri: str, params: Params) -> dict[str, str]:
    """Return the UI's comparison page of every table with at least two finished runs, each row by its lowest seed."""
    with connected(uri) as client:
        return _links(client, uri, experiment_id(client, uri, params.scale), params)


def _links(client: MlflowClient, uri: str, experiment: str, params: Params) -> dict[str, str]:
    lowest: dict[str, tuple[int, str]] = {}
    for run in tracked_runs(client, experiment, "attributes.status = 'FINISHED'"):
        tags = run.data.tags
        if HASH in tags and "experiment" in tags:  # neither live, which has no final metrics, nor the report
            key, entry = tags[KEY].rpartition("/")[0], (int(tags["seed"]), run.info.run_id)
            lowest[key] = min(entry, lowest.get(key, entry))
    links = {}
    for table, layout in params.tables.items():
        names = [name for row in layout.rows for name in row.trained.values()]
        keys = [f"{params.scale}/{params.protocol}/{name}" for name in names]
        runs = list(dict.fromkeys(lowest[key][1] for key in keys if key in lowest))
        if len(runs) > 1:
            links[table] = compare_url(uri, experiment, runs)
    return links


def compare_url(uri: str, experiment: str, runs: list[str]) -> str:
    """Return the UI's comparison page of ``runs`` (ids) of one MLflow experiment (id)."""
    listed = [quote(json.dumps(ids, separators=(",", ":"))) for ids in (runs, [experiment])]
    return f"{_ui(uri)}/#/compare-runs?runs={listed[0]}&experiments={listed[1]}&{TRAINING}"


def runs_url(uri: str, experiment: str) -> str:
    """Return the UI's list of the runs of one MLflow experiment (id)."""
    return f"{_ui(uri)}/#/experiments/{experiment}/runs?{TRAINING}"


def _ui(uri: str) -> str:
    return shown(uri).rstrip("/") if scheme(uri) in ("http", "https") else LOCAL_UI


def ui_command(uri: str) -> str | None:
    """Return the command that shows a local database at the address of the links; None for a server."""
    path = database_file(uri)
    return f"mlflow server --backend-store-uri {shlex.quote(f'sqlite:///{path}')} --workers 1" if path else None
