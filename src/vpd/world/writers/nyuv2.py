"""Draw an NYUv2-like dataset."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy import ndarray

from vpd.datasets.images import MILLIMETRES, save_jpeg, save_png
from vpd.datasets.layouts.nyuv2 import FOLDERS
from vpd.utils.files import write_text
from vpd.world.dice import Dice
from vpd.world.render import FOCAL
from vpd.world.rooms import KINDS
from vpd.world.scene import AROUND, draw_scene
from vpd.world.writers.jobs import Job

FRAMES = 5
"""Frames in one training folder."""


def _kind(job: Job) -> str:
    """Kind of room; frames of one training folder share it."""
    first = job.index % FRAMES if job.split == "train" else 0
    return Dice(job.seed - first, AROUND).pick(sorted(KINDS))


def _stem(job: Job) -> tuple[str, str]:
    """Folder and number of a frame."""
    if job.split == "train":
        return f"{_kind(job)}_{job.index // FRAMES + 1:04d}", f"{job.index % FRAMES + 1:05d}"
    return _kind(job), f"{job.index + 1:05d}"


def draw_one(job: Job) -> str:
    """Write image and depth; its line in the list file."""
    picture = draw_scene(job.seed, *job.size, kind=_kind(job)).picture
    millimetres = np.floor(picture.depth * MILLIMETRES + 0.5).astype(np.uint16)
    if job.split == "train":
        _puncture(millimetres, Dice(job.seed, AROUND))
    folder, number = _stem(job)
    place = job.root / FOLDERS[job.split] / folder
    save_jpeg(place / f"rgb_{number}.jpg", picture.image)
    save_png(place / f"sync_depth_{number}.png", millimetres)
    lead = "/" if job.split == "train" else ""
    focal = FOCAL * max(job.size)
    return f"{lead}{folder}/rgb_{number}.jpg {lead}{folder}/sync_depth_{number}.png {focal:.4f}"


def _puncture(millimetres: ndarray, dice: Dice) -> None:
    """Make a few pixels invalid, as the sensor does: the border, and spots."""
    millimetres[:1], millimetres[-1:], millimetres[:, :1] = 0, 0, 0
    height, width = millimetres.shape
    for _ in range(dice.count(2, 5)):
        y, x = dice.count(0, height - 3), dice.count(0, width - 3)
        millimetres[y : y + dice.count(1, 3), x : x + dice.count(1, 4)] = 0


def finish(root: Path, jobs: list[Job], facts: list[str]) -> None:
    """Write the list files."""
    for split, folder in FOLDERS.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        lines = [fact for job, fact in zip(jobs, facts, strict=True) if job.split == split]
        write_text(root / f"{split}_list.txt", "".join(line + "\n" for line in lines))
