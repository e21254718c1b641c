"""Which scene seed makes which image."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vpd.config.schema import DatasetSpec
from vpd.utils.errors import UserError, pick

LAYOUT_NUMBERS = {"captions": 0, "objects": 0, "ade20k": 1, "nyuv2": 2, "refcoco": 3}
"""``objects`` annotates the very scenes of ``captions``; all others have scenes of their own."""
SPLIT_NUMBERS = {
    "captions": {"train": 0},
    "objects": {"train": 0},
    "ade20k": {"training": 0, "validation": 1},
    "nyuv2": {"train": 0, "test": 1},
    "refcoco": {"train": 0, "val": 1, "testA": 2, "testB": 3},
}
MOST = 1 << 24
"""More images than any split has."""


@dataclass(frozen=True)
class Job:
    """One image to draw."""

    layout: str
    split: str
    index: int
    """Position in the split."""
    number: int
    """Position in the whole dataset."""
    seed: int
    size: tuple[int, int]
    """Width and height."""
    root: Path


def scene_seed(spec: DatasetSpec, split: str, index: int) -> int:
    """A seed of its own for every (dataset seed, layout, split, index), except that objects are captions' scenes."""
    assert 0 <= index < MOST
    group = (spec.seed * 8 + LAYOUT_NUMBERS[spec.layout]) * 8 + SPLIT_NUMBERS[spec.layout][split]
    return group * MOST + index


def list_jobs(spec: DatasetSpec, root: Path) -> list[Job]:
    """All images of a drawn dataset, split by split."""
    if spec.size is None:
        raise UserError(
            f"dataset with layout {spec.layout} and source drawn has no size; give it as size: [width, height]"
        )
    if spec.seed < 0:
        raise UserError(f"dataset seed {spec.seed} is negative; use 0 or more")
    for split in spec.draw:
        pick(split, SPLIT_NUMBERS[spec.layout], "split", f"draw of the {spec.layout} layout")
    jobs: list[Job] = []
    for split in SPLIT_NUMBERS[spec.layout]:
        for index in range(spec.draw.get(split, 0)):
            seed = scene_seed(spec, split, index)
            jobs.append(Job(spec.layout, split, index, len(jobs), seed, spec.size, root))
    return jobs
