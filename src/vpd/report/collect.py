"""Reads what the other stages measured: metrics, training histories, pre-training losses and timings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import pandas as pd
from pydantic import BaseModel, FiniteFloat, ValidationError

from vpd.config.tables import RELEASED
from vpd.utils.errors import UserError
from vpd.utils.files import read_json

COLUMNS = ["experiment", "seed", "milestone", "step", "metric", "value", "provenance"]
TIMINGS = ["stage", "name", "seconds", "peak_mb"]


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
    """Read the metrics of ``experiments`` into a tidy frame, one line per seed, milestone and metric.

    Args:
        metrics: folder with one JSON file per experiment; files of other experiments are ignored.
        experiments: those of the matrix; one whose file is missing has no lines.

    Raises:
        UserError: a file is damaged, or all are missing.
    """
    names = list(experiments)
    frame = _frame(metrics, names)
    if frame.empty:
        raise UserError(f"{metrics} has metrics of none of the {len(names)} experiments; run the evaluate stage first")
    return frame


def collect_released(released: Path, experiments: Iterable[str]) -> pd.DataFrame:
    """Read the metrics of released weights; the experiments' names end in ``@released``."""
    frame = _frame(released / "metrics", experiments)
    return frame.assign(experiment=frame["experiment"] + RELEASED)


def _frame(folder: Path, names: Iterable[str]) -> pd.DataFrame:
    paths = [path for name in names if (path := folder / f"{name}.json").is_file()]
    return pd.DataFrame([line for path in paths for line in _lines(_read_metrics(path))], columns=COLUMNS)


def _lines(content: Metrics) -> Iterator[tuple]:
    for result in sorted(content.results, key=lambda result: (result.seed, result.step, result.milestone)):
        for name, value in sorted(result.metrics.items()):
            run = (content.experiment, result.seed, result.milestone, result.step)
            yield (*run, name, value, content.provenance)


def _read_metrics(path: Path) -> Metrics:
    cure = "delete it and evaluate again"
    try:
        content = Metrics.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise UserError(f"{path} is not a metrics file ({key}: {first['msg'].lower()}); {cure}") from None
    if content.experiment != path.stem:
        raise UserError(f"{path} holds the metrics of experiment '{content.experiment}'; {cure}")
    runs = [(result.seed, result.milestone) for result in content.results]
    if len(set(runs)) != len(runs):
        raise UserError(f"{path} holds a seed and milestone twice; {cure}")
    return content


def read_curves(path: Path, columns: Iterable[str]) -> pd.DataFrame | None:
    """Read a CSV of training or pre-training losses; None if there is none, UserError if it lacks one of ``columns``."""
    return read_csv(path, columns, "run the stage that makes it again") if path.is_file() else None


def read_csv(path: Path, columns: Iterable[str], cure: str, dtype: dict[str, type] | None = None) -> pd.DataFrame:
    """Read a CSV file; UserError with ``cure`` if it is damaged or lacks one of ``columns``."""
    try:
        frame = pd.read_csv(path, dtype=dtype)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a CSV file ({error}); {cure}") from None
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        raise UserError(f"{path} has no column '{missing[0]}' (columns: {', '.join(frame.columns)}); {cure}")
    return frame


def read_timings(folder: Path) -> pd.DataFrame:
    """Read the wall time of every job: columns stage, name, seconds, peak_mb; empty if nothing was timed."""
    lines = []
    for path in sorted(folder.rglob("*.json")):
        job = read_json(path)
        if not {"stage", "seconds"} <= job.keys():
            raise UserError(f"{path} has no stage or no seconds; delete it and run the stage that makes it again")
        lines.append((job["stage"], job.get("name", path.stem), float(job["seconds"]), job.get("peak_mb")))
    return pd.DataFrame(lines, columns=TIMINGS)
