"""Finished result files as records of MLflow runs: parameters, curves, tags, datasets and artifacts, without MLflow."""

import csv
import json
import re
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from vpd.config.params import Params
from vpd.config.paths import evaluated
from vpd.config.schema import Spec, load_spec, released_spec
from vpd.evaluation.results import DECISIVE, Provenance, Result, read_metrics, read_provenance
from vpd.report.cells import read_cells
from vpd.utils.digests import digest, sha256
from vpd.utils.errors import UserError, pick
from vpd.utils.files import files_in, read_text
from vpd.utils.fingerprint import git_commit

KEY, HASH, SPEC = "vpd.key", "vpd.hash", "vpd.spec"
UNKNOWN = "unknown"
FROM_SPEC = ("scale", "protocol", "schedule", "task", "dataset", "method", "checkpoint")
LONGEST_VALUE = 500


class Point(NamedTuple):
    """One value of one metric at one optimizer step."""

    name: str
    value: float
    step: int

    @property
    def timestamp(self) -> int:
        """Milliseconds that depend on the step alone, so that MLflow stores a point that is sent twice once."""
        return 1000 * self.step


@dataclass(frozen=True)
class Record:
    """Everything that one MLflow run shows."""

    key: str
    """Identity over time: scale/protocol/experiment/seed."""
    name: str
    params: dict[str, str] = field(default_factory=dict)
    points: tuple[Point, ...] = ()
    tags: dict[str, str] = field(default_factory=dict)
    artifacts: dict[str, Path] = field(default_factory=dict)
    """Path inside the run -> file."""
    times: tuple[int, int] | None = None
    """Start and end in milliseconds since 1970, where they are known."""

    def digest(self) -> str:
        """Digest of the content; tags do not count because a run can get them later."""
        files = {name: sha256(path) for name, path in sorted(self.artifacts.items())}
        return digest([self.name, self.params, self.points, files, self.times])


def collect(results: Path, params: Params) -> tuple[list[Record], int]:
    """Collect the finished experiments of the matrix, and the report; count those that are not finished.

    An experiment is finished if its spec is what ``params`` say now and its metrics carry that spec's digest.
    """
    records, unfinished = [], 0
    for name in params.experiments:
        found = list(_seed_records(results, params, name))
        records += found
        unfinished += not found
    if (results / "REPORT.md").is_file():
        records.append(_report_record(results, params))
    return records, unfinished


def _seed_records(results: Path, params: Params, name: str) -> Iterator[Record]:
    spec_file, out = results / "specs" / f"{name}.json", evaluated(results, name)
    if not (spec_file.is_file() and out.metrics.is_file() and out.provenance.is_file()):
        return
    spec, scores, made = load_spec(spec_file), read_metrics(out.metrics), read_provenance(out.provenance)
    if (made.spec, made.metrics) == (spec.digest(), sha256(out.metrics)) and is_present(spec, params):
        for seed in sorted({row["seed"] for row in scores}):
            yield _seed_record(results, spec, seed, scores, made, table_tags(params, name))


def is_present(spec: Spec, params: Params) -> bool:
    """Whether an experiment's recorded spec, or what released weights stand for in it, is the one of ``params``."""
    wanted = params.resolve(spec.name)
    return spec in (wanted, released_spec(wanted))


def _seed_record(
    results: Path, spec: Spec, seed: int, scores: list[Result], made: Provenance, tags: dict[str, str]
) -> Record:
    points = _final_points(scores, seed) + _history(results / "history" / f"{spec.name}.csv", seed)
    first = f"final/{metric_name(DECISIVE[spec.task][0])}_mean"
    points.sort(key=lambda point: point.name != first)  # with what was logged first MLflow's comparisons begin
    artifacts = {"spec.json": results / "specs" / f"{spec.name}.json"}
    if seed == spec.seeds[0]:  # the panels show the first seed
        artifacts |= {f"panels/{path.name}": path for path in files_in(results / "panels" / spec.name, "*.png")}
    run = pick(f"seed{seed}", made.runs, "run", str(evaluated(results, spec.name).provenance))
    facts = {f"{name}_digest": run.fingerprint.inputs.get(name, UNKNOWN) for name in ("data", "checkpoint")}
    facts["git_commit"] = (run.timing and run.timing.commit) or UNKNOWN
    tags = {**tags, **facts, **spec_tags(spec, seed)}
    params = flatten(spec.model_dump(mode="json"))
    times = (round(1000 * run.timing.started), round(1000 * run.timing.ended)) if run.timing else None
    return Record(tags[KEY], run_name(spec.name, seed), params, tuple(points), tags, artifacts, times)


def _report_record(results: Path, params: Params) -> Record:
    pages = [results / "REPORT.md", results / "report.html"]
    files = pages + [path for folder in ("tables", "figures") for path in files_in(results / folder)]
    key = f"{params.scale}/{params.protocol}/report"
    tags = {"git_commit": git_commit(results) or UNKNOWN, "scale": params.scale, "protocol": params.protocol, KEY: key}
    artifacts = {path.relative_to(results).as_posix(): path for path in files if path.is_file()}
    return Record(key, "report", {}, tuple(_cell_points(results / "tables" / "cells.csv")), tags, artifacts)


def history_points(step: int, values: Mapping[str, float | str | None]) -> list[Point]:
    """Convert what training reports at one step; empty cells are left out."""
    return [Point(f"train/{name}", float(value), step) for name, value in values.items() if value not in ("", None)]


def _history(path: Path, seed: int) -> list[Point]:
    if not path.is_file():
        return []
    points = []
    try:
        for row in csv.DictReader(read_text(path).splitlines()):
            if int(row.pop("seed")) == seed:
                points += history_points(int(row.pop("step")), row)
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise UserError(f"{path} is damaged ({error}); delete it and run the training stage again") from None
    return points


def _final_points(metrics: list[Result], seed: int) -> list[Point]:
    """Points ``<milestone>/<metric>`` of one seed, with mean and standard deviation over all seeds beside them."""
    points = []
    for row in (row for row in metrics if row["seed"] == seed):
        for name, value in row["metrics"].items():
            peers = [other["metrics"][name] for other in metrics if other["milestone"] == row["milestone"]]
            label = f"{row['milestone']}/{metric_name(name)}"
            points += [Point(label, value, row["step"]), Point(f"{label}_mean", statistics.fmean(peers), row["step"])]
            if len(peers) > 1:
                points.append(Point(f"{label}_sd", statistics.stdev(peers), row["step"]))
    return points


def _cell_points(path: Path) -> list[Point]:
    """Every measured cell as ``<table>/<row>/<column>``."""
    if not path.is_file():
        return []
    cells = read_cells(path)
    measured = cells.loc[cells["provenance"] == "measured", "value"].dropna().reset_index()
    return [Point("/".join(map(metric_name, key)), value, 0) for *key, value in measured.itertuples(index=False)]


def metric_name(text: str) -> str:
    """Replace the characters that MLflow does not allow in one part of a name: ``refcoco+`` -> ``refcocoplus``."""
    return re.sub(r"[^\w\-. ]", "-", text.replace("+", "plus")).strip()


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Flatten nested mappings to dotted keys; lists are joined, values cut at 500 characters."""
    flat: dict[str, str] = {}
    for key, item in value.items():
        flat |= flatten(item, f"{prefix}{key}.") if isinstance(item, Mapping) else {f"{prefix}{key}": _text(item)}
    return flat


def _text(value: object) -> str:
    if isinstance(value, (list, tuple)):
        value = ", ".join(map(_text, value)) or "none"
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 1] + "…"


def run_key(spec: Spec, seed: int) -> str:
    """Identify a run over time, whatever its results are."""
    return f"{spec.scale}/{spec.protocol}/{run_name(spec.name, seed)}"


def run_name(experiment: str, seed: int) -> str:
    """Name a run in MLflow's lists."""
    return f"{experiment}/seed{seed}"


def spec_tags(spec: Spec, seed: int) -> dict[str, str]:
    """Return the tags that follow from spec and seed."""
    own = {"experiment": spec.name, "seed": str(seed), "backbone": spec.checkpoint, SPEC: spec.digest()}
    return {name: str(getattr(spec, name)) for name in FROM_SPEC} | own | {KEY: run_key(spec, seed)}


def table_tags(params: Params, experiment: str) -> dict[str, str]:
    """Return the tags that say which tables and trend figures of the paper show an experiment, and in which rows.

    There is one tag per table, and ``table`` is the first of them alone, so that "Group by" puts every run into one group.
    """
    labels: dict[str, list[str]] = {}
    for table, layout in params.tables.items():
        for row in layout.rows:
            if experiment in row.trained.values():
                labels.setdefault(table, []).append(row.label)
    for name, figure in params.figures.items():
        for point, used in figure.points.items():
            if used == experiment:
                labels.setdefault(name, []).append(point)
    if not labels:
        return {}
    tags = {table: "; ".join(names) for table, names in labels.items()}
    rows = "; ".join(f"{table}: {text}" for table, text in tags.items())
    return {**tags, "table": next(iter(tags)), "tables": ", ".join(tags), "row": rows}
