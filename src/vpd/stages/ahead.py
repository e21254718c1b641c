"""Trainings and evaluations made ahead of DVC, which runs one stage at a time, on the cores that it leaves idle.

When DVC comes to such a stage it finds it finished, or waits for it. DVC goes through the experiments from the first to the last,
this process from the last to the first. It ends with DVC, and its jobs with it; what fails here fails again where DVC shows it.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from vpd.config.params import Params, load_params
from vpd.config.paths import Paths
from vpd.stages.keys import is_current
from vpd.stages.run import output
from vpd.utils.errors import UserError
from vpd.utils.files import is_locked
from vpd.utils.processes import end_with_parent

PAUSE = 1.0  # seconds between two looks
MEMORY = 3 << 30  # bytes that a job may need
STAGES = ("train", "evaluate")
Job = tuple[str, str]


def start() -> None:
    """Start this process beside the command that the present one becomes, and give each job of either one core."""
    os.environ["OMP_NUM_THREADS"] = "1"
    subprocess.Popen([sys.executable, "-m", __name__, str(os.getpid())], start_new_session=True)


def idle_cores() -> int:
    """Count the cores that a workflow of one job leaves idle, and for whose jobs there is memory."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(0, min(len(os.sched_getaffinity(0)), memory // MEMORY) - 1)


def jobs(params: Params) -> dict[Job, list[Job]]:
    """Return what can be made ahead, in its order, and what each needs: experiments on one core each."""
    specs = [params.resolve(name) for name in reversed(params.experiments)]
    found: dict[Job, list[Job]] = {}
    for spec in (spec for spec in specs if spec.training.threads == 1):
        weights = "checkpoint" if spec.checkpoint in params.checkpoints else "backbone"
        inputs = [("data", spec.dataset), (weights, spec.checkpoint)]
        found["train", spec.name] = inputs
        found["evaluate", spec.name] = [*inputs, ("train", spec.name)]
    return found


def work(params: Params, paths: Paths, count: int) -> Iterator[Job]:
    """Run ``jobs``, ``count`` at a time, each once and as soon as what it needs is current; yield each that is begun.

    Skips those that are current, or that another process is at.
    """
    pending, running = jobs(params), list[subprocess.Popen]()
    while pending:
        running = [process for process in running if process.poll() is None]
        ready = (job for job, needed in pending.items() if all(is_current(*each, params, paths) for each in needed))
        if len(running) >= count or (job := next(ready, None)) is None:
            time.sleep(PAUSE)
            continue
        del pending[job]
        if not is_current(*job, params, paths) and not is_locked(output(*job, paths)):
            running.append(_begin(*job, params))
            yield job
    for process in running:
        process.wait()


def _begin(stage: str, name: str, params: Params) -> subprocess.Popen:
    log = Path(f"logs/{params.scale}/{stage}/{name}.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    command = ["vpd", stage, name, "--scale", params.scale, "--protocol", params.protocol]
    with log.open("w") as file:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, preexec_fn=end_with_parent)


def main(owner: int) -> None:
    """Work until nothing is left or the owner ends."""
    end_with_parent()
    if os.getppid() != owner:
        return
    with contextlib.suppress(UserError):  # DVC finds the same mistake, and says so
        params = load_params("params.yaml")
        for _ in work(params, Paths(params.scale), idle_cores()):
            pass


if __name__ == "__main__":
    main(int(sys.argv[1]))
