"""The project's training step on random batches, in one precision."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from vpd.config.schema import Spec
from vpd.evaluation.inference import to_model
from vpd.planning.networks import CLASSES, FORMATS, Parts, build, make_batch
from vpd.training.loader import Plan
from vpd.training.loop import agree, gradient, start_accelerator
from vpd.training.optim import build_optimizer
from vpd.training.state import seed_all
from vpd.utils.devices import device_type


@dataclass(frozen=True)
class Mode:
    """A precision: the project's setting, and where TF32 stands for fp32 on a GPU."""

    precision: str
    products: bool
    convolutions: bool

    def enter(self) -> None:
        """Let torch compute like this from now on."""
        torch.backends.cuda.matmul.allow_tf32 = self.products
        torch.backends.cudnn.allow_tf32 = self.convolutions


DEFAULT = "fp32, convolutions tf32"  # torch's own setting, hence the project's
MODES = {
    "bf16": Mode("bf16", products=False, convolutions=True),
    "tf32": Mode("fp32", products=True, convolutions=True),
    "fp32": Mode("fp32", products=False, convolutions=False),
    DEFAULT: Mode("fp32", products=False, convolutions=True),
}


def network(spec: Spec, parts: Parts) -> nn.Module:
    """Build a network where it will be used, with the same random weights at each call."""
    seed_all(0)
    with torch.device(device_type()):
        return build(spec, parts, CLASSES[FORMATS[spec.task]])


class Trainer:
    """A network in training, without a dataset."""

    def __init__(self, spec: Spec, parts: Parts, mode: Mode) -> None:
        AcceleratorState._reset_state()  # else the first precision would be that of the whole process
        self.spec, self.accelerator = spec, start_accelerator(spec.training.precision)
        mode.enter()
        model = network(spec, parts).train()
        self.model, self.optimizer = self.accelerator.prepare(model, build_optimizer(model, spec.training.optimizer))

    def batches(self, images: int, count: int = 2) -> list[dict]:
        """Make micro-batches in main memory, pinned for a GPU as the project's loader does."""
        made = [make_batch(self.spec, images, CLASSES[FORMATS[self.spec.task]]) for _ in range(count)]
        return [{name: self._pinned(value) for name, value in batch.items()} for batch in made]

    def _pinned(self, value: Any) -> Any:
        on_gpu = self.accelerator.device.type == "cuda"
        return value.pin_memory() if on_gpu and isinstance(value, Tensor) else value

    def step(self, batches: list[dict], number: int) -> float:
        """Make one step, with one of ``batches`` as each of its micro-batches, and return its loss."""
        accumulate, batch = self.spec.training.accumulate, batches[number % len(batches)]
        images = accumulate * len(batch["image"])
        plan = Plan(images, images, accumulate, drop_last=True, seed=0)
        seed_all(0, number)
        own = gradient(self.accelerator, self.model, itertools.repeat(batch), plan, number, self.spec.training.loss)
        value, _ = agree(self.accelerator, own, False)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return value

    @torch.no_grad()
    def features(self, batch: dict) -> list[Tensor]:
        """Compute the maps of a batch; they are in single precision and main memory."""
        with self.accelerator.autocast():
            maps = self.model.eval().features(to_model(batch, self.model)).maps
        self.model.train()
        return [level.float().cpu() for level in maps]
