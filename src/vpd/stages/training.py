"""Training and evaluation of one experiment: its seeds side by side where cores allow, then what belongs to all of them."""

import contextlib
import os
from pathlib import Path

from vpd.config.paths import Paths
from vpd.config.schema import Spec
from vpd.training.runs import gather, run_fingerprint, seed_folder
from vpd.utils.devices import claimed_gpus
from vpd.utils.files import write_text
from vpd.utils.fingerprint import check_intact, is_finished
from vpd.utils.launch import launch, process_count
from vpd.utils.processes import return_freed_memory, side_by_side

LARGE = 2**30  # bytes of weights


def workers(spec: Spec, jobs: int) -> int:
    """How many of ``jobs`` to run at once; one unless the spec fixes the threads of each."""
    given = os.environ.get("OMP_NUM_THREADS", "")  # Snakemake sets it per job
    cores = int(given) if given.isascii() and given.isdigit() else len(os.sched_getaffinity(0))
    return max(1, min(jobs, cores // spec.training.threads)) if spec.training.threads else 1


def use_threads(spec: Spec) -> None:
    """Fix torch's CPU threads to the spec's, since their number changes the last bits of sums."""
    import torch

    if spec.training.threads:
        torch.set_num_threads(spec.training.threads)


def spare_memory(checkpoint: Path) -> None:
    """Return the memory of freed tensors at once if the network is large: then it takes less time than memory."""
    if sum(path.stat().st_size for path in checkpoint.rglob("*.safetensors")) > LARGE:
        return_freed_memory()


def plain_captions() -> None:
    """Show expressions of the data as they are: two dollar signs in one are no formula."""
    import matplotlib as mpl

    mpl.rcParams["text.parse_math"] = False


def check_inputs(spec: Spec, data: Path, checkpoint: Path) -> None:
    """UserError naming a file of dataset or checkpoint that changed since its manifest: equal digests mean equal bytes."""
    from vpd.datasets.manifest import check_unchanged

    check_unchanged(data)
    check_intact(checkpoint, "checkpoint" if spec.model.kind == "vpd" else "backbone")


def train_experiment(spec: Spec, paths: Paths, gpus: int = 1, live: str | None = None) -> int:
    """Train every seed of an experiment; write its runs, history and resolved spec; return the steps of one seed.

    With several ``gpus`` the seeds come one after another, each on all of them. ``live`` is an MLflow server to log to while
    training.
    """
    _train_seeds(spec, paths, gpus, live)
    steps = gather(paths.runs(spec.name), spec.seeds, paths.history(spec.name))
    write_text(paths.spec(spec.name), spec.model_dump_json(indent=1) + "\n")
    return steps


def _train_seeds(spec: Spec, paths: Paths, gpus: int, live: str | None) -> None:
    from vpd.datasets import check_scored

    data, checkpoint = paths.dataset(spec.dataset), paths.checkpoint(spec.checkpoint)
    check_inputs(spec, data, checkpoint)
    runs, state = paths.runs(spec.name), paths.state("train", spec.name)
    # Decided here, since a process that finds its run finished has imported torch for nothing.
    jobs = [
        (spec, seed, data, checkpoint, seed_folder(runs, seed), seed_folder(state, seed), live)
        for seed in spec.seeds
        if not is_finished(seed_folder(runs, seed), run_fingerprint(spec, seed, data, checkpoint))
    ]
    if not jobs:
        return
    check_scored(spec, data)
    with claimed_gpus(gpus):
        count = process_count(gpus)
        if count == 1:
            side_by_side(_train_seed, jobs, workers(spec, len(jobs)))
        else:
            for job in jobs:
                launch(_train_seed, job, seed_folder(state, job[1]), count)


def _train_seed(spec: Spec, seed: int, data: Path, checkpoint: Path, out: Path, state: Path, live: str | None) -> None:
    use_threads(spec)
    spare_memory(checkpoint)
    from vpd.training import Observer, train

    with contextlib.ExitStack() as stack:
        observers: list[Observer] = []
        if live and int(os.environ.get("RANK", "0")) == 0:
            from vpd.tracking import Live

            observers.append(stack.enter_context(Live(live, spec, seed)))
        train(spec, seed, data, checkpoint, out, state, observers)


def evaluate_experiment(spec: Spec, paths: Paths) -> None:
    """Measure every seed and milestone of an experiment, side by side where cores allow; write metrics and panels."""
    from vpd.evaluation.results import check_runs, evaluation_fingerprint, is_evaluated

    data, checkpoint = paths.dataset(spec.dataset), paths.checkpoint(spec.checkpoint)
    runs, out = paths.runs(spec.name), paths.evaluated(spec.name)
    check_inputs(spec, data, checkpoint)
    check_runs(spec, runs, data, checkpoint)
    if is_evaluated(out, evaluation_fingerprint(spec, runs, data, checkpoint)):
        return  # before torch and diffusers are imported, which takes seconds
    use_threads(spec)
    plain_captions()
    from vpd.evaluation.run import evaluate

    # As many processes as seeds: for the milestones of one seed another start of torch would cost more than it saves.
    processes = workers(spec, len(spec.seeds))
    with claimed_gpus(1):
        evaluate(spec, runs, data, checkpoint, out, paths.state("evaluate", spec.name), processes=processes)
