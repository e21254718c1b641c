"""Draw captioned images."""

from __future__ import annotations

from pathlib import Path

from vpd.data.drawing.jobs import Job
from vpd.data.images import save_jpeg
from vpd.data.layouts.captions import INDEX
from vpd.data.world.language import captions
from vpd.data.world.scene import draw_scene
from vpd.files import write_json


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
