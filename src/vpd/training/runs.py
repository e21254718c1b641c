"""Runs on disk: what a finished training leaves behind. Nothing here imports torch, so that planning stays quick."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vpd.config.schema import Spec
from vpd.utils.digests import sha256
from vpd.utils.files import atomic_folder, atomic_path, write_json
from vpd.utils.fingerprint import MANIFEST, Fingerprint, fingerprint, read_manifest, write_manifest

COLUMNS = ("step", "epoch", "loss", "lr", "lr_unet")
"""Of ``history.csv``."""
CODE = ("datasets", "models", "training")
"""Packages that decide the weights of a run."""
TIMING = "timing.json"


def seed_folder(runs: Path, seed: int) -> Path:
    """Where the run of one seed lies within its experiment's runs."""
    return runs / f"seed{seed}"


def run_fingerprint(spec: Spec, seed: int, data: Path, checkpoint: Path) -> Fingerprint:
    """Everything that decides the weights of one run.

    Args:
        spec: the experiment; its evaluation settings and its list of seeds do not count.
        seed: of this run.
        data: prepared dataset.
        checkpoint: Stable Diffusion checkpoint or backbone.

    Raises:
        UserError: an input has no manifest yet.
    """
    settings = spec.model_dump(mode="json", exclude={"seeds", "evaluation"})
    return fingerprint({"spec": settings, "seed": seed}, CODE, {"data": data, "checkpoint": checkpoint})


def publish(
    out: Path,
    weights: Mapping[str, Path],
    milestones: Mapping[str, int],
    rows: Iterable[Mapping[str, float]],
    made_from: Fingerprint,
    timing: Mapping[str, Any] | None = None,
) -> None:
    """Write a finished run to ``out`` as one folder that is complete or absent.

    Args:
        out: folder of the run.
        weights: milestone -> file with its weights.
        milestones: milestone -> step.
        rows: the history, with ``COLUMNS``.
        made_from: what the run was made from.
        timing: start, end and seconds of the training; no part of the manifest, since equal runs differ in it.
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
    manifests = {f"seed{seed}": read_manifest(seed_folder(runs, seed)) for seed in seeds}
    files = {
        f"{name}/{file}": hash_ for name, manifest in manifests.items() for file, hash_ in manifest["files"].items()
    }
    steps = next(iter(manifests.values()))["steps"]
    write_json(runs / MANIFEST, {"schema": manifests[f"seed{seeds[0]}"]["schema"], "steps": steps, "files": files})
    gather_history(runs, seeds, history)
    return steps


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
