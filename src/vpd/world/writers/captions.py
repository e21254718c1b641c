"""Draw captioned images."""

from __future__ import annotations

from pathlib import Path

from vpd.datasets.images import save_jpeg
from vpd.datasets.layouts.captions import INDEX
from vpd.utils.files import write_json
from vpd.world.language import captions
from vpd.world.scene import draw_scene
from vpd.world.writers.jobs import Job


def draw_one(job: Job) -> dict[str, str]:
    """Write the image; its entry in captions.json."""
    scene = draw_scene(job.seed, *job.size)
    file = f"images/{job.index:06d}.jpg"
    save_jpeg(job.root / file, scene.picture.image)
    return {"file": file, "caption": next(captions(scene))}


def finish(root: Path, jobs: list[Job], facts: list[dict[str, str]]) -> None:
    """Write captions.json."""
    (root / "images").mkdir(exist_ok=True)
    write_json(root / INDEX, facts)
