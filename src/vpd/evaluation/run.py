"""Evaluation of one experiment: every seed and milestone, resumable, then panels and the metrics file."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from vpd.config.schema import Spec
from vpd.datasets import build_dataset
from vpd.evaluation.depth import evaluate_depth
from vpd.evaluation.inference import Predict
from vpd.evaluation.panels import draw_panels
from vpd.evaluation.referring import evaluate_referring
from vpd.evaluation.segmentation import evaluate_segmentation
from vpd.models import build_model
from vpd.training.record import run_keys
from vpd.utils.digests import sha256
from vpd.utils.errors import UserError
from vpd.utils.files import locked, read_json, write_json
from vpd.utils.fingerprint import code_digest
from vpd.utils.processes import beside
from vpd.utils.progress import Progress

EVALUATORS = {"segmentation": evaluate_segmentation, "referring": evaluate_referring, "depth": evaluate_depth}
DECISIVE = {"segmentation": ("miou_ss", max), "referring": ("oiou", max), "depth": ("rmse", min)}
"""Metric that tells the best milestone, and in which direction."""
DECIMALS = 6
Pair = tuple[int, str]
"""A seed and a milestone."""


def evaluate(
    spec: Spec,
    runs: Path,
    data: Path,
    checkpoint: Path,
    metrics: Path,
    panels: Path,
    state: Path,
    *,
    processes: int = 1,
) -> None:
    """Score every seed and milestone under ``runs`` on the validation split; write ``panels`` and then ``metrics``.

    Results of finished (seed, milestone) pairs wait in ``state``, keyed by everything they depend on, until all are
    there; ``processes`` share the pairs. UserError if a run was trained with other settings or its weights are damaged.
    """
    for seed in spec.seeds:
        check_run(runs / f"seed{seed}", run_keys(spec, seed, data, checkpoint), spec.name)
    folder = state / state_key(spec, runs)
    own, *others = shares(spec, processes)
    with locked(folder):
        with beside(measure_share, [(spec, pairs, runs, data, checkpoint, folder) for pairs in others]):
            model, dataset = open_model(spec, data, checkpoint)
            measure(spec, model, dataset, own, runs, folder)
        conclude(spec, model, dataset, runs, metrics, panels, folder)


def all_pairs(spec: Spec) -> list[Pair]:
    """Every (seed, milestone) to measure."""
    return [(seed, milestone) for seed in spec.seeds for milestone in spec.training.milestones]


def shares(spec: Spec, processes: int) -> list[list[Pair]]:
    """The pairs dealt to ``processes``, at most one process per pair."""
    pairs = all_pairs(spec)
    count = max(1, min(processes, len(pairs)))
    return [pairs[first::count] for first in range(count)]


def open_model(spec: Spec, data: Path, checkpoint: Path) -> tuple[nn.Module, Dataset]:
    """Build the network and open the validation split."""
    dataset = build_dataset(spec, data, "val")
    torch.manual_seed(spec.seeds[0])
    return build_model(spec, checkpoint, dataset.classes), dataset


def measure_share(spec: Spec, pairs: list[Pair], runs: Path, data: Path, checkpoint: Path, folder: Path) -> None:
    """Measure ``pairs`` in a process of its own."""
    if spec.training.threads:
        torch.set_num_threads(spec.training.threads)
    measure(spec, *open_model(spec, data, checkpoint), pairs, runs, folder)


@torch.inference_mode()
def measure(spec: Spec, model: nn.Module, dataset, pairs: list[Pair], runs: Path, folder: Path) -> None:
    """Write the result of each of ``pairs`` that ``folder`` does not hold yet; UserError if the split is empty."""
    if not len(dataset):
        raise UserError(f"the validation split of {spec.dataset} is empty; prepare the dataset again")
    missing = [pair for pair in pairs if not result_path(folder, pair).exists()]
    progress = Progress(
        len(pairs) * len(dataset), f"evaluate {spec.name}", "samples", (len(pairs) - len(missing)) * len(dataset)
    )
    for seed, milestone in missing:
        torch.manual_seed(seed)  # latents may be samples (S2), which must not depend on what was measured before
        step = load_run(model, runs / f"seed{seed}", milestone)
        samples = load_samples(dataset, spec.training.workers, progress, f"seed {seed} {milestone}")
        values = EVALUATORS[spec.task](predictor(spec, model), samples, spec, len(dataset.classes))
        rounded = {name: round(value, DECIMALS) for name, value in values}
        result = {"seed": seed, "milestone": milestone, "step": step, "metrics": rounded}
        write_json(result_path(folder, (seed, milestone)), result)
    progress.close()


@torch.inference_mode()
def conclude(spec: Spec, model: nn.Module, dataset, runs: Path, metrics: Path, panels: Path, folder: Path) -> None:
    """Draw the panels of the first seed's final weights and write all results as one file; ``folder`` goes."""
    results = [read_json(result_path(folder, pair)) for pair in all_pairs(spec)]
    results += [best_of(spec, results, seed) for seed in spec.seeds if spec.evaluation.best]
    torch.manual_seed(spec.seeds[0])
    load_run(model, runs / f"seed{spec.seeds[0]}", "final")
    final = next(r for r in results if r["seed"] == spec.seeds[0] and r["milestone"] == "final")
    draw_panels(spec, model, predictor(spec, model), dataset, final["metrics"], panels)
    write_json(metrics, {**header(spec), "results": results, "runs": provenance(spec, runs)})
    shutil.rmtree(folder)


def best_of(spec: Spec, results: list[dict], seed: int) -> dict:
    """A seed's best result as milestone ``best``: as optimistic as the choice on the reported split is (R6, D14)."""
    name, choose = DECISIVE[spec.task]
    best = choose((r for r in results if r["seed"] == seed), key=lambda result: result["metrics"][name])
    return {**best, "milestone": "best", "chosen": best["milestone"]}


def header(spec: Spec) -> dict:
    """Return what the metrics file says about its experiment."""
    names = ("scale", "task", "dataset", "variant")
    return {"experiment": spec.name, **{name: getattr(spec, name) for name in names}, "spec": spec.digest()}


def provenance(spec: Spec, runs: Path) -> dict[str, dict]:
    """Per seed the digests of what made its weights, and of the weights: the runs themselves are not kept in git."""
    manifests = {f"seed{seed}": read_json(runs / f"seed{seed}" / "manifest.json") for seed in spec.seeds}
    kept = ("code", "data", "checkpoint", "files")
    return {seed: {name: manifest[name] for name in kept if name in manifest} for seed, manifest in manifests.items()}


def result_path(folder: Path, pair: Pair) -> Path:
    """Where the result of one pair waits."""
    return folder / f"seed{pair[0]}-{pair[1]}.json"


# ----------------------------------------------------------------------------------------------------------------- runs
def check_run(run: Path, keys: dict[str, str | int], name: str) -> None:
    """Raise UserError if a run was trained with another spec, seed, dataset or checkpoint than ``keys`` say."""
    manifest = read_json(run / "manifest.json")
    for key, expected in keys.items():
        if manifest.get(key) != expected:
            raise UserError(
                f"{run} was trained with another {key} ({manifest.get(key)}, now {expected}); run train for {name} again"
            )


def load_run(model: nn.Module, run: Path, milestone: str) -> int:
    """Load the weights of a milestone into ``model``, put it in eval mode and return its training step."""
    manifest, path = read_json(run / "manifest.json"), run / f"{milestone}.safetensors"
    try:
        intact = sha256(path) == manifest["files"][path.name]
        weights = load_file(path) if intact else None
    except (FileNotFoundError, KeyError, SafetensorError):
        weights = None
    if weights is None:
        raise UserError(f"{path} is missing or not the file that {run / 'manifest.json'} lists; run train again")
    model.load_trained_state(weights)
    model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    return manifest["milestones"][milestone]


def state_key(spec: Spec, runs: Path) -> str:
    """Sixteen hex digits of the spec, the code that evaluates and the run manifests, which name weights and inputs."""
    digests = [code_digest("datasets", "models", "evaluation")] + [
        sha256(runs / f"seed{seed}" / "manifest.json") for seed in spec.seeds
    ]
    return hashlib.sha256(" ".join([spec.digest(), *digests]).encode()).hexdigest()[:16]


# -------------------------------------------------------------------------------------------------------------- samples
class Samples(Dataset):
    """A dataset's samples by index, for a DataLoader; with ``native_label`` where the dataset has one."""

    def __init__(self, dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict | UserError:
        try:
            sample = self.dataset.sample(index)
            if hasattr(self.dataset, "native_label"):
                sample["native_label"] = self.dataset.native_label(index)
        except UserError as error:
            return error  # raised in a worker, it would arrive wrapped in a page of traceback
        return sample


def load_samples(dataset, workers: int, progress: Progress, note: str) -> Iterator[dict]:
    """Yield every sample once, in order, decoded in ``workers`` processes, and count it on ``progress``."""
    for sample in DataLoader(Samples(dataset), batch_size=None, num_workers=workers):
        if isinstance(sample, UserError):
            raise sample
        yield sample
        progress.advance(note=note)


def predictor(spec: Spec, model: nn.Module) -> Predict:
    """Return ``model`` as a function of a batch; UserError naming the sample if a prediction is not finite."""
    device = next(model.parameters()).device

    def predict(batch: dict) -> Tensor:
        moved = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
        output = model(moved).float()
        finite = output.isfinite().flatten(1).all(1).tolist()
        if not all(finite):
            name = batch["id"][finite.index(False)]
            raise UserError(
                f"{spec.name}: the prediction for sample {name} is not finite; "
                "lower training.optimizer.lr and train again"
            )
        return output

    return predict
