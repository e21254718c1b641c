"""Runs on disk: what a finished training leaves behind. Nothing here imports torch, so that planning stays quick."""

import csv
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vpd.config.schema import Spec
from vpd.utils.digests import digest, sha256
from vpd.utils.files import atomic_folder, atomic_path, write_json
from vpd.utils.fingerprint import (
    MANIFEST,
    Fingerprint,
    fingerprint,
    read_fingerprint,
    read_manifest,
    write_manifest,
)

COLUMNS = ("step", "epoch", "loss", "lr", "lr_unet")
"""Of ``history.csv``."""
CODE = ("datasets", "models", "training")  # packages that decide the weights of a run
TIMING = "timing.json"


def seed_folder(runs: Path, seed: int) -> Path:
    """Where the run of one seed lies within its experiment's runs."""
    return runs / f"seed{seed}"


def run_fingerprint(spec: Spec, seed: int, data: Path, checkpoint: Path) -> Fingerprint:
    """Everything that decides the weights of one run; UserError if an input has no manifest yet."""
    return fingerprint(run_settings(spec, seed), CODE, {"data": data, "checkpoint": checkpoint})


def run_settings(spec: Spec, seed: int) -> dict[str, Any]:
    """Settings of one run's fingerprint."""
    return {"spec": spec.model_dump(mode="json", exclude={"seeds", "evaluation"}), "seed": seed}


def has_settings(run: Path, spec: Spec) -> bool:
    """Whether a run records that it was trained with the settings of ``spec``, for one of its seeds."""
    recorded = read_fingerprint(run).get("settings")
    return recorded in [digest(run_settings(spec, seed)) for seed in spec.seeds]


def publish(
    out: Path,
    weights: Mapping[str, Path],
    milestones: Mapping[str, int],
    rows: Iterable[Mapping[str, float]],
    made_from: Fingerprint,
    timing: Mapping[str, Any] | None = None,
) -> None:
    """Write a finished run to ``out`` as one folder that is complete or absent.

    ``weights`` are files by milestone, ``milestones`` steps by milestone; ``timing`` is no part of the manifest, since
    equal runs differ in it.
    """
    with atomic_folder(out) as folder:
        for name in milestones:
            shutil.copyfile(weights[name], folder / f"{name}.safetensors")
        _write_history(folder / "history.csv", rows)
        files = {path.name: sha256(path) for path in sorted(folder.iterdir())}
        if timing is not None:
            write_json(folder / TIMING, dict(timing))
        facts = {"steps": max(milestones.values()), "milestones": dict(milestones)}
        write_manifest(folder, made_from, facts, files)


def _write_history(path: Path, rows: Iterable[Mapping[str, float]]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: f"{row[name]:.8g}" for name in COLUMNS} for row in rows)


# ------------------------------------------------------------------------------------------------------------- all seeds
def gather(runs: Path, seeds: Sequence[int], history: Path) -> int:
    """Write the manifest of all seeds' runs and their histories in one CSV; return the steps of one seed."""
    manifests = {f"seed{seed}": read_manifest(seed_folder(runs, seed), "steps") for seed in seeds}
    files = {
        f"{name}/{file}": hash_ for name, manifest in manifests.items() for file, hash_ in manifest["files"].items()
    }
    first = manifests[f"seed{seeds[0]}"]
    gather_history(runs, seeds, history)
    facts = {"schema": first["schema"], "steps": first["steps"], "history": sha256(history)}
    write_json(runs / MANIFEST, {**facts, "files": files})
    return first["steps"]


def gather_history(runs: Path, seeds: Sequence[int], out: Path) -> None:
    """Join the seeds' histories into one CSV whose first column is the seed."""
    with atomic_path(out) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        for position, seed in enumerate(seeds):
            with open(seed_folder(runs, seed) / "history.csv", newline="") as history:
                header, *rows = csv.reader(history)
            if position == 0:
                writer.writerow(["seed", *header])
            writer.writerows([seed, *row] for row in rows)


def weights_metadata(seed: int, milestone: str, step: int) -> dict[str, str]:
    """What a weights file says about itself; the manifest has the rest."""
    # One entry only: safetensors writes several in random order, and the files of equal runs would differ.
    return {"vpd": json.dumps({"milestone": milestone, "seed": seed, "step": step}, sort_keys=True)}
