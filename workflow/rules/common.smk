"""What all rules share: the checked params.yaml, the scale, and the code each stage depends on."""

import json
from pathlib import Path

from vpd.utils.errors import UserError
from vpd.config.params import load_params

try:
    PARAMS = load_params("params.yaml", config["scale"], config["protocol"])
except UserError as mistake:
    raise WorkflowError(str(mistake)) from None

SCALE, PROTOCOL = PARAMS.scale, PARAMS.protocol
SPECS = {name: PARAMS.resolve(name) for name in PARAMS.experiments}


COSTS = json.loads(Path("workflow/costs.json").read_text())
# Scales that fix the threads of their jobs are for CPUs: what one seed of their small networks needs, and never as long.
SMALL = {"gpus": 0, "gpu_mem_mb": 0, "mem_mb": 3000, "runtime": 120, "cpus": 1}

ALIKE = {
    task: [name for name in COSTS if name in SPECS and SPECS[name].task == task]
    for task in {spec.task for spec in SPECS.values()}
}
GROWING = {"mem_mb", "runtime"}


def reserved(stage, resource):
    """What `vpd cost` found that a job needs; the most of its task's experiments where it has not looked.

    A job that is tried again gets that much more memory and time.
    """

    def amount(wildcards, attempt):
        return needed(wildcards) * (attempt if resource in GROWING else 1)

    def needed(wildcards):
        spec = SPECS[wildcards.name]
        if spec.training.threads:
            return SMALL[resource] * (len(spec.seeds) if resource == "mem_mb" else 1)
        known = [wildcards.name] if wildcards.name in COSTS else ALIKE[spec.task]
        found = [COSTS[name]["resources"][stage][resource] for name in known]
        return max(found, default=SMALL[resource])

    return amount


wildcard_constraints:
    dataset="|".join(PARAMS.datasets),
    checkpoint="|".join(PARAMS.checkpoints),
    backbone="|".join(PARAMS.backbones),
    name="|".join(PARAMS.experiments),


def folder(path):
    """The folder that a declared file stands for."""
    return str(Path(path).parent)


def code(*packages, kinds=(".py",)):
    """Source files of the packages whose change must rerun a stage."""
    return [
        str(path)
        for package in packages
        for path in sorted(Path("src/vpd", package).rglob("*.*"))
        if path.suffix in kinds
    ]


def per_experiment(pattern):
    """One file of every experiment in the matrix."""
    return expand(pattern, name=PARAMS.experiments)
