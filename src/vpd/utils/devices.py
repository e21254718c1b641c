"""The machine, and its GPUs, each used by one job at a time, so that jobs that run side by side never share one unknowingly."""

import contextlib
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from vpd.utils.errors import UserError

VISIBLE = "CUDA_VISIBLE_DEVICES"
ASSIGNED_BY = ("SLURM_JOB_ID", "RANK")  # if one of these is set, Slurm or a launcher has assigned the GPUs already
PAUSE = 0.5  # seconds between attempts to get one


@contextlib.contextmanager
def claimed_gpus(count: int) -> Iterator[list[str]]:
    """Hold ``count`` GPUs of this machine, or all if it has fewer, and show CUDA no others in the block.

    Waits until so many are free. Must be entered before torch looks for GPUs. Nothing is held, and CUDA_VISIBLE_DEVICES
    stays as it is, on a machine without GPUs and where somebody else has assigned them.
    """
    known = [] if any(name in os.environ for name in ASSIGNED_BY) else usable_gpus()
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
            os.environ.pop(VISIBLE)
            if before is not None:
                os.environ[VISIBLE] = before


def usable_gpus() -> list[str]:
    """UUIDs of the GPUs that the user allows, found without starting CUDA, which would fix what it sees."""
    every = dict(line.split(", ") for line in nvidia_smi("index,uuid") if ", " in line)
    allowed = os.environ.get(VISIBLE)
    chosen = None if allowed is None else [name.strip() for name in allowed.split(",")]
    return [uuid for index, uuid in every.items() if chosen is None or index in chosen or uuid in chosen]


def device_type() -> str:
    """Return ``cuda`` where torch can use a GPU, else ``cpu``; UserError if there are GPUs, but torch can use none."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if found := usable_gpus():
        try:
            torch.cuda.init()
            reason = "it says nothing more"
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0].partition(". ")[0]
        cure = f"update the driver or install another PyTorch, or set {VISIBLE}= to compute on the cores"
        raise UserError(f"PyTorch {torch.__version__} can use none of {len(found)} GPUs here ({reason}); {cure}")
    return "cpu"


def nvidia_smi(fields: str) -> list[str]:
    """A line per GPU of this machine; none without NVIDIA's driver."""
    try:
        query = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        return []


def machine() -> str:
    """Name this machine's processor, the cores that this process may use, and the GPUs: ``AMD EPYC 7B13, 2 cores``."""
    known = Path("/proc/cpuinfo")  # of Linux; platform knows no model there
    model = re.search(r"^model name\s*: (.+)", known.read_text(), re.MULTILINE) if known.is_file() else None
    gpus = Counter(nvidia_smi("name"))
    names = [model[1] if model else platform.processor() or platform.machine(), f"{len(os.sched_getaffinity(0))} cores"]
    return ", ".join([*names, *(f"{count} x {name}" for name, count in gpus.items())])


def _claim(count: int, known: list[str], held: contextlib.ExitStack) -> list[str]:
    """Lock ``count`` of ``known`` until ``held`` ends; fewer are released at once, so that two jobs cannot block each other."""
    folder = Path(tempfile.gettempdir()) / f"vpd-gpus-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    told = False
    while True:
        with contextlib.ExitStack() as locks:
            names: list[str] = []
            for uuid in known:
                with contextlib.suppress(Timeout):
                    locks.enter_context(FileLock(folder / uuid, timeout=0, is_singleton=False))
                    names.append(uuid)
                if len(names) == count:
                    held.push(locks.pop_all())
                    return names
        if not told:
            print(f"waiting for {count} of {len(known)} GPUs, which other jobs hold", file=sys.stderr, flush=True)
        told = True
        time.sleep(PAUSE)
