"""Draw the scenes of the captions layout again, annotated with their classes and the masks of their things."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy import ndarray

from vpd.datasets.images import save_jpeg, save_png
from vpd.datasets.layouts.objects import INDEX, MOST_INSTANCES, NOTHING
from vpd.utils.files import write_json
from vpd.world.classes import LABELS, OTHER
from vpd.world.scene import Scene, draw_scene
from vpd.world.writers.jobs import Job

NAMES = {label: name for name, label in LABELS.items()}


def draw_one(job: Job) -> dict:
    """Write image and instance mask; its entry in objects.json."""
    scene = draw_scene(job.seed, *job.size)
    image, mask = f"images/{job.index:06d}.jpg", f"masks/{job.index:06d}.png"
    save_jpeg(job.root / image, scene.picture.image)
    save_png(job.root / mask, instance_mask(scene))
    present = [NAMES[label] for label in np.unique(scene.picture.labels).tolist() if label != OTHER]
    instances = [{"id": number, "class": one.name} for number, one in enumerate(scene.instances, start=1)]
    return {"file": image, "mask": mask, "classes": present, "instances": instances}


def instance_mask(scene: Scene) -> ndarray:
    """(H, W) uint8: the position of the thing among the scene's instances plus one; 0 elsewhere."""
    assert len(scene.instances) <= MOST_INSTANCES
    mask = np.full(scene.picture.instances.shape, NOTHING, np.uint8)
    for number, instance in enumerate(scene.instances, start=1):
        mask[scene.mask(instance)] = number
    return mask


def finish(root: Path, jobs: list[Job], facts: list[dict]) -> None:
    """Write objects.json."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(exist_ok=True)
    write_json(root / INDEX, facts)
