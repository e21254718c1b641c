"""What a finished training run leaves behind, written and checked without torch."""

from __future__ import annotations

import csv
import resource
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from vpd.config.schema import Spec
from vpd.utils.digests import sha256
from vpd.utils.errors import UserError
from vpd.utils.files import atomic_folder, read_json, write_json
from vpd.utils.fingerprint import code_digest

COLUMNS = ("step", "epoch", "loss", "lr", "lr_unet")
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Timing:
    """Cost of a run over all its attempts; ``steps`` is 0 when it was already finished and nothing was done."""

    seconds: float
    steps: int
    seconds_per_step: float
    peak_rss_mb: float


def timing(seconds: float, steps: int) -> Timing:
    """Timing of ``steps`` steps, with this process's peak memory."""
    unit = 2**20 if sys.platform == "darwin" else 2**10  # ru_maxrss is in bytes there, in KiB on Linux
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    return Timing(round(seconds, 3), steps, round(seconds / max(1, steps), 6), round(peak, 1))


def run_keys(spec: Spec, seed: int, data: Path, checkpoint: Path) -> dict[str, str | int]:
    """Everything outside the code that decides the run's weights: spec, seed and both input manifests, as digests."""
    return {
        "spec": spec.training_digest(),
        "seed": seed,
        "data": _manifest_digest(data),
        "checkpoint": _manifest_digest(checkpoint),
    }


def with_code(keys: dict[str, str | int]) -> dict[str, str | int]:
    """``keys`` and the digest of the code that trains."""
    return {**keys, "code": code_digest("datasets", "models", "training")}


def is_finished(out: Path, keys: dict[str, str | int]) -> bool:
    """Whether ``out`` is a complete run with these keys whose files are unchanged."""
    if not (out / MANIFEST).exists():
        return False
    manifest = read_json(out / MANIFEST)
    if {name: manifest.get(name) for name in keys} != keys:
        return False
    files = manifest.get("files", {})
    return bool(files) and all(
        (out / name).is_file() and sha256(out / name) == digest for name, digest in files.items()
    )


def publish(
    out: Path, weights: dict[str, Path], milestones: dict[str, int], rows: list[dict], keys: dict[str, str | int]
) -> None:
    """Put weights, history and, last, the manifest into ``out`` as one folder that is complete or absent."""
    with atomic_folder(out) as folder:
        for name in weights:
            shutil.copyfile(weights[name], folder / f"{name}.safetensors")
        _write_history(folder / "history.csv", rows)
        files = {path.name: sha256(path) for path in sorted(folder.iterdir())}
        steps = {"steps": max(milestones.values()), "milestones": milestones}
        write_json(folder / MANIFEST, {**keys, **steps, "files": files})


def _write_history(path: Path, rows: list[dict]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: f"{row[name]:.8g}" for name in COLUMNS} for row in rows)


def _manifest_digest(folder: Path) -> str:
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(f"{path} does not exist; run the stage that makes {folder} first")
    return sha256(path)
