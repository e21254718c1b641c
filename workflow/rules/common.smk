"""What all rules share: the checked params.yaml, the scale, and the code each stage depends on."""

import json
from pathlib import Path

from vpd.errors import UserError
from vpd.params import load_params

try:
    PARAMS = load_params("params.yaml", config["scale"], config["protocol"])
except UserError as mistake:
    raise WorkflowError(str(mistake)) from None

SCALE, PROTOCOL = PARAMS.scale, PARAMS.protocol
SPECS = {name: PARAMS.resolve(name) for name in PARAMS.experiments}


# Scales that fix the threads of their jobs are for CPUs and reserve nothing but those.
COSTS = json.loads(Path("workflow/costs.json").read_text())


def reserved(resource):
    """What `vpd cost` found that an experiment's training needs; the most of its task where it has not looked."""

    def amount(wildcards):
        spec = SPECS[wildcards.name]
        if spec.training.threads:
            return 0
        alike = [
            name for name in COSTS if name in SPECS and SPECS[name].task == spec.task
        ]
        known = [wildcards.name] if wildcards.name in COSTS else alike
        return max((COSTS[name]["resources"][resource] for name in known), default=0)

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
