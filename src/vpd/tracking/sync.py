"""Bring an MLflow store in line with the result files: one run per experiment and seed, and one of the report."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vpd.tracking.candidates import Candidate, Missing, candidate
from vpd.tracking.datasets import as_input, contradicts, log_datasets
from vpd.tracking.records import Point, Record, collect
from vpd.tracking.registry import register
from vpd.tracking.store import (
    LOST_RACES,
    ROUNDS,
    Unavailable,
    connected,
    experiment_id,
    experiment_name,
    settled,
    shown,
    writing,
)
from vpd.tracking.tags import HASH, KEY, UNKNOWN, manifest_digests
from vpd.utils.errors import UserError
from vpd.utils.progress import Progress

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

METRICS_PER_BATCH, PARAMS_PER_BATCH, RUNS_PER_PAGE = 500, 100, 500


@dataclass
class Summary:
    """What one synchronisation did, in runs; ``unfinished`` counts experiments without final results.

    ``models`` are registered models whose newest version is that of the results, ``new_versions`` those of this time.
    """

    uri: str
    experiment: str
    added: int = 0
    replaced: int = 0
    kept: int = 0
    missed: int = 0
    unfinished: int = 0
    models: int = 0
    new_versions: int = 0

    def __str__(self) -> str:
        """One line for the terminal."""
        text = f"MLflow experiment {self.experiment} at {self.uri}: "
        text += f"{self.added} runs added, {self.replaced} replaced, {self.kept} kept"
        text += f", {self.missed} not logged" if self.missed else ""
        text += f"; {self.models} registered models, {self.new_versions} new versions" if self.models else ""
        return text + (f"; {self.unfinished} experiments have no final results yet" if self.unfinished else "")

    def as_dict(self) -> dict[str, str | int]:
        """The state that was reached, equal on every machine and for every repetition."""
        logged = self.added + self.replaced + self.kept
        counts = {"missed": self.missed, "unfinished": self.unfinished, "models": self.models}
        return {"experiment": self.experiment, "runs": logged, **counts}


def sync(
    results: Path,
    params: Any,
    uri: str,
    extra_tags: Mapping[str, str] | None = None,
    *,
    digests: Mapping[str, str] | None = None,
    strict: bool = True,
    data: Path | None = None,
    checkpoints: Path | None = None,
) -> Summary:
    """Log every finished run under ``results`` that the store at ``uri`` does not show as it is now.

    Then register the models that ``params.registered`` names, which takes the folders ``data`` and ``checkpoints``.

    A run that is there with the same content stays, any other of the same key (older results, a killed attempt, live
    logging) is deleted once its successor is complete, so that sending again never duplicates. Runs of other keys are
    left alone. ``digests`` replaces those of the manifests in the two folders. An unavailable store raises Unavailable
    (a UserError) when ``strict``, else it is reported in one line.
    """
    if digests is None:
        digests = manifest_digests(data, checkpoints) if data and checkpoints else {}
    records, unfinished = collect(Path(results), params, digests, extra_tags or {}, data)
    models = _candidates(Path(results), params, digests, data, checkpoints)
    summary = Summary(shown(uri), experiment_name(params.scale), missed=len(records), unfinished=unfinished)
    try:
        with connected(uri) as client, writing(uri):
            experiment = experiment_id(client, uri, params.scale)
            runs = _sync(client, experiment, records, summary)
            _register(client, experiment, [found for found in models if found.run_key in runs], summary)
    except Unavailable as error:
        if strict:
            raise
        reason = str(error).partition(";")[0]
        missing = f"{summary.missed} runs are not logged" if summary.missed else "not all models are registered"
        print(f"{reason}; {missing} yet; run 'vpd track' later", file=sys.stderr, flush=True)
    return summary


def _candidates(
    results: Path, params: Any, digests: Mapping[str, str], data: Path | None, checkpoints: Path | None
) -> list[Candidate]:
    """Networks to register; what is missing for one is said and hinders no other."""
    registered = getattr(params, "registered", {})
    if registered and not (data and checkpoints):
        raise UserError("registered models need the dataset and the checkpoint; give --data and --checkpoints too")
    found = []
    for task in registered:
        try:
            found.append(candidate(results, params, task, digests, data, checkpoints))
        except Missing as missing:
            print(missing, file=sys.stderr, flush=True)
    return found


def _sync(client: MlflowClient, experiment: str, records: list[Record], summary: Summary) -> dict[str, str]:
    """Place every record; return the ids of the runs by key."""
    present: dict[str, list[Run]] = {}
    for run in tracked_runs(client, experiment):
        present.setdefault(run.data.tags[KEY], []).append(run)
    progress, runs = Progress(len(records), "MLflow", "runs"), {}
    for record in records:
        runs[record.key] = _place(client, experiment, record, present.get(record.key, []), summary)
        summary.missed -= 1
        progress.advance(note=record.name)
    progress.close()
    return runs


def _register(client: MlflowClient, experiment: str, models: list[Candidate], summary: Summary) -> None:
    progress = Progress(len(models), "MLflow", "models")
    for found in models:
        summary.new_versions += settled(
            lambda found=found: register(client, experiment, found, _run(client, experiment, found))
        )
        summary.models += 1
        progress.advance(note=found.name)
    progress.close()


def _run(client: MlflowClient, experiment: str, found: Candidate) -> Run:
    """The finished run of a network, which another process may have replaced by now."""
    runs = runs_of(client, experiment, found.run_key)
    finished = [run for run in runs if run.info.status == "FINISHED" and HASH in run.data.tags]
    if not finished:
        raise Unavailable(f"the run {found.run_key} was deleted while it was tracked; run 'vpd track' again")
    return client.get_run(min(finished, key=_order).info.run_id)


def tracked_runs(client: MlflowClient, experiment: str, condition: str = "") -> Iterator[Run]:
    """All runs of an MLflow experiment that this project logged and that meet ``condition``."""
    token = None
    while token != "":
        page = client.search_runs([experiment], condition, max_results=RUNS_PER_PAGE, page_token=token)
        yield from (run for run in page if KEY in run.data.tags)
        token = page.token or ""


def runs_of(client: MlflowClient, experiment: str, key: str) -> list[Run]:
    """All runs of one key."""
    return list(tracked_runs(client, experiment, f"tags.`{KEY}` = '{key}'"))


def _order(run: Run) -> tuple[int, str]:
    """Order of finished runs, in which all processes see them: the first to be complete is the first."""
    return run.info.end_time, run.info.run_id


def _place(client: MlflowClient, experiment: str, record: Record, present: list[Run], summary: Summary) -> str:
    """Make the record's run exist, once; return its id.

    A server has no locks for its clients, so others may log the same results now. Each looks, acts and looks again until
    one complete run, the first, is alone: whoever acts last has seen that. A run deleted under its writer says so.
    """
    from mlflow.exceptions import MlflowException

    digest, replaces, own = record.digest(), bool(present), None
    for left in reversed(range(ROUNDS)):
        kept = min(_complete(present, record, digest), key=_order, default=None)
        try:
            if kept is None:
                own = _log(client, experiment, record, digest)
            elif _alone(client, kept, present):
                _refresh_tags(client, kept, record.tags)
                log_datasets(client, kept, record.datasets)
                break
        except MlflowException as error:
            if error.error_code not in LOST_RACES or not left:
                raise
        present = runs_of(client, experiment, record.key)
    else:
        raise Unavailable(f"others keep replacing the run {record.key} with other results; agree on one of them")
    new = kept.info.run_id == own
    summary.kept += not new
    summary.replaced += new and replaces
    summary.added += new and not replaces
    return kept.info.run_id


def _complete(present: list[Run], record: Record, digest: str) -> list[Run]:
    """The runs that show the record as it is."""
    finished = [run for run in present if run.info.status == "FINISHED" and run.data.tags.get(HASH) == digest]
    return [run for run in finished if not contradicts(run, record.datasets)]


def _alone(client: MlflowClient, kept: Run, present: list[Run]) -> bool:
    """Whether ``kept`` is the only run; if not, the others are deleted, and somebody has to look again."""
    others = [run.info.run_id for run in present if run is not kept]
    for run in others:
        client.delete_run(run)
    return not others


def _refresh_tags(client: MlflowClient, run: Run, tags: Mapping[str, str]) -> None:
    """Follow renamed rows and newly known digests; the commit stays that of the first logging."""
    for name, value in tags.items():
        if name != "git_commit" and value not in (UNKNOWN, run.data.tags.get(name)):
            client.set_tag(run.info.run_id, name, value)


def _log(client: MlflowClient, experiment: str, record: Record, digest: str) -> str:
    """Log a new run and return its id; only the status FINISHED, set last, makes it count.

    Where another process comes between, what there is of the run is deleted.
    """
    from mlflow.exceptions import MlflowException

    run = client.create_run(experiment, run_name=record.name, tags={**record.tags, HASH: digest}).info.run_id
    try:
        _fill(client, run, record)
        client.set_terminated(run)
    except MlflowException as error:
        if error.error_code in LOST_RACES:
            client.delete_run(run)
        raise
    return run


def _fill(client: MlflowClient, run: str, record: Record) -> None:
    if record.datasets:
        client.log_inputs(run, [as_input(use) for use in record.datasets])
    log_params(client, run, record.params)
    for points in chunks(record.points, METRICS_PER_BATCH):
        client.log_batch(run, metrics=as_metrics(points))
    for name, path in record.artifacts.items():
        folder = name.rpartition("/")[0]
        client.log_artifact(run, str(path), folder or None)
    for path in record.tables:
        client.log_table(run, _columns(path), f"tables/{path.stem}.json")


def log_params(client: MlflowClient, run: str, params: Mapping[str, str]) -> None:
    """Send parameters in as few requests as MLflow allows."""
    from mlflow.entities import Param

    for items in chunks(list(params.items()), PARAMS_PER_BATCH):
        client.log_batch(run, params=[Param(name, value) for name, value in items])


def as_metrics(points: Iterable[Point]) -> list[Metric]:
    """Points as MLflow's metric entities."""
    from mlflow.entities import Metric

    return [Metric(point.name, point.value, point.timestamp, point.step) for point in points]


def chunks(items: Sequence, size: int) -> Iterator[Sequence]:
    """``items`` in pieces of at most ``size``."""
    return (items[start : start + size] for start in range(0, len(items), size))


def _columns(path: Path) -> dict[str, list[str]]:
    with open(path, encoding="utf-8", newline="") as file:
        header, *rows = list(csv.reader(file)) or [[]]
    return {name: [row[index] for row in rows] for index, name in enumerate(header)}
