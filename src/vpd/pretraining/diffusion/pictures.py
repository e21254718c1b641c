"""Pictures of what the milestones draw: samples.png compares them, drawn.png shows the last one's images large."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor

from vpd.config.schema import PretrainingSpec
from vpd.pretraining.captions import Captions
from vpd.pretraining.diffusion.autoencoder import as_bytes
from vpd.pretraining.diffusion.drawing import draw
from vpd.utils.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROWS = 3  # of drawn.png: images of each prompt
ENLARGED, DOTS, LETTERS = 4, 100, 34  # times an image's side; dots per inch; letters in a line of a title
NO_SOFTWARE = {"Software": None}  # matplotlib's version would change the bytes


def plot_samples(spec: PretrainingSpec, captions: Captions, vae: AutoencoderKL, folder: Path) -> None:
    """Write samples.png next to the milestones in ``folder``: a column for each, a row for each sample prompt.

    Below are real images and their reconstructions by the autoencoder.
    """
    from matplotlib.figure import Figure

    rows, columns = _sample_rows(spec, captions, vae, folder), list(spec.milestones)
    figure = Figure(figsize=(1.5 + 1.5 * len(columns), 1.6 * len(rows)), layout="constrained")
    panels = figure.subplots(len(rows), len(columns), squeeze=False)
    for line, (label, images) in zip(panels, rows.items(), strict=True):
        for panel, image in zip(line, images, strict=True):
            panel.imshow(image, interpolation="nearest")
            panel.set(xticks=[], yticks=[])
        line[0].set_ylabel(label, rotation=0, ha="right", va="center", wrap=True, fontsize=7)
    for panel, column in zip(panels[0], columns, strict=True):
        panel.set_title(column)
    _save(figure, folder / "samples.png", 120)


def _sample_rows(
    spec: PretrainingSpec, captions: Captions, vae: AutoencoderKL, folder: Path
) -> Mapping[str, list[np.ndarray]]:
    """Images (H,W,3) uint8 by row, one per milestone each."""
    device, prompts, rows = torch.device("cpu"), spec.sample_prompts, dict[str, list[np.ndarray]]()
    if prompts:
        columns = [draw(folder / name, prompts, spec, captions.size, device) for name in spec.milestones]
        rows = {prompt: _arrays(images) for prompt, images in zip(prompts, torch.stack(columns, dim=1), strict=True)}
    images = captions.pixels(torch.arange(len(spec.milestones)) % len(captions.images))
    with torch.no_grad():
        decoded = vae.decode(vae.encode(images).latent_dist.mean).sample
    return rows | {"image": _arrays(as_bytes(images)), "reconstruction": _arrays(as_bytes(decoded))}


def plot_drawn(spec: PretrainingSpec, size: tuple[int, int], folder: Path) -> None:
    """Write drawn.png next to the milestones in ``folder``: a column of the last one's images for each sample prompt."""
    from matplotlib.figure import Figure

    prompts, last = spec.sample_prompts, max(spec.milestones, key=lambda name: spec.milestones[name])
    images = _arrays(draw(folder / last, prompts * ROWS, spec, size, torch.device("cpu")))
    height, width = (ENLARGED * side / DOTS * count for side, count in zip(size, (ROWS, len(prompts)), strict=True))
    figure = Figure(figsize=(width * 1.05, height * 1.05 + 0.4), layout="constrained")
    panels = figure.subplots(ROWS, len(prompts), squeeze=False)
    for panel, image in zip(panels.flat, images, strict=True):
        panel.imshow(_enlarged(image))
        panel.axis("off")
    for panel, prompt in zip(panels[0], prompts, strict=True):
        panel.set_title("\n".join(textwrap.wrap(prompt, LETTERS)), fontsize=10, parse_math=False)
    _save(figure, folder / "drawn.png", DOTS)


def _enlarged(image: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    return np.asarray(Image.fromarray(image).resize((ENLARGED * width, ENLARGED * height), Image.Resampling.BICUBIC))


def _arrays(images: Tensor) -> list[np.ndarray]:
    """Images (N,3,H,W) as (H,W,3) each."""
    return list(images.permute(0, 2, 3, 1).numpy())


def _save(figure: Figure, path: Path, dots: int) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=dots, metadata=NO_SOFTWARE)
