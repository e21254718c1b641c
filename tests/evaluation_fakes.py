"""Small datasets, models and specs with known answers for the evaluation tests."""

from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from vpd.config.params import load_params, merge
from vpd.config.paths import evaluated
from vpd.config.schema import TASKS, Spec
from vpd.evaluation.run import all_pairs, conclude, measure
from vpd.training.runs import gather, publish
from vpd.utils.files import locked
from vpd.utils.fingerprint import Fingerprint, fingerprint

CLASSES = ["wall", "floor", "ball", "box", "lamp"]
COLOURS = torch.tensor([[200, 190, 180], [120, 80, 40], [220, 30, 30], [30, 60, 220], [250, 240, 90]])
"""Of the classes."""
SHAPES = {"segmentation": (40, 56), "referring": (32, 32), "depth": (32, 48)}
EXPERIMENTS = {"segmentation": "seg-fast", "referring": "refcoco-fast", "depth": "depth-fast"}
STRATEGY = {"segmentation": "class-names", "referring": "expression", "depth": "scene"}
ATTENTION = {"places": ["down", "up"], "limit": 0.5, "gradient": "detached"}
SIZES = {"short_side": 32, "long_side": 128, "crop": 32, "stride": 21, "ratios": [1.0, 1.25], "multi_scale": True}
LIMITS = {"crop": [2, 30, 3, 45], "min_depth": 1e-3, "max_depth": 10.0}
EVALUATION = {
    "segmentation": SIZES,
    "referring": {"size": 32, "thresholds": [0.5, 0.6, 0.7, 0.8, 0.9]},
    "depth": {"window": 32, "windows": 2, "flip": True, **LIMITS},
}


@cache
def _smoke(task: str) -> dict:
    return load_params(Path(__file__).parents[1] / "params.yaml", "smoke").resolve(EXPERIMENTS[task]).model_dump()


def make_spec(task: str, evaluation: dict | None = None, **changes) -> Spec:
    """A small spec of ``task``, from the smoke scale; ``evaluation`` and ``changes`` replace settings."""
    prompt = {"strategy": STRATEGY[task], "templates": "single", "length": 12}
    value = {
        "name": f"{task}-small",
        "dataset": "drawn",
        "seeds": [0, 1],
        "model": {"attention": ATTENTION, "prompt": prompt},
        "training": {"workers": 0, "threads": None},
        "evaluation": {**EVALUATION[task], "batch_size": 4, "panels": 2, "best": False, **(evaluation or {})},
    }
    merged = merge(_smoke(task), value, changes)
    merged["training"]["milestones"] = {"half": 0.5, "final": 1.0}
    return TASKS[task].model_validate(merged)


def silent(spec: Spec) -> Spec:
    """The spec without recorded attention."""
    return spec.model_validate(merge(spec.model_dump(), {"model": {"attention": {"places": []}}}))


class Drawings:
    """Coloured rectangles on a wall and a floor, with the answers that each task asks for."""

    def __init__(self, task: str, count: int = 5) -> None:
        self.task, self.count = task, count
        self.classes = {"segmentation": CLASSES, "referring": [], "depth": ["kitchen", "living_room"]}[task]

    def __len__(self) -> int:
        return self.count

    def labels(self, index: int) -> Tensor:
        height, width = SHAPES[self.task]
        labels = torch.zeros(height, width, dtype=torch.int64)
        labels[height // 2 :] = 1
        for number in (2, 3, 4)[: 1 + index % 3]:
            top, left = (5 * number + 3 * index) % (height - 10), (11 * number + 7 * index) % (width - 12)
            labels[top : top + 10, left : left + 12] = number
        return labels

    def sample(self, index: int, epoch: int = 0) -> dict:
        labels = self.labels(index)
        image = COLOURS[labels].permute(2, 0, 1).to(torch.uint8)
        sample = {"id": f"drawing-{index}", "image": image}
        if self.task == "segmentation":
            labels[0] = 255
            return {**sample, "label": labels}
        sample["image"] = image.float() / 127.5 - 1
        if self.task == "referring":
            text = "the red ball" if index % 2 else "the red ball that lies on the brown floor"
            return {**sample, "image_id": f"image-{index // 2}", "text": text, "label": (labels == 2).long()}
        depth = 1.0 + labels.float() + torch.linspace(0, 1, labels.shape[1])
        depth[0] = 0
        return {**sample, "depth": depth, "class_id": torch.tensor(index % 2)}


class SmallModel(nn.Module):
    """One convolution at a coarse stride per task, with the interface of the real models."""

    def __init__(self, task: str, classes: int = len(CLASSES)) -> None:
        super().__init__()
        self.task = task
        outputs = {"segmentation": classes, "referring": 2, "depth": 1}[task]
        self.head = nn.Conv2d(3, outputs, 3, padding=1)
        self.keys: list[list[str]] = []

    def forward(self, batch: dict) -> Tensor:
        self.keys.append(batch["key"])
        size = batch["image"].shape[-2:]
        if self.task == "segmentation":
            return self.head(F.avg_pool2d(batch["image"], 4))
        maps = self.head(batch["image"])
        return maps if self.task == "referring" else 10 * F.avg_pool2d(maps, 5, 1, 2).sigmoid().reshape(-1, 1, *size)

    def features(self, batch: dict):
        tokens = len(CLASSES) if self.task == "segmentation" else 12
        coarse = F.avg_pool2d(batch["image"], 4).mean(1, keepdim=True)
        shifts = [coarse.roll(shift, -1) for shift in range(tokens)]
        attention = [None, torch.cat(shifts, 1).softmax(1), F.avg_pool2d(torch.cat(shifts, 1), 2).softmax(1)]
        return type("Features", (), {"attention": attention})()

    def trained_state(self) -> dict[str, Tensor]:
        return {name: value.contiguous() for name, value in self.state_dict().items()}

    def load_trained_state(self, state: dict[str, Tensor]) -> None:
        self.load_state_dict(state)


def write_runs(spec: Spec, folder: Path) -> None:
    """Write runs with random weights as training does."""
    folder.mkdir(parents=True)
    for seed in spec.seeds:
        run = folder / f"seed{seed}"
        weights = {milestone: folder / f"{milestone}.safetensors" for milestone in spec.training.milestones}
        for number, path in enumerate(weights.values()):
            torch.manual_seed(10 * seed + number)
            save_file(SmallModel(spec.task).trained_state(), path)
        publish(run, weights, {"half": 5, "final": 10}, [], made_from(spec, seed))
    gather(folder, spec.seeds, folder / "history.csv")


def made_from(spec: Spec, seed: int) -> Fingerprint:
    """What a run claims to have been made from."""
    return fingerprint({"spec": spec.model_dump(mode="json"), "seed": seed}, [])


class Experiment:
    """Runs (written if they are not there), places and a way to evaluate one small experiment without attention."""

    def __init__(self, folder: Path, task: str = "referring", evaluation: dict | None = None) -> None:
        self.spec, self.folder, self.runs = silent(make_spec(task, evaluation)), folder, folder / "runs"
        self.model, self.data = SmallModel(task), Drawings(task)
        if not self.runs.exists():
            write_runs(self.spec, self.runs)

    def evaluate(self, name: str = "out") -> bytes:
        out = evaluated(self.folder / name, self.spec.name)
        key = fingerprint(self.spec.model_dump(mode="json"), [], {"runs": self.runs})
        state = self.folder / "state" / key.key
        with locked(state):
            measure(self.spec, self.model, self.data, all_pairs(self.spec), self.runs, state)
            conclude(self.spec, self.model, self.data, self.runs, out, state, key)
        return out.metrics.read_bytes()
