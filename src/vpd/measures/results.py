"""Results of the measures on disk. Nothing here imports torch, so that planning stays quick."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

from vpd.config.paths import WEIGHTS
from vpd.config.schema import MeasuresSpec
from vpd.pretraining.workdir import SHARED
from vpd.utils.files import atomic_folder, atomic_path
from vpd.utils.fingerprint import Fingerprint, fingerprint, write_manifest

CODE = (
    *("measures", "world"),
    *SHARED,
    *(f"pretraining/diffusion/{module}" for module in ("autoencoder", "denoiser")),
    *(f"models/{module}" for module in ("attention", "base", "diffusion", "prompts", "text")),
)
TABLE, PICTURE = "measures.csv", "drawn.png"  # in the folder of the results
REAL, DECODED, CHANCE = "real images", "reconstructions of real images", "real images of other prompts"
"""What checkpoints are compared with: the most that can be reached, the most that the autoencoder lets through, and the least."""
Measures = dict[str, dict[str, float]]  # of each checkpoint, and of REAL, DECODED and CHANCE


def measures_fingerprint(spec: MeasuresSpec | None, checkpoints: Mapping[str, Path]) -> Fingerprint:
    """Everything that decides the measures; UserError if a checkpoint has no manifest yet. Without a spec there are none."""
    if spec is None:
        return fingerprint(None, ())
    return fingerprint(spec.model_dump(mode="json"), CODE, checkpoints)


def measure_nothing(out: Path) -> None:
    """Complete ``out`` at a scale that asks for no measures."""
    with atomic_folder(out) as folder:
        write_manifest(folder, measures_fingerprint(None, {}), {})


def measures_to_show(own: Path, shipped: str | None) -> Path:
    """Return the folder of a scale's ``own`` measures, or of those that came with the weights of the scale ``shipped``."""
    return WEIGHTS / shipped if shipped and not (own / TABLE).is_file() else own


def write_measures(measures: Measures, path: Path) -> None:
    """Write one line per checkpoint and one column per measure."""
    columns = dict.fromkeys(key for values in measures.values() for key in values)
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["images", *columns], lineterminator="\n")
        writer.writeheader()
        writer.writerows({"images": name, **values} for name, values in measures.items())
