"""What one workflow job does with the seeds of its experiment: side by side where cores allow, then gathered."""

from __future__ import annotations

import argparse
import contextlib
import csv
import os
from collections.abc import Sequence
from pathlib import Path

from vpd.config.schema import Spec
from vpd.stages.scratch import staged
from vpd.utils.devices import claimed_gpus
from vpd.utils.digests import sha256
from vpd.utils.files import atomic_path, exclusive, read_json, write_json, write_text
from vpd.utils.launch import Machines, launch, machines, process_count
from vpd.utils.processes import side_by_side


def available_threads() -> int:
    """CPU threads this job may use: OMP_NUM_THREADS where set (Snakemake sets it per job), else all of the process's."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdigit() else len(os.sched_getaffinity(0))


def workers(spec: Spec, jobs: int) -> int:
    """How many of ``jobs`` to run at once; one unless the spec fixes the threads of each."""
    threads = spec.training.threads
    return max(1, min(jobs, available_threads() // threads)) if threads else 1


def use_threads(spec: Spec) -> None:
    """Fix torch's CPU threads to the spec's, since their number changes the last bits of sums."""
    import torch

    if spec.training.threads:
        torch.set_num_threads(spec.training.threads)


def plain_captions() -> None:
    """Show texts of the data as they are: two dollar signs in an expression are no formula."""
    import matplotlib as mpl

    mpl.rcParams["text.parse_math"] = False


def train_seeds(spec: Spec, options: argparse.Namespace, gpus: int = 1) -> int | None:
    """Train every seed of ``spec``; write histories, run manifest and spec; return the steps of one seed.

    With several GPUs the seeds come one after another, each on all of them. None on all but the first of several machines,
    which writes. Waits for another job that trains into the same folder, and then finds its runs finished.
    """
    where = machines()
    if not where.lead:
        _train_all(spec, options, gpus, where)
        return None
    with exclusive(options.runs):
        _train_all(spec, options, gpus, where)
        return _gather(spec, options)


def _train_all(spec: Spec, options: argparse.Namespace, gpus: int, where: Machines) -> None:
    runs, data = options.runs, staged(options.data)
    jobs = [
        (
            spec,
            seed,
            data,
            options.checkpoint,
            runs / f"seed{seed}",
            options.state / f"seed{seed}",
            options.live,
        )
        for seed in spec.seeds
    ]
    with claimed_gpus(max(1, gpus // where.count)):
        count = process_count(gpus, where.count)
        if count * where.count == 1:
            side_by_side(_train_seed, jobs, workers(spec, len(jobs)))
        else:
            for job in jobs:
                launch(_train_seed, job, options.state / f"seed{job[1]}", count, where)


def _gather(spec: Spec, options: argparse.Namespace) -> int:
    """Write what belongs to all seeds together; return the steps of one."""
    runs: Path = options.runs
    manifests = {f"seed{seed}": read_json(runs / f"seed{seed}" / "manifest.json") for seed in spec.seeds}
    write_json(
        runs / "manifest.json",
        {
            "spec": spec.training_digest(),
            "data": sha256(options.data / "manifest.json"),
            "checkpoint": sha256(options.checkpoint / "manifest.json"),
            "seeds": manifests,
        },
    )
    gather_history(runs, spec.seeds, options.history)
    write_text(options.spec, spec.model_dump_json(indent=1) + "\n")
    return next(iter(manifests.values()))["steps"]


def _train_seed(spec: Spec, seed: int, data: Path, checkpoint: Path, out: Path, state: Path, live: str | None) -> None:
    use_threads(spec)
    from vpd.training import train

    with contextlib.ExitStack() as stack:
        observers = []
        if live and int(os.environ.get("RANK", "0")) == 0:
            from vpd.tracking import Live

            observers.append(stack.enter_context(Live(live, spec, seed)))
        train(spec, seed, data, checkpoint, out, state, observers)


def gather_history(runs: Path, seeds: Sequence[int], out: Path) -> None:
    """Join the seeds' histories into one CSV with the seed as its first column."""
    with atomic_path(out) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        for position, seed in enumerate(seeds):
            with open(runs / f"seed{seed}" / "history.csv", newline="") as history:
                header, *rows = csv.reader(history)
            if position == 0:
                writer.writerow(["seed", *header])
            writer.writerows([seed, *row] for row in rows)


def evaluate_seeds(spec: Spec, options: argparse.Namespace) -> None:
    """Measure every seed and milestone of ``spec``, side by side where cores allow; write the metrics and the panels."""
    use_threads(spec)
    plain_captions()
    from vpd.evaluation import evaluate

    places = (options.runs, staged(options.data), options.checkpoint, options.metrics, options.panels, options.state)
    with claimed_gpus(1):
        # As many as seeds: for the milestones of one seed another start of torch would cost more than it saves.
        evaluate(spec, *places, processes=workers(spec, len(spec.seeds)))
