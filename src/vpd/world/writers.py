"""Write synthetic scenes in the real datasets' formats.

Each format has a function that draws one image and returns what the lists must say of it, and one that writes the lists.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import chain, islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray

from vpd.config.schema import DatasetSpec
from vpd.datasets import ade20k, captions, nyuv2, objects
from vpd.datasets.images import MILLIMETRES, save_jpeg, save_png
from vpd.utils.files import write_json, write_text
from vpd.utils.processes import end_with_parent
from vpd.utils.progress import track
from vpd.world.classes import CLASSES
from vpd.world.language import captions as captions_of
from vpd.world.refcoco import draw_refcoco, finish_refcoco
from vpd.world.render import FOCAL
from vpd.world.rooms import KINDS
from vpd.world.scene import draw_scene
from vpd.world.seeds import AROUND, Job, Rng, list_jobs

PROCESSES = 2
WORTH_A_POOL = 300
"""Fewer images are drawn sooner than a second process starts."""


def draw_dataset(spec: DatasetSpec, root: Path) -> None:
    """Draw all images of ``spec`` and write its lists and indexes into ``root``."""
    jobs = list_jobs(spec, root)
    draw, finish = WRITERS[spec.format]
    with contextlib.ExitStack() as stack:
        drawn: Iterable = map(draw, jobs)
        if len(jobs) > WORTH_A_POOL:
            # Each image has a seed of its own, so the number of processes cannot change a byte.
            pool = stack.enter_context(ProcessPoolExecutor(PROCESSES, get_context("spawn"), end_with_parent))
            drawn = pool.map(draw, jobs, chunksize=16)
        facts = list(track(drawn, len(jobs), f"drawing {spec.format}", "images"))
    finish(root, jobs, facts)


# --------------------------------------------------------------------------------------------------------------- ade20k
PREFIXES = {"training": "ADE_train", "validation": "ADE_val"}


def _draw_ade20k(job: Job) -> ndarray:
    width, height = job.size if job.index % 2 == 0 else job.size[::-1]  # landscape and portrait in turn
    picture = draw_scene(job.seed, width, height).picture
    name = f"{PREFIXES[job.split]}_{job.index + 1:08d}"
    save_jpeg(job.root / ade20k.FOLDER / "images" / job.split / f"{name}.jpg", picture.image)
    save_png(job.root / ade20k.FOLDER / "annotations" / job.split / f"{name}.png", picture.labels)
    return np.bincount(picture.labels.ravel(), minlength=len(CLASSES) + 1)


def _finish_ade20k(root: Path, jobs: list[Job], facts: list[ndarray]) -> None:
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
FRAMES = 5  # frames in one training folder, which all show the same kind of room


def _draw_nyuv2(job: Job) -> str:
    train = job.split == "train"
    first = job.seed - job.index % FRAMES if train else job.seed
    kind = Rng(first, AROUND).pick(sorted(KINDS))
    folder = f"{kind}_{job.index // FRAMES + 1:04d}" if train else kind
    number = f"{(job.index % FRAMES if train else job.index) + 1:05d}"
    picture = draw_scene(job.seed, *job.size, kind=kind).picture
    millimetres = np.floor(picture.depth * MILLIMETRES + 0.5).astype(np.uint16)
    if train:  # a few pixels are invalid, as the sensor's are: the border, and spots
        rng, (height, width) = Rng(job.seed, AROUND), millimetres.shape
        millimetres[:1], millimetres[-1:], millimetres[:, :1] = 0, 0, 0
        for _ in range(rng.count(2, 5)):
            y, x = rng.count(0, height - 3), rng.count(0, width - 3)
            millimetres[y : y + rng.count(1, 3), x : x + rng.count(1, 4)] = 0
    path = job.root / nyuv2.FOLDERS[job.split] / folder
    save_jpeg(path / f"rgb_{number}.jpg", picture.image)
    save_png(path / f"sync_depth_{number}.png", millimetres)
    lead = "/" if train else ""  # as in the released lists
    focal = FOCAL * max(job.size)
    return f"{lead}{folder}/rgb_{number}.jpg {lead}{folder}/sync_depth_{number}.png {focal:.4f}"


def _finish_nyuv2(root: Path, jobs: list[Job], facts: list[str]) -> None:
    for split, folder in nyuv2.FOLDERS.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        lines = [fact for job, fact in zip(jobs, facts, strict=True) if job.split == split]
        write_text(root / f"{split}_list.txt", "".join(line + "\n" for line in lines))


# ------------------------------------------------------------------------------------------------- captions and objects
def _draw_captions(job: Job) -> list[dict[str, str]]:
    scene, file = draw_scene(job.seed, *job.size), f"images/{job.index:06d}.jpg"
    save_jpeg(job.root / file, scene.picture.image)
    return [{"file": file, "caption": caption} for caption in islice(captions_of(scene), job.captions)]


def _draw_objects(job: Job) -> dict[str, Any]:
    scene = draw_scene(job.seed, *job.size)
    image, mask = f"images/{job.index:06d}.jpg", f"masks/{job.index:06d}.png"
    save_jpeg(job.root / image, scene.picture.image)
    values = np.zeros(scene.picture.instances.shape, np.uint8)
    for number, one in enumerate(scene.instances, start=1):
        values[scene.mask(one)] = number
    save_png(job.root / mask, values)
    present = [
        names.split(",")[0]
        for label, (names, _) in enumerate(CLASSES, start=1)
        if (scene.picture.labels == label).any()
    ]
    instances = [{"id": number, "class": one.name} for number, one in enumerate(scene.instances, start=1)]
    return {"file": image, "mask": mask, "classes": present, "instances": instances}


def _finish_index(folders: tuple[str, ...], index: str, root: Path, jobs: list[Job], facts: list[Any]) -> None:
    for folder in folders:
        (root / folder).mkdir(exist_ok=True)
    write_json(root / index, list(chain.from_iterable(fact if isinstance(fact, list) else [fact] for fact in facts)))


WRITERS: dict[str, tuple[Callable[[Job], Any], Callable[[Path, list[Job], list[Any]], None]]] = {
    "ade20k": (_draw_ade20k, _finish_ade20k),
    "nyuv2": (_draw_nyuv2, _finish_nyuv2),
    "refcoco": (draw_refcoco, finish_refcoco),
    "captions": (_draw_captions, partial(_finish_index, ("images",), captions.INDEX)),
    "objects": (_draw_objects, partial(_finish_index, ("images", "masks"), objects.INDEX)),
}
"""Format -> how one image is drawn and how the lists are written."""
