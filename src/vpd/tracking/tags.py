"""Tags of MLflow runs: identity, where the paper shows the run, and what it was trained on."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vpd.config.schema import Spec
from vpd.utils.digests import sha256
from vpd.utils.files import read_json

KEY, HASH, SPEC = "vpd.key", "vpd.hash", "vpd.config.schema"
UNKNOWN = "unknown"
FROM_SPEC = ("scale", "protocol", "schedule", "task", "dataset", "method", "checkpoint")


def run_key(scale: str, protocol: str, experiment: str, seed: int) -> str:
    """Identity of a run over time, whatever its results are."""
    return f"{scale}/{protocol}/{experiment}/seed{seed}"


def run_name(experiment: str, seed: int) -> str:
    """Name of a run in MLflow's lists."""
    return f"{experiment}/seed{seed}"


def spec_tags(spec: Spec, seed: int) -> dict[str, str]:
    """Tags that follow from the spec and the seed."""
    tags = {name: str(getattr(spec, name)) for name in FROM_SPEC}
    tags |= {"experiment": spec.name, "seed": str(seed), "backbone": spec.checkpoint, SPEC: spec.digest()}
    tags[KEY] = run_key(spec.scale, spec.protocol, spec.name, seed)
    return tags


def places(params: Any, experiment: str) -> list[tuple[str, str]]:
    """Tables with row labels, and trend figures with points, that show ``experiment``, in the order of params.yaml."""
    found = [
        (table, row.label)
        for table, layout in params.tables.items()
        for row in layout.rows
        if experiment in row_experiments(row)
    ]
    trends = ((name, figure.points) for name, figure in getattr(params, "figures", {}).items())
    return found + [(name, label) for name, points in trends for label, used in points.items() if used == experiment]


def row_experiments(row: Any) -> list[str]:
    """Experiments whose runs one table row shows: one for all columns, or one per column; none for released weights."""
    if getattr(row, "released", False):
        return []
    several = getattr(row, "experiments", None)
    names = several.values() if several else [getattr(row, "experiment", None)]
    return [name for name in dict.fromkeys(names) if name]


def place_tags(params: Any, experiment: str) -> dict[str, str]:
    """Where the run is shown: ``table``, ``tables`` and ``row``, and one tag per table with the labels of its rows there.

    ``table`` is the first of ``tables`` alone, so that "Group by" puts every run into one group.
    """
    labels: dict[str, list[str]] = {}
    for table, label in places(params, experiment):
        labels.setdefault(table, []).append(label)
    if not labels:
        return {}
    tags = {table: "; ".join(names) for table, names in labels.items()}
    rows = "; ".join(f"{table}: {text}" for table, text in tags.items())
    return {**tags, "table": next(iter(tags)), "tables": ", ".join(tags), "row": rows}


def manifest_digests(data: Path, checkpoints: Path) -> dict[str, str]:
    """Digest of every dataset's and checkpoint's manifest, as ``data/<name>`` and ``checkpoints/<id>``."""
    found = {}
    for kind, folder in (("data", Path(data)), ("checkpoints", Path(checkpoints))):
        for path in sorted(folder.glob("*/manifest.json")):
            found[f"{kind}/{path.parent.name}"] = sha256(path)
    return found


def digest_tags(results: Path, spec: Spec, digests: Mapping[str, str]) -> dict[str, str]:
    """What the run was trained on, by its own manifest if that is here, else by ``digests``."""
    path = results / "runs" / spec.name / "manifest.json"
    own = read_json(path) if path.is_file() else {}
    own = own if own.get("spec") == spec.training_digest() else {}
    return {
        "data_digest": own.get("data") or digests.get(f"data/{spec.dataset}", UNKNOWN),
        "checkpoint_digest": own.get("checkpoint") or digests.get(f"checkpoints/{spec.checkpoint}", UNKNOWN),
    }


def git_commit(folder: Path) -> str:
    """Commit checked out around ``folder``, or ``unknown`` outside a clone."""
    try:
        answer = subprocess.run(["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True)
    except OSError:
        return UNKNOWN
    return answer.stdout.strip() if answer.returncode == 0 else UNKNOWN
