"""The picture of what the checkpoints draw: a column for each, a row for each sample prompt."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from vpd.config.schema import MeasuresSpec
from vpd.measures.drawing import draw
from vpd.utils.files import atomic_path

LETTERS = 24  # in a line of a label
NO_SOFTWARE = {"Software": None}  # matplotlib's version would change the bytes


def plot_drawn(
    spec: MeasuresSpec, checkpoints: Mapping[str, Path], below: Mapping[str, Tensor], device: torch.device, path: Path
) -> None:
    """Draw the sample prompts with every checkpoint and write them to ``path``, with images (N,3,H,W) uint8 in rows ``below``."""
    from matplotlib.figure import Figure

    prompts = spec.sample_prompts
    columns = [draw(folder, prompts, spec, device, f"samples of {name}") for name, folder in checkpoints.items()]
    rows = {**dict(zip(prompts, torch.stack(columns, dim=1), strict=True)), **below}
    figure = Figure(figsize=(1.5 + 1.5 * len(columns), 1.6 * len(rows)), layout="constrained")
    panels = figure.subplots(len(rows), len(columns), squeeze=False)
    for line, (label, images) in zip(panels, rows.items(), strict=True):
        for panel, image in zip(line, images.permute(0, 2, 3, 1).numpy(), strict=False):
            panel.imshow(image, interpolation="nearest")
        for panel in line:
            panel.set(xticks=[], yticks=[])
        text = "\n".join(textwrap.wrap(label, LETTERS))
        line[0].set_ylabel(text, rotation=0, ha="right", va="center", fontsize=8, parse_math=False)
    for panel, column in zip(panels[0], checkpoints, strict=True):
        panel.set_title(column)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120, metadata=NO_SOFTWARE)
