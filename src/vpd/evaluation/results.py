"""Results of an evaluation on disk. Nothing here imports torch, so that planning stays quick."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from vpd.config.schema import Count, Seed, Spec
from vpd.training.runs import run_fingerprint, seed_folder
from vpd.utils.errors import UserError
from vpd.utils.files import read_json
from vpd.utils.fingerprint import Fingerprint, Recorded, fingerprint, read_fingerprint, read_manifest
from vpd.utils.validation import read_as

CODE = ("datasets", "models", "evaluation")  # packages that decide the scores of given weights
DECISIVE = {"segmentation": ("miou_ss", max), "referring": ("oiou", max), "depth": ("rmse", min)}
DECIMALS = 6


# ---------------------------------------------------------------------------------------------------------- metrics file
Score = Annotated[float, Field(ge=-1e12, le=1e12)]


class Result(TypedDict):
    """Scores of one seed and milestone."""

    seed: Seed
    milestone: str
    step: Count
    metrics: dict[str, Score]


class Run(TypedDict, total=False):
    """What made the weights of one seed, and the digests of its files."""

    fingerprint: Recorded
    files: dict[str, str]


class Metrics(TypedDict):
    """A metrics file."""

    results: list[Result]
    spec: NotRequired[str]
    provenance: NotRequired[Literal["measured", "released-weights"]]
    fingerprint: NotRequired[Recorded]
    runs: NotRequired[dict[str, Run]]


def read_metrics(path: Path) -> Metrics:
    """Read a metrics file; UserError if it is damaged."""
    return read_as(Metrics, path, "delete it and evaluate again")


# ------------------------------------------------------------------------------------------------------- what made what
def evaluation_fingerprint(spec: Spec, runs: Path, data: Path, checkpoint: Path) -> Fingerprint:
    """Everything that decides an experiment's scores and panels; UserError if an input has no manifest yet."""
    inputs = {"runs": runs, "data": data, "checkpoint": checkpoint}
    return fingerprint(spec.model_dump(mode="json"), CODE, inputs)


def is_evaluated(metrics: Path, panels: Path, made_from: Fingerprint) -> bool:
    """Whether ``metrics`` and ``panels`` are the results of exactly ``made_from``."""
    if not (metrics.is_file() and (panels / "predictions.png").is_file()):
        return False
    try:
        return read_json(metrics)["fingerprint"] == asdict(made_from)
    except (UserError, KeyError, TypeError):  # damaged, or of another version
        return False


def check_run(run: Path, expected: Fingerprint, name: str) -> None:
    """Raise UserError if ``run`` was trained with other settings, code, data or checkpoint than ``expected``."""
    differences = " and ".join(expected.differences(read_fingerprint(run)))
    if differences:
        raise UserError(f"{run} was trained with other {differences} than there are now; run train for {name} again")


def check_runs(spec: Spec, runs: Path, data: Path, checkpoint: Path) -> None:
    """Check the runs of all seeds of an experiment."""
    for seed in spec.seeds:
        check_run(seed_folder(runs, seed), run_fingerprint(spec, seed, data, checkpoint), spec.name)


def header(spec: Spec) -> dict:
    """What a metrics file says about its experiment."""
    own = spec.model_dump(include={"scale", "task", "dataset", "variant"})
    return {"experiment": spec.name, **own, "spec": spec.digest()}


def best_of(spec: Spec, results: list[dict], seed: int) -> dict:
    """A seed's best result as milestone ``best``: as optimistic as the choice on the reported split is (R6, D14)."""
    name, choose = DECISIVE[spec.task]
    best = choose((r for r in results if r["seed"] == seed), key=lambda result: result["metrics"][name])
    return {**best, "milestone": "best", "chosen": best["milestone"]}


def provenance(spec: Spec, runs: Path) -> dict[str, dict]:
    """Per seed, what made its weights and the digests of its files: the runs themselves are not kept in git."""
    folders = {f"seed{seed}": seed_folder(runs, seed) for seed in spec.seeds}
    return {
        name: {"fingerprint": read_fingerprint(folder), "files": read_manifest(folder)["files"]}
        for name, folder in folders.items()
    }
