"""Writes drawn scenes in the real datasets' layouts, by two processes whose number cannot change a byte."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from vpd.config.schema import DatasetSpec
from vpd.utils.progress import track
from vpd.world.writers import ade20k, captions, nyuv2, objects, refcoco
from vpd.world.writers.jobs import Job, list_jobs

WRITERS = {"ade20k": ade20k, "nyuv2": nyuv2, "refcoco": refcoco, "captions": captions, "objects": objects}
WORTH_A_POOL = 300
"""Fewer images are drawn sooner than a second process starts."""
PROCESSES = 2
CHUNK = 16


def draw_dataset(spec: DatasetSpec, root: Path) -> None:
    """Draw all images of ``spec`` and write its lists and indexes into ``root``."""
    writer, jobs = WRITERS[spec.layout], list_jobs(spec, root)
    facts = list(track(_draw_all(jobs), len(jobs), f"drawing {spec.layout}", "images"))
    writer.finish(root, jobs, facts)


def draw_one(job: Job):
    """Draw one image; what its layout's ``finish`` needs to know about it."""
    return WRITERS[job.layout].draw_one(job)


def _draw_all(jobs: list[Job]) -> Iterator:
    """Results in the order of ``jobs``."""
    if len(jobs) < WORTH_A_POOL or (os.cpu_count() or 1) < PROCESSES:
        yield from map(draw_one, jobs)
        return
    pool = ProcessPoolExecutor(PROCESSES, multiprocessing.get_context("spawn"))
    try:
        yield from pool.map(draw_one, jobs, chunksize=CHUNK)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
