"""Draw an ADE20K-like dataset."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy import ndarray

from vpd.datasets.images import save_jpeg, save_png
from vpd.datasets.layouts.ade20k import CLASS_FILE, FOLDER, SPLITS
from vpd.utils.files import write_text
from vpd.world.classes import CLASSES
from vpd.world.scene import draw_scene
from vpd.world.writers.jobs import Job

PREFIXES = {"training": "ADE_train", "validation": "ADE_val"}


def draw_one(job: Job) -> ndarray:
    """Write image and labels, landscape and portrait in turn; the number of pixels of each label."""
    width, height = job.size if job.index % 2 == 0 else job.size[::-1]
    picture = draw_scene(job.seed, width, height).picture
    name = f"{PREFIXES[job.split]}_{job.index + 1:08d}"
    save_jpeg(job.root / FOLDER / "images" / job.split / f"{name}.jpg", picture.image)
    save_png(job.root / FOLDER / "annotations" / job.split / f"{name}.png", picture.labels)
    return np.bincount(picture.labels.ravel(), minlength=len(CLASSES) + 1)


def finish(root: Path, jobs: list[Job], facts: list[ndarray]) -> None:
    """Write objectInfo150.txt in the real file's format."""
    for split in SPLITS:
        for kind in ("images", "annotations"):
            (root / FOLDER / kind / split).mkdir(parents=True, exist_ok=True)
    shown = {
        split: np.array([fact for job, fact in zip(jobs, facts, strict=True) if job.split == split]) for split in SPLITS
    }
    shown = {split: counts.reshape(-1, len(CLASSES) + 1) for split, counts in shown.items()}
    total = max(1, int(shown["training"].sum()))
    lines = ["Idx\tRatio\tTrain\tVal\tStuff\tName"]
    for label, (names, stuff) in enumerate(CLASSES, start=1):
        ratio = int(shown["training"][:, label].sum()) / total
        images = [int((shown[split][:, label] > 0).sum()) for split in SPLITS]
        lines.append(f"{label}\t{ratio:.4f}\t{images[0]}\t{images[1]}\t{int(stuff)}\t{names}")
    write_text(root / CLASS_FILE, "\n".join(lines) + "\n")
