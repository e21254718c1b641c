"""Scores of a public depth model on our NYUv2 test split, with our crop, depth range and errors."""

from __future__ import annotations

from pathlib import Path

import torch

from vpd.config.schema import DepthSpec
from vpd.datasets import build_dataset
from vpd.evaluation.depth import DepthScores
from vpd.evaluation.results import DECIMALS, header
from vpd.evaluation.run import load_samples
from vpd.models.monocular import Monocular
from vpd.utils.errors import UserError
from vpd.utils.files import write_json
from vpd.utils.progress import Progress


@torch.inference_mode()
def evaluate_monocular(spec: DepthSpec, model: Monocular, data: Path, metrics: Path, facts: dict) -> None:
    """Score ``model`` on whole images of the test split of ``spec`` and write the metrics file, with ``facts`` in it.

    ``spec.name`` is the model's; there is one result, of the first seed, though nothing depends on a seed.
    """
    dataset = build_dataset(spec, data, "val")
    if not len(dataset):
        raise UserError(f"the validation split of {spec.dataset} is empty; prepare the dataset again")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device).eval()
    scores, progress = DepthScores(spec.evaluation), Progress(len(dataset), f"evaluate {spec.name}", "samples")
    for sample in load_samples(dataset, spec.training.workers, progress, "released weights"):
        metres = model.estimate(sample["image"].to(device)).float().cpu()
        if not metres.isfinite().all():
            raise UserError(f"{spec.name}: the prediction for sample {sample['id']} is not finite; get other weights")
        scores.add(sample["id"], sample["depth"], metres)
    progress.close()
    values = {name: round(value, DECIMALS) for name, value in scores.values()}
    result = {"seed": spec.seeds[0], "milestone": "final", "step": 0, "metrics": values}
    write_json(metrics, {**header(spec), **facts, "results": [result]})
