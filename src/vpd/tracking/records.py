"""Finished result files as records of MLflow runs: parameters, points of curves, tags and artifacts, without MLflow."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from vpd.config.schema import Spec, load_spec
from vpd.tracking.datasets import DatasetUse, dataset_uses
from vpd.tracking.tags import KEY, digest_tags, git_commit, place_tags, run_name, spec_tags
from vpd.utils.digests import sha256
from vpd.utils.errors import UserError
from vpd.utils.files import read_json

LONGEST_VALUE = 500
CELL = ("table", "row", "column")


class Point(NamedTuple):
    """One value of one metric at one optimizer step."""

    name: str
    value: float
    step: int

    @property
    def timestamp(self) -> int:
        """Milliseconds that depend on the step alone, so that a point sent twice is one row in MLflow."""
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
    tables: tuple[Path, ...] = ()
    """CSV files that are also logged as MLflow tables."""
    datasets: tuple[DatasetUse, ...] = ()

    def digest(self) -> str:
        """Hash of what is logged; tags and datasets are left out because a run can get them later."""
        files = {name: sha256(path) for name, path in sorted(self.artifacts.items())}
        text = json.dumps([self.name, self.params, self.points, files], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def collect(
    results: Path, params: Any, digests: Mapping[str, str], tags: Mapping[str, str], data: Path | None = None
) -> tuple[list[Record], int]:
    """Records of all finished experiments of the matrix and of the report, and how many experiments are unfinished.

    ``params`` has ``scale``, ``protocol``, ``experiments`` (names) and ``tables``; ``data`` holds the datasets. An
    experiment is finished when its metrics exist and carry the digest of its present spec, so that a new spec never
    stands beside old numbers.
    """
    common = {"git_commit": git_commit(results), **tags}
    records, unfinished = [], 0
    for name in params.experiments:
        spec, metrics = _finished(results, name)
        if spec is None:
            unfinished += 1
            continue
        shown = {**common, **place_tags(params, name), **digest_tags(results, spec, digests)}
        try:
            seeds = sorted({row["seed"] for row in metrics})
            records += [_seed_record(results, spec, seed, metrics, shown, data) for seed in seeds]
        except (KeyError, TypeError) as error:
            path = results / "metrics" / f"{name}.json"
            raise UserError(f"{path} is not a metrics file ({error!r}); delete it and evaluate {name} again") from None
    if (results / "REPORT.md").is_file():
        records.append(_report_record(results, params, common))
    return records, unfinished


def _finished(results: Path, name: str) -> tuple[Spec | None, list[dict]]:
    spec_file, metrics_file = results / "specs" / f"{name}.json", results / "metrics" / f"{name}.json"
    if not (spec_file.is_file() and metrics_file.is_file()):
        return None, []
    spec, metrics = load_spec(spec_file), read_json(metrics_file)
    try:
        return (spec if metrics["spec"] == spec.digest() else None), metrics["results"]
    except KeyError as error:
        raise UserError(f"{metrics_file} has no key {error}; delete it and evaluate {name} again") from None


def spec_params(spec: Spec) -> dict[str, str]:
    """The spec as flat MLflow parameters; the seed of a run is a tag."""
    return flatten(spec.model_dump(mode="json"))


def _seed_record(
    results: Path, spec: Spec, seed: int, metrics: list[dict], tags: dict[str, str], data: Path | None
) -> Record:
    points = _history(results / "history" / f"{spec.name}.csv", seed) + _final_points(metrics, seed)
    artifacts = {"spec.json": results / "specs" / f"{spec.name}.json"}
    if seed == spec.seeds[0]:  # the panels show the first seed
        artifacts |= {f"panels/{path.name}": path for path in sorted((results / "panels" / spec.name).glob("*.png"))}
    tags = {**tags, **spec_tags(spec, seed)}
    return Record(
        tags[KEY],
        run_name(spec.name, seed),
        spec_params(spec),
        tuple(points),
        tags,
        artifacts,
        datasets=dataset_uses(spec, tags["data_digest"], data),
    )


def _history(path: Path, seed: int) -> list[Point]:
    """Points ``train/<column>`` of one seed; none when the history was not kept."""
    if not path.is_file():
        return []
    points = []
    try:
        with open(path, encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                if int(row.pop("seed")) == seed:
                    points += history_points(int(row.pop("step")), row)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}); delete it and run the training stage again") from None
    return points


def history_points(step: int, values: Mapping[str, Any]) -> list[Point]:
    """What training reports at one step, as points; empty cells are left out."""
    return [Point(f"train/{name}", float(value), step) for name, value in values.items() if value not in ("", None)]


def _final_points(metrics: list[dict], seed: int) -> list[Point]:
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


def _report_record(results: Path, params: Any, tags: dict[str, str]) -> Record:
    pages = [results / "REPORT.md", results / "report.html"]
    files = pages + [path for folder in ("tables", "figures") for path in sorted((results / folder).glob("*"))]
    key = f"{params.scale}/{params.protocol}/report"
    tags = {**tags, "scale": params.scale, "protocol": params.protocol, KEY: key}
    return Record(
        key,
        "report",
        points=tuple(_cell_points(results / "tables" / "cells.csv")),
        tags=tags,
        artifacts={path.relative_to(results).as_posix(): path for path in files if path.is_file()},
        tables=tuple(sorted((results / "tables").glob("*.csv"))),
    )


def _cell_points(path: Path) -> list[Point]:
    """Every measured cell as ``<table>/<row>/<column>``."""
    if not path.is_file():
        return []
    with open(path, encoding="utf-8", newline="") as file:
        cells = [row for row in csv.DictReader(file) if row["provenance"] == "measured" and row["value"]]
    return [Point("/".join(metric_name(row[key]) for key in CELL), float(row["value"]), 0) for row in cells]


def metric_name(text: str) -> str:
    """``text`` with only characters that MLflow allows in one part of a name: ``refcoco+`` -> ``refcocoplus``."""
    return re.sub(r"[^\w\-. ]", "-", text.replace("+", "plus")).strip()


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested mappings as dotted keys; lists are joined, values cut at 500 characters."""
    flat: dict[str, str] = {}
    for key, item in value.items():
        flat |= flatten(item, f"{prefix}{key}.") if isinstance(item, Mapping) else {f"{prefix}{key}": _text(item)}
    return flat


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        text = ", ".join(map(_text, value)) or "none"
    else:
        text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 1] + "…"
