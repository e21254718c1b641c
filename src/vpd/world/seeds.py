"""Which seed makes which scene, and the random streams of one seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from vpd.config.schema import DatasetSpec
from vpd.utils.errors import UserError, pick

Item = TypeVar("Item")
CONTENT, NOISE, LANGUAGE, AROUND = range(4)
"""Streams of one seed: what is in the scene, camera noise, words, and what a dataset does around the scene. Each has its own
generator, so that one more random number for a caption does not change the picture."""

SPLITS = {
    "captions": ("train",), "ade20k": ("training", "validation"), "nyuv2": ("train", "test"),
    "refcoco": ("train", "val", "testA", "testB"), "objects": ("train",),
}  # fmt: skip
"""By format; their positions are part of a scene's seed, but ``objects`` annotates the very scenes of ``captions``."""
MOST = 1 << 24  # more images than any split has
UNSEEN = ("train", "choose", "measure")
"""Parts of the scenes that no dataset shows, for what judges networks that were trained on datasets."""
OF_NO_FORMAT = 7  # in a seed, where a dataset has the number of its format


class Rng:
    """Random numbers that are the same bits on every machine; they are scaled here, by operations that no compiler fuses."""

    def __init__(self, seed: int, stream: int) -> None:
        assert stream in range(4)
        self.bits = np.random.Generator(np.random.PCG64(seed * 4 + stream))

    def between(self, low: float, high: float) -> float:
        """A number in [low, high)."""
        return low + (high - low) * float(self.bits.random())

    def chance(self, probability: float) -> bool:
        """True with ``probability``."""
        return float(self.bits.random()) < probability

    def count(self, low: int, high: int) -> int:
        """An integer from ``low`` to ``high``, both included."""
        return int(self.bits.integers(low, high + 1))

    def pick(self, items: Sequence[Item]) -> Item:
        """One of ``items``."""
        return items[int(self.bits.integers(len(items)))]

    def shuffled(self, items: Sequence[Item]) -> list[Item]:
        """``items`` in random order."""
        rest = list(items)
        return [rest.pop(int(self.bits.integers(len(rest)))) for _ in range(len(rest))]


@dataclass(frozen=True)
class Job:
    """One image to draw."""

    format: str
    split: str
    index: int  # in the split
    number: int  # in the whole dataset
    seed: int
    size: tuple[int, int]  # width and height
    root: Path
    captions: int = 1  # of the image, in format ``captions``


def scene_seed(spec: DatasetSpec, split: str, index: int) -> int:
    """Return a seed that only the image ``index`` of this split has, since a trained-on scene would be remembered."""
    assert 0 <= index < MOST
    number = list(SPLITS).index(spec.format) % (len(SPLITS) - 1)
    return ((spec.seed * 8 + number) * 8 + SPLITS[spec.format].index(split)) * MOST + index


def unseen_seed(seed: int, part: str, index: int) -> int:
    """Return the seed of scene ``index`` of a ``part`` of UNSEEN, which no dataset of any seed has."""
    assert 0 <= index < MOST
    return ((seed * 8 + OF_NO_FORMAT) * 8 + UNSEEN.index(part)) * MOST + index


def list_jobs(spec: DatasetSpec, root: Path) -> list[Job]:
    """List all images of a synthetic dataset, split by split; UserError if its spec is impossible."""
    if spec.size is None:
        raise UserError(f"synthetic dataset of format {spec.format} has no size; give it as size: [width, height]")
    if spec.seed < 0:
        raise UserError(f"dataset seed {spec.seed} is negative; use 0 or more")
    for split in spec.images:
        pick(split, dict.fromkeys(SPLITS[spec.format]), "split", f"images of format {spec.format}")
    images = [(split, index) for split in SPLITS[spec.format] for index in range(spec.images.get(split, 0))]
    return [
        Job(spec.format, split, index, number, scene_seed(spec, split, index), spec.size, root, spec.captions)
        for number, (split, index) in enumerate(images)
    ]
