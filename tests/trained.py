"""A drawn dataset, a narrow network with lively random weights and its run folder, for each task."""

from pathlib import Path

import numpy as np
import torch
from numpy import ndarray
from safetensors.torch import save_file

from fixtures.parity.narrow import make_spec, write_factor_4
from vpd.config.schema import DatasetSpec, Spec
from vpd.datasets import build_dataset
from vpd.models import build_model
from vpd.models.network import VPD
from vpd.predict import predict
from vpd.stages.data import prepare_dataset
from vpd.training.runs import run_settings
from vpd.utils.digests import digest, sha256
from vpd.utils.fingerprint import Fingerprint, write_manifest

DATASETS = {
    task: DatasetSpec(format=kind, source="synthetic", images=images, size=size)
    for task, kind, images, size in (
        ("segmentation", "ade20k", {"training": 1, "validation": 2}, (88, 64)),
        ("referring", "refcoco", {"train": 2, "val": 1, "testA": 1, "testB": 1}, (80, 64)),
        ("depth", "nyuv2", {"train": 1, "test": 1}, (96, 64)),
    )
}
TASKS = tuple(DATASETS)
OPTIONS = {"segmentation": {}, "referring": {"text": "the red ball"}, "depth": {"scene": "kitchen"}}
KEYS = {"segmentation": "labels", "referring": "probability", "depth": "depth"}


class World:
    """A drawn dataset, a narrow network with lively random weights and its run folder, for each task."""

    def __init__(self, folder: Path) -> None:
        self.checkpoint = write_factor_4(folder / "checkpoint")
        self.specs, self.data, self.weights, self.models = {}, {}, {}, {}
        for task, dataset in DATASETS.items():
            self.data[task] = folder / task
            prepare_dataset(task, dataset, folder / task)
            spec = make_spec(task, head={"dropout": 0.1} if task == "segmentation" else None)
            variant = {"variant": "refcoco"} if task == "referring" else {}
            self.specs[task] = spec.model_copy(update=variant)
            self.models[task] = lively(build_model(spec, self.checkpoint, self.reader(task).classes))
            self.weights[task] = folder / f"runs/{task}/final.safetensors"
            write_run(self.weights[task], self.models[task].trained_state(), self.specs[task])

    def reader(self, task: str):
        return build_dataset(self.specs[task], self.data[task], "val")

    def predict(self, task: str, images: list[Path], out: Path, **options) -> int:
        options = {**OPTIONS[task], **options}
        return predict(self.specs[task], self.weights[task], self.checkpoint, images, out, **options)

    def result(self, task: str, image: Path, out: Path, **options) -> ndarray:
        assert self.predict(task, [image], out, **options) == 0
        return arrays(out / f"{image.stem}.npz")[KEYS[task]]


def lively(model: VPD) -> VPD:
    """Outputs that differ from pixel to pixel, which fresh heads' hardly do."""
    torch.manual_seed(3)
    with torch.no_grad():
        for weight in model.head.parameters():
            if weight.ndim > 1:
                weight.copy_(2 * torch.randn_like(weight) / weight[0].numel() ** 0.5)
    return model.eval()


def write_run(path: Path, state: dict[str, torch.Tensor], spec: Spec) -> None:
    """The weights of a trained network with their manifest, as training leaves them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, path)
    made_from = Fingerprint(digest(run_settings(spec, spec.seeds[0])), "")
    write_manifest(path.parent, made_from, {}, {path.name: sha256(path)})


def arrays(path: Path) -> dict[str, ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)
