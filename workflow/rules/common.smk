"""What all rules share: the checked params.yaml, the scale, and the code each stage depends on."""

from pathlib import Path

from vpd.errors import UserError
from vpd.params import load_params

try:
    PARAMS = load_params("params.yaml", config["scale"], config["protocol"])
except UserError as mistake:
    raise WorkflowError(str(mistake)) from None

SCALE, PROTOCOL = PARAMS.scale, PARAMS.protocol
SPECS = {name: PARAMS.resolve(name) for name in PARAMS.experiments}


wildcard_constraints:
    dataset="|".join(PARAMS.datasets),
    checkpoint="|".join(PARAMS.checkpoints),
    name="|".join(PARAMS.experiments),


def folder(path):
    """The folder that a declared file stands for."""
    return str(Path(path).parent)


def code(*packages):
    """Source files of the packages whose change must rerun a stage."""
    return [
        str(path)
        for package in packages
        for path in sorted(Path("src/vpd", package).rglob("*.py"))
    ]


def per_experiment(pattern):
    """One file of every experiment in the matrix."""
    return expand(pattern, name=PARAMS.experiments)
