"""Evaluation of one experiment: every seed and milestone, resumable, then panels and the metrics file."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from vpd.config.paths import Evaluated
from vpd.config.schema import DepthSpec, Spec
from vpd.datasets import build_dataset
from vpd.datasets.dataset import Dataset
from vpd.evaluation.inference import Predict, to_model
from vpd.evaluation.panels import draw_panels
from vpd.evaluation.results import DECIMALS, Result, best_of, check_runs, evaluation_fingerprint, nested, write_results
from vpd.evaluation.scores import DepthScores, evaluate_depth, evaluate_referring, evaluate_segmentation
from vpd.models import build_model
from vpd.models.base import Network
from vpd.training.loader import Samples, end_if_stuck
from vpd.training.runs import seed_folder
from vpd.utils.devices import device_type
from vpd.utils.digests import sha256
from vpd.utils.errors import UserError
from vpd.utils.files import locked, read_json, write_json
from vpd.utils.fingerprint import Fingerprint, read_manifest
from vpd.utils.processes import beside
from vpd.utils.progress import Progress
from vpd.utils.tensors import read_safetensors, set_up_inference

if TYPE_CHECKING:
    from vpd.models.monocular import Monocular

EVALUATORS: dict[str, Callable[..., Iterator[tuple[str, float]]]] = {
    "segmentation": evaluate_segmentation,
    "referring": evaluate_referring,
    "depth": evaluate_depth,
}
Pair = tuple[int, str]  # a seed and a milestone


def evaluate(
    spec: Spec, runs: Path, data: Path, checkpoint: Path, out: Evaluated, state: Path, processes: int = 1
) -> None:
    """Score every seed and milestone on the validation split, shared by ``processes``, and write ``out``.

    Results of finished (seed, milestone) pairs wait in ``state`` for the others. UserError if a run was trained with other
    settings, its weights are damaged or a prediction is not finite.
    """
    check_runs(spec, runs, data, checkpoint)
    made_from = evaluation_fingerprint(spec, runs, data, checkpoint)
    folder, pairs = state / made_from.key, all_pairs(spec)
    count = max(1, min(processes, len(pairs)))
    own, *others = (pairs[first::count] for first in range(count))
    with locked(folder):
        with beside(_measure_share, [(spec, share, runs, data, checkpoint, folder) for share in others]):
            model, dataset = open_model(spec, data, checkpoint)
            measure(spec, model, dataset, own, runs, folder)
        conclude(spec, model, dataset, runs, out, folder, made_from)


def all_pairs(spec: Spec) -> list[Pair]:
    """Every (seed, milestone) to measure."""
    return [(seed, milestone) for seed in spec.seeds for milestone in spec.training.milestones]


def open_model(spec: Spec, data: Path, checkpoint: Path) -> tuple[Network, Dataset]:
    """Build the network and open the validation split."""
    dataset = build_dataset(spec, data, "val")
    torch.manual_seed(spec.seeds[0])
    return build_model(spec, checkpoint, dataset.classes), dataset


def _measure_share(spec: Spec, pairs: list[Pair], runs: Path, data: Path, checkpoint: Path, folder: Path) -> None:
    """Measure ``pairs`` in a process of its own."""
    if spec.training.threads:
        torch.set_num_threads(spec.training.threads)
    measure(spec, *open_model(spec, data, checkpoint), pairs, runs, folder)


@torch.inference_mode()
def measure(spec: Spec, model: Network, dataset: Dataset, pairs: list[Pair], runs: Path, folder: Path) -> None:
    """Write the result of each of ``pairs`` that ``folder`` does not hold yet; UserError if the split is empty."""
    missing = [pair for pair in pairs if not _result_path(folder, pair).exists()]
    progress = _progress(spec, dataset, len(pairs), len(pairs) - len(missing))
    for seed, milestone in missing:
        torch.manual_seed(seed)  # latents may be samples (S2), which must not depend on what was measured before
        step = load_run(model, seed_folder(runs, seed), milestone, spec.evaluation.precision)
        samples = load_samples(dataset, spec.training.workers, progress, f"seed {seed} {milestone}")
        values = EVALUATORS[spec.task](predictor(spec, model), samples, spec, len(dataset.classes))
        write_json(_result_path(folder, (seed, milestone)), _result(seed, milestone, step, values))
    progress.close()


@torch.inference_mode()
def conclude(
    spec: Spec, model: Network, dataset: Dataset, runs: Path, out: Evaluated, state: Path, made_from: Fingerprint
) -> None:
    """Draw the panels of the first seed's final weights, write all results and remove ``state``."""
    results = [read_json(_result_path(state, pair)) for pair in all_pairs(spec)]
    results += [best_of(spec, results, seed) for seed in spec.seeds if spec.evaluation.best]
    torch.manual_seed(spec.seeds[0])
    load_run(model, seed_folder(runs, spec.seeds[0]), "final", spec.evaluation.precision)
    final = read_json(_result_path(state, (spec.seeds[0], "final")))
    draw_panels(spec, model, predictor(spec, model), dataset, final["metrics"], out.panels)
    write_results(spec, results, runs, made_from, out)
    shutil.rmtree(state)


@torch.inference_mode()
def evaluate_monocular(spec: DepthSpec, model: Monocular, data: Path, metrics: Path) -> None:
    """Score a public depth model on whole images of our NYUv2 test split, with our crop, depth range and errors.

    The one result is said to be of the first seed, though nothing depends on it.
    """
    dataset = build_dataset(spec, data, "val")
    device = device_type()
    model.to(device).eval()
    scores, progress = DepthScores(spec.evaluation), _progress(spec, dataset)
    for sample in load_samples(dataset, spec.training.workers, progress, "released weights"):
        metres = model.estimate(sample["image"].to(device)).float().cpu()
        if not metres.isfinite().all():
            raise UserError(f"{spec.name}: the prediction for sample {sample['id']} is not finite; get other weights")
        scores.add(sample["id"], sample["depth"], metres)
    progress.close()
    write_json(metrics, nested([_result(spec.seeds[0], "final", 0, scores.values())]))


def _progress(spec: Spec, dataset: Dataset, passes: int = 1, done: int = 0) -> Progress:
    """Count samples over all passes; UserError if there are none."""
    if not len(dataset):
        raise UserError(f"the validation split of {spec.dataset} is empty; prepare the dataset again")
    return Progress(passes * len(dataset), f"evaluate {spec.name}", "samples", done * len(dataset))


def _result(seed: int, milestone: str, step: int, values: Iterator[tuple[str, float]]) -> Result:
    rounded = {name: round(value, DECIMALS) for name, value in values}
    return {"seed": seed, "milestone": milestone, "step": step, "metrics": rounded}


def _result_path(folder: Path, pair: Pair) -> Path:
    return folder / f"seed{pair[0]}-{pair[1]}.json"


def load_run(model: Network, run: Path, milestone: str, precision: str = "fp32") -> int:
    """Load the weights of a milestone into ``model`` for evaluation in ``precision``, and return its training step."""
    manifest, path = read_manifest(run, "milestones"), run / f"{milestone}.safetensors"
    listed = manifest["files"].get(path.name)
    if milestone not in manifest["milestones"] or not path.is_file() or sha256(path) != listed:
        raise UserError(f"{path} is missing or not the file that {run / 'manifest.json'} lists; run train again")
    model.load_trained_state(read_safetensors(path, "run train again"))
    set_up_inference(model, device_type(), precision)
    return manifest["milestones"][milestone]


def read_sample(dataset: Dataset, index: int) -> dict:
    """Read a sample, with ``native_label`` where the dataset has one."""
    native = {"native_label": dataset.native_label(index)} if hasattr(dataset, "native_label") else {}
    return dataset.sample(index) | native


def load_samples(dataset: Dataset, workers: int, progress: Progress, note: str) -> Iterator[dict]:
    """Yield every sample once, in order, decoded in ``workers`` processes, and count it on ``progress``."""
    samples, positions = Samples(partial(read_sample, dataset)), [(index,) for index in range(len(dataset))]
    for sample in DataLoader(
        samples, batch_size=None, sampler=positions, num_workers=workers, worker_init_fn=end_if_stuck
    ):
        if isinstance(sample, UserError):
            raise sample
        yield sample
        progress.advance(note=note)


def predictor(spec: Spec, model: Network) -> Predict:
    """Return ``model`` as a function of a batch; UserError naming the sample if a prediction is not finite."""

    def predict(batch: dict) -> Tensor:
        output = model(to_model(batch, model)).float()
        finite = output.isfinite().flatten(1).all(1).tolist()
        if not all(finite):
            problem = f"the prediction for sample {batch['id'][finite.index(False)]} is not finite"
            raise UserError(f"{spec.name}: {problem}; lower training.optimizer.lr and train again")
        return output

    return predict
