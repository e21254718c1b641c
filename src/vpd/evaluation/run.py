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

from vpd.data import build_dataset
from vpd.errors import UserError
from vpd.evaluation.depth import evaluate_depth
from vpd.evaluation.inference import Predict
from vpd.evaluation.panels import draw_panels
from vpd.evaluation.referring import evaluate_referring
from vpd.evaluation.segmentation import evaluate_segmentation
from vpd.files import locked, read_json, sha256, write_json
from vpd.models import build_model
from vpd.progress import Progress
from vpd.spec import Spec
from vpd.training.record import run_keys

EVALUATORS = {"segmentation": evaluate_segmentation, "referring": evaluate_referring, "depth": evaluate_depth}
DECIMALS = 6


def evaluate(spec: Spec, runs: Path, data: Path, checkpoint: Path, metrics: Path, panels: Path, state: Path) -> None:
    """Score every seed and milestone under ``runs`` on the validation split; write ``panels`` and then ``metrics``.

    Results of finished (seed, milestone) pairs wait in ``state``, keyed by everything they depend on, until all are
    there. UserError if a run was trained with other settings or its weights are damaged.
    """
    for seed in spec.seeds:
        check_run(runs / f"seed{seed}", run_keys(spec, seed, data, checkpoint), spec.name)
    dataset = build_dataset(spec, data, "val")
    torch.manual_seed(spec.seeds[0])
    model = build_model(spec, checkpoint, dataset.classes)
    evaluate_model(spec, model, dataset, runs, metrics, panels, state)


def evaluate_model(spec: Spec, model: nn.Module, dataset, runs: Path, metrics: Path, panels: Path, state: Path) -> None:
    """Do the work of ``evaluate`` with a built model and dataset."""
    if not len(dataset):
        raise UserError(f"the validation split of {spec.dataset} is empty; prepare the dataset again")
    folder = state / state_key(spec, runs)
    with locked(folder), torch.inference_mode():
        results = collect_results(spec, model, dataset, runs, folder)
        load_run(model, runs / f"seed{spec.seeds[0]}", "final")
        final = next(r for r in results if r["seed"] == spec.seeds[0] and r["milestone"] == "final")
        draw_panels(spec, model, predictor(spec, model), dataset, final["metrics"], panels)
        write_json(metrics, {**header(spec), "results": results})
    shutil.rmtree(folder)


def header(spec: Spec) -> dict:
    """Return what the metrics file says about its experiment."""
    names = ("scale", "task", "dataset", "variant")
    return {"experiment": spec.name, **{name: getattr(spec, name) for name in names}, "spec": spec.digest()}


def collect_results(spec: Spec, model: nn.Module, dataset, runs: Path, state: Path) -> list[dict]:
    """Return the result of every seed and milestone; those already in ``state`` are read, the others computed."""
    pairs = [(seed, milestone) for seed in spec.seeds for milestone in spec.training.milestones]
    kept = {pair: state / f"seed{pair[0]}-{pair[1]}.json" for pair in pairs}
    done = sum(path.exists() for path in kept.values())
    progress = Progress(len(pairs) * len(dataset), f"evaluate {spec.name}", "samples", done * len(dataset))
    for (seed, milestone), path in kept.items():
        if not path.exists():
            note = f"seed {seed} {milestone}"
            step = load_run(model, runs / f"seed{seed}", milestone)
            samples = load_samples(dataset, spec.training.workers, progress, note)
            values = EVALUATORS[spec.task](predictor(spec, model), samples, spec, len(dataset.classes))
            rounded = {name: round(value, DECIMALS) for name, value in values}
            write_json(path, {"seed": seed, "milestone": milestone, "step": step, "metrics": rounded})
    progress.close()
    return [read_json(path) for path in kept.values()]


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
    """Sixteen hex digits of the spec and the run manifests, which name the weights, the dataset and the checkpoint."""
    digests = [sha256(runs / f"seed{seed}" / "manifest.json") for seed in spec.seeds]
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
