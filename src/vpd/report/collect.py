"""Reads what the other stages measured: metrics, training histories, pre-training losses and timings."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import pandas as pd
from pydantic import BaseModel, FiniteFloat, ValidationError

from vpd.config.table_checks import RELEASED
from vpd.utils.errors import UserError
from vpd.utils.files import read_json

COLUMNS = ["experiment", "seed", "milestone", "step", "metric", "value", "provenance"]


class Result(BaseModel):
    """Metrics of one seed at one milestone."""

    seed: int
    milestone: str
    step: int
    metrics: dict[str, FiniteFloat]


class Metrics(BaseModel):
    """A metrics file, as far as the report needs it."""

    experiment: str
    provenance: Literal["measured", "released-weights"] = "measured"
    """``released-weights``: this project evaluated weights that the authors trained."""
    results: list[Result]


def collect(metrics: Path, experiments: Iterable[str]) -> pd.DataFrame:
    """Tidy frame of the metrics of exactly ``experiments``, one line per seed, milestone and metric.

    An experiment whose file is missing has no lines; files of other experiments are ignored.
    Raises UserError if a file is damaged or all are missing.
    """
    names = list(experiments)
    paths = [path for name in names if (path := metrics / f"{name}.json").is_file()]
    if not paths:
        raise UserError(f"{metrics} has metrics of none of the {len(names)} experiments; run the evaluate stage first")
    lines = [line for path in paths for line in _lines(path)]
    return pd.DataFrame(lines, columns=COLUMNS)


def collect_released(released: Path, experiments: Iterable[str]) -> pd.DataFrame:
    """Tidy frame like that of ``collect``, of released weights that were measured; names have the ending for them."""
    paths = [path for name in experiments if (path := released / "metrics" / f"{name}.json").is_file()]
    frame = pd.DataFrame([line for path in paths for line in _lines(path)], columns=COLUMNS)
    return frame.assign(experiment=frame["experiment"] + RELEASED)


def _lines(path: Path) -> list[tuple]:
    content = _read_metrics(path)
    lines = []
    for result in sorted(content.results, key=lambda result: (result.seed, result.step, result.milestone)):
        shared = (content.experiment, result.seed, result.milestone, result.step)
        lines += [(*shared, name, value, content.provenance) for name, value in sorted(result.metrics.items())]
    return lines


def _read_metrics(path: Path) -> Metrics:
    cure = "delete it and evaluate again"
    try:
        content = Metrics.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise UserError(f"{path} is not a metrics file ({place}: {first['msg'].lower()}); {cure}") from None
    if content.experiment != path.stem:
        raise UserError(f"{path} holds the metrics of experiment '{content.experiment}'; {cure}")
    runs = [(result.seed, result.milestone) for result in content.results]
    if len(set(runs)) != len(runs):
        raise UserError(f"{path} holds a seed and milestone twice; {cure}")
    return content


def read_curves(path: Path, columns: Iterable[str]) -> pd.DataFrame | None:
    """A CSV of training or pre-training losses, or None if it does not exist; UserError if it lacks a column."""
    if not path.is_file():
        return None
    try:
        frame = pd.read_csv(path)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a CSV file ({error}); run the stage that makes it again") from None
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        found = ", ".join(frame.columns)
        raise UserError(f"{path} has no column '{missing[0]}' (columns: {found}); run the stage that makes it again")
    return frame


def read_timings(folder: Path) -> pd.DataFrame:
    """Wall time of every job: columns stage, name, seconds, peak_mb; empty if nothing was timed."""
    columns = ["stage", "name", "seconds", "peak_mb"]
    lines = []
    for path in sorted(folder.rglob("*.json")):
        job = read_json(path)
        if not {"stage", "seconds"} <= job.keys():
            raise UserError(f"{path} has no stage or no seconds; delete it and run the stage that makes it again")
        lines.append((job["stage"], job.get("name", path.stem), float(job["seconds"]), job.get("peak_mb")))
    return pd.DataFrame(lines, columns=columns)
