"""Shared by all rules: the checked params.yaml, the scale, the keys that decide what runs, and reserved resources."""

import json
import re
from pathlib import Path

from vpd.config.params import load_params
from vpd.config.paths import Paths
from vpd.stages.engine import chosen, release_locks_of_the_dead
from vpd.stages.keys import write_key
from vpd.utils import forkserver
from vpd.utils.devices import usable_gpus
from vpd.utils.errors import UserError

try:
    PARAMS = load_params("params.yaml", **chosen(config))
    SPECS = {name: PARAMS.resolve(name) for name in PARAMS.experiments}
except UserError as mistake:
    raise WorkflowError(str(mistake)) from None

# A cluster's jobs take no locks.
if workflow.is_main_process and release_locks_of_the_dead(Path(".vpd/snakemake")):
    logger.info("An earlier Snakemake was killed; its locks are removed.")

SCALE, PROTOCOL = PARAMS.scale, PARAMS.protocol
PATHS = Paths(SCALE)
CHOICE = f"--scale {SCALE}"
PROTOCOL_CHOICE = f"{CHOICE} --protocol {PROTOCOL}"

# Trainings that carry claims come first. Evaluations, of priority 0, come before the next training, but not where trainings
# share several GPUs, of which an evaluation would leave all but one idle.
ORDER = sorted(SPECS, key=lambda name: PARAMS.experiments[name].seeds == "single")
GPUS = max(PARAMS.resources(name).gpus for name in SPECS)
PRIORITIES = {
    name: GPUS - 1 - (place + 1) / len(ORDER) for place, name in enumerate(ORDER)
}


onstart:
    if workflow.local_exec:
        # For this limit, which is meant for a cluster's scheduler, Snakemake polls once per timespan for every finished
        # job, and ends one timespan after the last.
        workflow.scheduler.job_rate_limiter = None
    # Jobs on this machine start as copies of one process. A cluster's nodes have none, and a copy could not use a GPU.
    if workflow.local_exec and not usable_gpus():
        forkserver.start()


# --------------------------------------------------------------------------------------------------------------- keys
# A stage runs if and only if the fingerprints in its key differ from those of its output. Rules that others build on are
# checkpoints, and their outputs are `ancient` inputs: when such a job ends, Snakemake evaluates the keys below again.
# Regenerated data with the same bytes therefore retrain nothing, and data with other bytes everything that uses them.
def key(stage, *builds_on):
    """Return an input function that gives the key of a stage once the checkpoints that it builds on exist."""

    def made(wildcards):
        for upstream in builds_on:
            upstream(wildcards)
        name = next(iter(dict(wildcards).values()), "")
        return str(write_key(stage, name, PARAMS, PATHS))

    return made


def needs_data(*names):
    """Wait for the named datasets, or for that of the experiment."""
    return lambda wildcards: [
        checkpoints.data.get(dataset=name)
        for name in names or [SPECS[wildcards.name].dataset]
    ]


def needs_pretraining(wildcards):
    """Wait for the small Stable Diffusion."""
    checkpoints.pretrain.get()


def needs_checkpoints(wildcards):
    """Wait for every diffusion checkpoint of the scale."""
    for name in PARAMS.checkpoints:
        checkpoints.checkpoint.get(checkpoint=name)


def needs_measured(wildcards):
    """Wait for the checkpoints that are measured."""
    for name in PARAMS.measured:
        checkpoints.checkpoint.get(checkpoint=name)


def needs_measures(wildcards):
    """Wait for what is measured of them."""
    checkpoints.measure.get()


def needs_backbones(wildcards):
    """Wait for every backbone of the scale."""
    for name in PARAMS.backbones:
        checkpoints.backbone.get(backbone=name)


def needs_weights(wildcards):
    """Wait for the checkpoint or backbone of the experiment."""
    used = SPECS[wildcards.name].checkpoint
    if used in PARAMS.checkpoints:
        checkpoints.checkpoint.get(checkpoint=used)
    else:
        checkpoints.backbone.get(backbone=used)


# ---------------------------------------------------------------------------------------------------------- resources
COSTS = json.loads(PATHS.costs.read_text())
# Scales that fix the threads of their jobs run on CPUs. This is enough for one seed of their small networks.
SMALL = {"gpus": 0, "gpu_mem_mb": 0, "mem_mb": 3000, "runtime": 120, "cpus": 1}

ALIKE = {
    task: [name for name in COSTS if name in SPECS and SPECS[name].task == task]
    for task in {spec.task for spec in SPECS.values()}
}
GROWING = {"mem_mb", "runtime"}


def needed(stage, resource, name):
    """Compute a resource by `vpd cost`, or the maximum of its task if `vpd cost` does not list the experiment."""
    spec = SPECS[name]
    if spec.training.threads:
        return SMALL[resource] * (len(spec.seeds) if resource == "mem_mb" else 1)
    known = [name] if name in COSTS else ALIKE[spec.task]
    costs = [COSTS[name]["resources"][stage][resource] for name in known]
    return max(costs, default=SMALL[resource])


def grown(resource, amount, attempt):
    """A retried job gets proportionally more memory and time."""
    return amount * (attempt if resource in GROWING else 1)


def reserved(stage, resource):
    """Resources of one experiment's job."""
    return lambda wildcards, attempt: grown(
        resource, needed(stage, resource, wildcards.name), attempt
    )


def reserved_for_released(resource):
    """Resources of measuring the released weights: those of the most demanding evaluation, and the time of all."""
    names = [line.experiment or name for name, line in PARAMS.released.items()]
    amounts = [needed("evaluate", resource, name) for name in names] or [
        SMALL[resource]
    ]
    amount = sum(amounts) if resource == "runtime" else max(amounts)
    return lambda wildcards, attempt: grown(resource, amount, attempt)


def any_of(names):
    """A regular expression of exactly these names, which may have a plus."""
    return "|".join(map(re.escape, names))


wildcard_constraints:
    dataset=any_of(PARAMS.datasets),
    checkpoint=any_of(PARAMS.checkpoints),
    backbone=any_of(PARAMS.backbones),
    name=any_of(PARAMS.experiments),


def per_experiment(pattern):
    """One file of every experiment in the matrix; rules with these inputs have a message, which Snakemake prints instead."""
    return expand(pattern, name=PARAMS.experiments)
