"""Pictures of a pre-training: loss curves and samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from vpd.pretraining.outputs import Row
from vpd.utils.files import atomic_path


def plot_losses(rows: list[Row], milestones: dict[str, int], path: Path) -> None:
    """Loss against steps, one panel per phase; the milestones are marked in the last."""
    phases = list(dict.fromkeys(phase for phase, _, _ in rows))
    figure = Figure(figsize=(4 * len(phases), 3), layout="constrained")
    panels = figure.subplots(1, len(phases), squeeze=False)[0]
    for panel, phase in zip(panels, phases, strict=True):
        steps, losses = zip(*((step, loss) for name, step, loss in rows if name == phase), strict=True)
        panel.plot(steps, losses, linewidth=1, marker=".", markersize=3)
        panel.set(title=phase, xlabel="step", ylabel="loss")
        panel.grid(alpha=0.3)
    for name, step in milestones.items():
        panels[-1].axvline(step, color="0.5", linestyle=":", linewidth=1)
        panels[-1].annotate(name, (step, 1), xycoords=("data", "axes fraction"), rotation=90, ha="right", va="top")
    _save(figure, path)


def plot_grid(rows: dict[str, list[np.ndarray]], columns: list[str], path: Path) -> None:
    """Pictures (H,W,3) uint8 in labelled rows, each with one picture per column."""
    figure = Figure(figsize=(1.5 + 1.5 * len(columns), 1.6 * len(rows)), layout="constrained")
    panels = figure.subplots(len(rows), len(columns), squeeze=False)
    for line, (label, pictures) in zip(panels, rows.items(), strict=True):
        for panel, picture in zip(line, pictures, strict=True):
            panel.imshow(picture, interpolation="nearest")
            panel.set(xticks=[], yticks=[])
        line[0].set_ylabel(label, rotation=0, ha="right", va="center", wrap=True, fontsize=7)
    for panel, column in zip(panels[0], columns, strict=True):
        panel.set_title(column)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120, metadata={"Software": None})
