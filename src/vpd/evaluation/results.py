"""Results of an evaluation on disk. Nothing here imports torch, so that planning stays quick."""

import re
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, RootModel

from vpd.config.paths import Evaluated
from vpd.config.schema import Spec
from vpd.training.runs import TIMING, run_fingerprint, seed_folder
from vpd.utils.digests import digests, sha256
from vpd.utils.errors import UserError
from vpd.utils.files import read_json, write_json
from vpd.utils.fingerprint import Fingerprint, fingerprint, read_fingerprint, read_manifest
from vpd.utils.validation import Frozen, checked, read_as

CODE = ("datasets", "models", "evaluation")  # packages that decide the scores of given weights
DECISIVE = {"segmentation": ("miou_ss", max), "referring": ("oiou", max), "depth": ("rmse", min)}
PREDICTIONS, ATTENTION = "predictions.png", "attention.png"  # the pictures; attention where the model records it
DECIMALS = 6
EVALUATE = "delete it and evaluate again"
STEP, SEED = "step", re.compile("^seed[0-9]{1,10}$")  # beside the metrics of a milestone, and key of a seed's value


# ------------------------------------------------------------------------------------------------------- what made what
def evaluation_fingerprint(spec: Spec, runs: Path, data: Path, checkpoint: Path) -> Fingerprint:
    """Everything that decides an experiment's scores and panels; UserError if an input has no manifest yet."""
    inputs = {"runs": runs, "data": data, "checkpoint": checkpoint}
    return fingerprint(spec.model_dump(mode="json"), CODE, inputs)


def is_evaluated(out: Evaluated, made_from: Fingerprint) -> bool:
    """Whether ``out`` is complete and holds the results of exactly ``made_from``."""
    try:
        made = read_provenance(out.provenance)
    except UserError:  # missing, damaged, or of another version
        return False
    if made.fingerprint != made_from or not (out.metrics.is_file() and out.headline.is_file()):
        return False
    return made.metrics == sha256(out.metrics) and made.shown == _shown(out)


def _shown(out: Evaluated) -> dict[str, str]:
    """Digests of the headline and of the pictures, by their names."""
    return {out.headline.name: sha256(out.headline), **digests(out.panels, (PREDICTIONS, ATTENTION))}


def check_run(run: Path, expected: Fingerprint, name: str) -> None:
    """Raise UserError if ``run`` was trained with other settings, code, data or checkpoint than ``expected``."""
    differences = " and ".join(expected.differences(read_fingerprint(run)))
    if differences:
        raise UserError(f"{run} was trained with other {differences} than there are now; run train for {name} again")


def check_runs(spec: Spec, runs: Path, data: Path, checkpoint: Path) -> None:
    """Check the runs of all seeds of an experiment."""
    for seed in spec.seeds:
        check_run(seed_folder(runs, seed), run_fingerprint(spec, seed, data, checkpoint), spec.name)


def best_of(spec: Spec, results: list[dict], seed: int) -> dict:
    """A seed's best result as milestone ``best``: as optimistic as the choice on the reported split is (R6, D14)."""
    name, choose = DECISIVE[spec.task]
    best = choose((r for r in results if r["seed"] == seed), key=lambda result: result["metrics"][name])
    return {**best, "milestone": "best"}


# ------------------------------------------------------------------------------------------------------------------ files
Result = dict[str, Any]  # of one seed and milestone: ``seed``, ``milestone``, ``step`` and ``metrics`` by name
Number = Annotated[float, Field(ge=-1e12, le=1e12)]
Numbers = dict[str, dict[str, Number]]  # metric -> ``mean``, ``sd`` of several seeds, ``seed0``, ...


class Metrics(RootModel[Annotated[dict[str, Numbers], Field(min_length=1)]]):
    """Content of a metrics file, by milestone: mappings of numbers, because DVC skips lists and lists every digest."""


class Timing(Frozen):
    """When a training ran, in seconds since 1970 or over all its attempts, and the commit that ended it."""

    started: float
    ended: float
    seconds: float
    commit: str = ""


class Run(Frozen):
    """What made the weights of one seed; the runs themselves are not kept in git."""

    fingerprint: Fingerprint
    files: dict[str, str]
    timing: Timing | None = None


class Provenance(Frozen):
    """What a metrics file was made from, with its digest and those of the headline and the pictures."""

    spec: str
    metrics: str
    shown: dict[str, str] = {}  # results of earlier versions have none, and are not current
    fingerprint: Fingerprint
    runs: dict[Annotated[str, Field(pattern=SEED.pattern)], Run]


def write_results(spec: Spec, results: Sequence[Result], runs: Path, made_from: Fingerprint, out: Evaluated) -> None:
    """Write the metrics, the headline and, last, their provenance."""
    metrics = nested(results)
    decisive, _ = DECISIVE[spec.task]
    write_json(out.metrics, metrics)
    write_json(out.headline, {decisive: metrics["final"][decisive]["mean"]})
    folders = {f"seed{seed}": seed_folder(runs, seed) for seed in spec.seeds}
    facts = {"spec": spec.digest(), "metrics": sha256(out.metrics), "shown": _shown(out), "fingerprint": made_from}
    made = Provenance(**facts, runs={name: _run(folder) for name, folder in folders.items()})
    write_json(out.provenance, made.model_dump())


def nested(results: Iterable[Result]) -> dict[str, Numbers]:
    """Arrange results as a metrics file has them."""
    tree: dict[str, Numbers] = {}
    for result in results:
        for name, value in {STEP: result["step"], **result["metrics"]}.items():
            tree.setdefault(result["milestone"], {}).setdefault(name, {})[f"seed{result['seed']}"] = value
    return {key: {name: _summary(name, seeds) | seeds for name, seeds in part.items()} for key, part in tree.items()}


def _summary(name: str, seeds: dict[str, float]) -> dict[str, float]:
    if name == STEP:
        return {}
    spread = {"sd": statistics.stdev(seeds.values())} if len(seeds) > 1 else {}
    return {key: round(value, DECIMALS) for key, value in {"mean": statistics.fmean(seeds.values()), **spread}.items()}


def _run(folder: Path) -> Run:
    timing = read_json(folder / TIMING) if (folder / TIMING).is_file() else None  # imported weights have none
    facts = {"fingerprint": read_fingerprint(folder), "files": read_manifest(folder)["files"], "timing": timing}
    return checked(Run, facts, str(folder))


def read_metrics(path: Path) -> list[Result]:
    """Read a metrics file as results, in the order of seeds and steps; UserError if it is damaged."""
    results = []
    for milestone, metrics in read_as(Metrics, path, EVALUATE).root.items():
        steps = metrics.pop(STEP, {})
        seeds = [numbers.keys() - {"mean", "sd"} for numbers in metrics.values()]
        if not steps or any(found != steps.keys() for found in seeds) or not all(map(SEED.fullmatch, steps)):
            raise UserError(
                f"{path} is not a metrics file: {milestone} has no {STEP} and value for each seed; {EVALUATE}"
            )
        for seed, step in steps.items():
            values = {name: numbers[seed] for name, numbers in metrics.items()}
            found = {
                "seed": int(seed.removeprefix("seed")),
                "milestone": milestone,
                "step": int(step),
                "metrics": values,
            }
            results.append(found)
    return sorted(results, key=lambda result: (result["seed"], result["step"], result["milestone"]))


def read_provenance(path: Path) -> Provenance:
    """Read the provenance of a metrics file; UserError if it is missing or damaged."""
    return read_as(Provenance, path, EVALUATE)
