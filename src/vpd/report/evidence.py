"""The recorded evidence: values of earlier runs in git, compared with this run's, and joined with them for the claims."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from vpd.report.cells import csv_text, number, read_csv
from vpd.utils.errors import UserError, pick

KEY = ["experiment", "milestone", "metric", "seed"]
COLUMNS = (*KEY, "value")
COMPARED = (*KEY, "recorded", "here", "outcome")
EQUAL, DIFFERENT, RECORDED, NEW = "equal", "different", "only recorded", "only here"
SHOWN = 3  # differences of an experiment that the report spells out


def values_csv(frame: pd.DataFrame) -> str:
    """Format this run's own measurements as a file of evidence: a copy of it records them."""
    own = frame[frame["provenance"] == "measured"].sort_values(KEY)
    rows = own[list(COLUMNS)].itertuples(index=False)
    return csv_text(COLUMNS, ((*key, number(value)) for *key, value in rows))


def read_evidence(path: Path, experiments: Iterable[str]) -> pd.DataFrame | None:
    """Read recorded values.

    Args:
        path: CSV file with ``COLUMNS``, one line per value.
        experiments: all that may occur.

    Returns:
        one row per value, or None without a file.

    Raises:
        UserError: the file is damaged, a value stands twice, or an experiment is unknown.
    """
    if not path.is_file():
        return None
    cure = "copy it from tables/values.csv of the recorded report"
    frame = read_csv(path, COLUMNS, cure)[list(COLUMNS)]
    try:
        frame = frame.astype({"seed": int, "value": float})
    except ValueError as error:
        raise UserError(f"{path} has a seed or value that is no number ({error}); {cure}") from None
    if not np.isfinite(frame["value"]).all():
        raise UserError(f"{path} has an empty or infinite value; {cure}")
    if (twice := frame.duplicated(KEY)).any():
        first = frame[twice].iloc[0]
        raise UserError(f"{path} has two values of {first.experiment} for {_name(first)}; {cure}")
    known = dict.fromkeys(experiments)
    for name in frame["experiment"].unique():
        pick(name, known, "experiment", str(path))
    return frame


def compared(frame: pd.DataFrame, evidence: pd.DataFrame) -> pd.DataFrame:
    """Hold this run's values against the recorded ones, to the last digit that is written: rows of ``COMPARED``."""
    own = frame[frame["provenance"] == "measured"]
    both = evidence.merge(own[list(COLUMNS)], how="outer", on=KEY, suffixes=("_recorded", "_here"))
    both = both.rename(columns={"value_recorded": "recorded", "value_here": "here"}).sort_values(KEY, ignore_index=True)
    both["outcome"] = [_outcome(*pair) for pair in zip(both["recorded"], both["here"], strict=True)]
    return both[list(COMPARED)]


def _outcome(recorded: float, here: float) -> str:
    if pd.isna(recorded):
        return NEW
    if pd.isna(here):
        return RECORDED
    return EQUAL if number(recorded) == number(here) else DIFFERENT


def joined(frame: pd.DataFrame, comparison: pd.DataFrame) -> pd.DataFrame:
    """Join recorded seeds and this run's; where they disagree, the recorded value stays."""
    values = comparison["recorded"].fillna(comparison["here"])
    seeds = comparison[KEY].assign(step=0, value=values, provenance="measured")
    return pd.concat([seeds, frame[frame["provenance"] != "measured"]], ignore_index=True)[frame.columns]


def evidence_csv(comparison: pd.DataFrame) -> str:
    """Format the comparison, one line per value."""
    rows = comparison.astype(object).where(comparison.notna(), None).itertuples(index=False)
    return csv_text(COMPARED, ((*key, number(old), number(new), outcome) for *key, old, new, outcome in rows))


def evidence_lines(comparison: pd.DataFrame) -> Iterator[tuple[str, ...]]:
    """Count the outcomes of each experiment and of all, and spell out the first differences."""
    for name, lines in [*comparison.groupby("experiment"), ("all", comparison)]:
        counts = lines["outcome"].value_counts()
        numbers = [str(counts.get(outcome, 0)) for outcome in (EQUAL, DIFFERENT, RECORDED, NEW)]
        differing = lines[lines["outcome"] == DIFFERENT]
        texts = [f"{_name(row)}: {number(row.recorded)} and {number(row.here)}" for _, row in differing.iterrows()]
        more = [f"and {len(texts) - SHOWN} more"] if len(texts) > SHOWN else []
        yield str(name), *numbers, "; ".join([*texts[:SHOWN], *more]) if name != "all" else ""


def _name(row: pd.Series) -> str:
    return f"{row.milestone}.{row.metric}, seed {row.seed}"
