"""What every pre-training writes beside its networks: the loss history, a figure of images, and the manifest."""

from __future__ import annotations

import csv
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from vpd.utils.files import atomic_path
from vpd.utils.fingerprint import Fingerprint, write_manifest

HISTORY_EVERY = 10  # steps that one line of history.csv averages


def averaged(losses: list[float]) -> list[tuple[int, float]]:
    """(step, mean loss) of every HISTORY_EVERY steps, at the last of them; the final chunk may be shorter."""
    chunks = [losses[start : start + HISTORY_EVERY] for start in range(0, len(losses), HISTORY_EVERY)]
    return [(HISTORY_EVERY * index + len(chunk), sum(chunk) / len(chunk)) for index, chunk in enumerate(chunks)]


def complete(
    folder: Path, made_from: Fingerprint, losses: Mapping[str, list[float]], facts: Mapping[str, object]
) -> None:
    """Complete ``folder``, which holds the networks: write history.csv, fingerprint.json and, last, manifest.json.

    ``losses`` are those of every step, by phase; ``facts`` is what the manifest says about the content.
    """
    with atomic_path(folder / "history.csv") as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("phase", "step", "loss"))
        for phase, values in losses.items():
            writer.writerows((phase, step, f"{loss:.6f}") for step, loss in averaged(values))
    write_manifest(folder, made_from, facts)


def plot_images(rows: Mapping[str, list[np.ndarray]], columns: list[str], path: Path) -> None:
    """Write a figure of images (H,W,3) uint8 in labelled rows, each with one image per column."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.5 + 1.5 * len(columns), 1.6 * len(rows)), layout="constrained")
    panels = figure.subplots(len(rows), len(columns), squeeze=False)
    for line, (label, images) in zip(panels, rows.items(), strict=True):
        for panel, image in zip(line, images, strict=True):
            panel.imshow(image, interpolation="nearest")
            panel.set(xticks=[], yticks=[])
        line[0].set_ylabel(label, rotation=0, ha="right", va="center", wrap=True, fontsize=7)
    for panel, column in zip(panels[0], columns, strict=True):
        panel.set_title(column)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120, metadata={"Software": None})  # matplotlib's version would change the bytes


def turn_off_library_bars() -> None:
    """Turn off the progress bars of diffusers and transformers: standard error is for the stage's own progress."""
    for name in {"diffusers", "transformers"} & sys.modules.keys():
        sys.modules[name].utils.logging.disable_progress_bar()
