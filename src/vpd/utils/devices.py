"""GPUs of one machine, each taken by one job at a time: jobs that run side by side never share one unknowingly."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

VISIBLE = "CUDA_VISIBLE_DEVICES"
ASSIGNED_BY = ("SLURM_JOB_ID", "RANK")
"""Where one of these is set, somebody else has given out the GPUs already."""
PAUSE = 0.5
"""Seconds between attempts to get one."""


@contextlib.contextmanager
def claimed_gpus(count: int) -> Iterator[list[str]]:
    """Hold ``count`` GPUs of this machine, or all where it has fewer, and show CUDA no others in the block.

    Waits until so many are free. To be entered before torch looks for GPUs. Nothing is held, and CUDA_VISIBLE_DEVICES
    stays as it is, on a machine without GPUs and where Slurm or a launcher has assigned them.
    """
    known = [] if any(name in os.environ for name in ASSIGNED_BY) else _gpus()
    if not known:
        yield []
        return
    with contextlib.ExitStack() as held:
        names = _claim(min(count, len(known)), known, held)
        before = os.environ.get(VISIBLE)
        os.environ[VISIBLE] = ",".join(names)
        try:
            yield names
        finally:
            _restore(before)


def _gpus() -> list[str]:
    """UUIDs of the GPUs that the user allows, found without starting CUDA, which would fix what it sees."""
    try:
        asked = ["nvidia-smi", "--query-gpu=index,uuid", "--format=csv,noheader"]
        listed = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split("\n")
    except (FileNotFoundError, subprocess.CalledProcessError):
        return []
    every = dict(line.split(", ") for line in listed if ", " in line)
    allowed = os.environ.get(VISIBLE)
    if allowed is None:
        return list(every.values())
    chosen = [name.strip() for name in allowed.split(",")]
    return [uuid for index, uuid in every.items() if index in chosen or uuid in chosen]


def _claim(count: int, known: list[str], held: contextlib.ExitStack) -> list[str]:
    """Lock ``count`` of ``known`` until ``held`` ends; fewer are given back at once, so that two jobs cannot block each other."""
    folder = Path(tempfile.gettempdir()) / f"vpd-gpus-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    for attempt in itertools.count():
        with contextlib.ExitStack() as locks:
            names = []
            for uuid in known:
                if len(names) < count and _lock(locks.enter_context((folder / uuid).open("w"))):
                    names.append(uuid)
            if len(names) == count:
                held.push(locks.pop_all())
                return names
        if attempt == 0:
            print(f"waiting for {count} of {len(known)} GPUs, which other jobs hold", file=sys.stderr, flush=True)
        time.sleep(PAUSE)


def _lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _restore(before: str | None) -> None:
    if before is None:
        os.environ.pop(VISIBLE, None)
    else:
        os.environ[VISIBLE] = before
