"""Write synthetic scenes in the real datasets' formats, with two processes whose number cannot change a byte.

Each format has a function that draws one image and returns what the lists must say of it, and one that writes the lists.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray

from vpd.config.schema import DatasetSpec
from vpd.datasets import ade20k, captions, nyuv2, objects
from vpd.datasets.images import MILLIMETRES, save_jpeg, save_png
from vpd.utils.files import write_json, write_text
from vpd.utils.progress import track
from vpd.world.classes import CLASSES, LABELS, OTHER
from vpd.world.language import captions as captions_of
from vpd.world.refcoco import draw_refcoco, finish_refcoco
from vpd.world.render import FOCAL
from vpd.world.rooms import KINDS
from vpd.world.scene import Scene, draw_scene
from vpd.world.seeds import AROUND, Job, Rng, list_jobs

WORTH_A_POOL = 300
"""Fewer images are drawn sooner than a second process starts."""
PROCESSES = 2
CHUNK = 16


def draw_dataset(spec: DatasetSpec, root: Path) -> None:
    """Draw all images of ``spec`` and write its lists and indexes into ``root``."""
    jobs = list_jobs(spec, root)
    facts = list(track(_draw_all(jobs), len(jobs), f"drawing {spec.format}", "images"))
    WRITERS[spec.format][1](root, jobs, facts)


def draw_one(job: Job) -> Any:
    """Draw one image; return what its format's lists must say of it."""
    return WRITERS[job.format][0](job)


def _draw_all(jobs: list[Job]) -> Iterator[Any]:
    """Results in the order of ``jobs``."""
    if len(jobs) < WORTH_A_POOL or (os.cpu_count() or 1) < PROCESSES:
        yield from map(draw_one, jobs)
        return
    pool = ProcessPoolExecutor(PROCESSES, multiprocessing.get_context("spawn"))
    try:
        yield from pool.map(draw_one, jobs, chunksize=CHUNK)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


# --------------------------------------------------------------------------------------------------------------- ade20k
PREFIXES = {"training": "ADE_train", "validation": "ADE_val"}


def _draw_ade20k(job: Job) -> ndarray:
    """Write image and labels, landscape and portrait in turn; return the number of pixels of each label."""
    width, height = job.size if job.index % 2 == 0 else job.size[::-1]
    picture = draw_scene(job.seed, width, height).picture
    name = f"{PREFIXES[job.split]}_{job.index + 1:08d}"
    save_jpeg(job.root / ade20k.FOLDER / "images" / job.split / f"{name}.jpg", picture.image)
    save_png(job.root / ade20k.FOLDER / "annotations" / job.split / f"{name}.png", picture.labels)
    return np.bincount(picture.labels.ravel(), minlength=len(CLASSES) + 1)


def _finish_ade20k(root: Path, jobs: list[Job], facts: list[ndarray]) -> None:
    """Write objectInfo150.txt in the real file's format."""
    pixels = {}
    for split in ade20k.SPLITS:
        for kind in ("images", "annotations"):
            (root / ade20k.FOLDER / kind / split).mkdir(parents=True, exist_ok=True)
        counts = [fact for job, fact in zip(jobs, facts, strict=True) if job.split == split]
        pixels[split] = np.array(counts).reshape(-1, len(CLASSES) + 1)
    total = max(1, int(pixels["training"].sum()))
    lines = ["Idx\tRatio\tTrain\tVal\tStuff\tName"]
    for label, (names, stuff) in enumerate(CLASSES, start=1):
        ratio = int(pixels["training"][:, label].sum()) / total
        images = [int((pixels[split][:, label] > 0).sum()) for split in ade20k.SPLITS]
        lines.append(f"{label}\t{ratio:.4f}\t{images[0]}\t{images[1]}\t{int(stuff)}\t{names}")
    write_text(root / ade20k.CLASS_FILE, "\n".join(lines) + "\n")


# ---------------------------------------------------------------------------------------------------------------- nyuv2
FRAMES = 5
"""Frames in one training folder, which all show the same kind of room."""


def _draw_nyuv2(job: Job) -> str:
    """Write image and depth; return the frame's line in the list file."""
    train = job.split == "train"
    first = job.seed - job.index % FRAMES if train else job.seed
    kind = Rng(first, AROUND).pick(sorted(KINDS))
    folder = f"{kind}_{job.index // FRAMES + 1:04d}" if train else kind
    number = f"{(job.index % FRAMES if train else job.index) + 1:05d}"
    picture = draw_scene(job.seed, *job.size, kind=kind).picture
    millimetres = np.floor(picture.depth * MILLIMETRES + 0.5).astype(np.uint16)
    if train:
        _puncture(millimetres, Rng(job.seed, AROUND))
    path = job.root / nyuv2.FOLDERS[job.split] / folder
    save_jpeg(path / f"rgb_{number}.jpg", picture.image)
    save_png(path / f"sync_depth_{number}.png", millimetres)
    lead = "/" if train else ""  # as in the released lists
    focal = FOCAL * max(job.size)
    return f"{lead}{folder}/rgb_{number}.jpg {lead}{folder}/sync_depth_{number}.png {focal:.4f}"


def _puncture(millimetres: ndarray, rng: Rng) -> None:
    """Make a few pixels invalid, as the sensor does: the border, and spots."""
    millimetres[:1], millimetres[-1:], millimetres[:, :1] = 0, 0, 0
    height, width = millimetres.shape
    for _ in range(rng.count(2, 5)):
        y, x = rng.count(0, height - 3), rng.count(0, width - 3)
        millimetres[y : y + rng.count(1, 3), x : x + rng.count(1, 4)] = 0


def _finish_nyuv2(root: Path, jobs: list[Job], facts: list[str]) -> None:
    """Write the list files."""
    for split, folder in nyuv2.FOLDERS.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        lines = [fact for job, fact in zip(jobs, facts, strict=True) if job.split == split]
        write_text(root / f"{split}_list.txt", "".join(line + "\n" for line in lines))


# ------------------------------------------------------------------------------------------------- captions and objects
NAMES = {label: name for name, label in LABELS.items()}


def _draw_captions(job: Job) -> dict[str, str]:
    """Write the image; return its entry in captions.json."""
    scene = draw_scene(job.seed, *job.size)
    file = f"images/{job.index:06d}.jpg"
    save_jpeg(job.root / file, scene.picture.image)
    return {"file": file, "caption": next(captions_of(scene))}


def _finish_captions(root: Path, jobs: list[Job], facts: list[dict[str, str]]) -> None:
    """Write captions.json."""
    (root / "images").mkdir(exist_ok=True)
    write_json(root / captions.INDEX, facts)


def _draw_objects(job: Job) -> dict[str, Any]:
    """Write image and instance mask; return its entry in objects.json."""
    scene = draw_scene(job.seed, *job.size)
    image, mask = f"images/{job.index:06d}.jpg", f"masks/{job.index:06d}.png"
    save_jpeg(job.root / image, scene.picture.image)
    save_png(job.root / mask, _instance_mask(scene))
    present = [NAMES[label] for label in np.unique(scene.picture.labels).tolist() if label != OTHER]
    instances = [{"id": number, "class": one.name} for number, one in enumerate(scene.instances, start=1)]
    return {"file": image, "mask": mask, "classes": present, "instances": instances}


def _instance_mask(scene: Scene) -> ndarray:
    """(H, W) uint8: the position of the thing among the scene's instances plus one; 0 elsewhere."""
    assert len(scene.instances) <= objects.MOST_INSTANCES
    mask = np.full(scene.picture.instances.shape, objects.NOTHING, np.uint8)
    for number, instance in enumerate(scene.instances, start=1):
        mask[scene.mask(instance)] = number
    return mask


def _finish_objects(root: Path, jobs: list[Job], facts: list[dict[str, Any]]) -> None:
    """Write objects.json."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(exist_ok=True)
    write_json(root / objects.INDEX, facts)


WRITERS: dict[str, tuple[Callable[[Job], Any], Callable[[Path, list[Job], list[Any]], None]]] = {
    "ade20k": (_draw_ade20k, _finish_ade20k),
    "nyuv2": (_draw_nyuv2, _finish_nyuv2),
    "refcoco": (draw_refcoco, finish_refcoco),
    "captions": (_draw_captions, _finish_captions),
    "objects": (_draw_objects, _finish_objects),
}
"""Format -> how one image is drawn and how the lists are written."""
