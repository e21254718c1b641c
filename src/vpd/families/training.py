"""The loop in which every objective is trained: AdamW, warm-up and decay, resumable to the bit."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from vpd.checkpoints.loop import Workplace, generator_of, initialised_by, rise_and_fall
from vpd.errors import UserError
from vpd.families.objective import Objective
from vpd.files import atomic_path
from vpd.progress import Progress
from vpd.spec import ObjectiveSpec

CLIP = 3.0
"""Largest norm of the gradient."""


@dataclass
class Training:
    """One objective on its way through ``spec.steps`` steps.

    Randomness of step s comes from (seed, name, s) alone, so that network, optimizer and losses are the whole state, and
    a run that is resumed makes the same bits as one that never stopped.
    """

    name: str
    """Of the phase, as history.csv has it."""
    key: str
    """Where params.yaml has the settings, for messages."""
    objective: Objective
    spec: ObjectiveSpec

    def run(self, place: Workplace) -> list[float]:
        """Train from the last state in ``place`` to the end and return the loss of every step."""
        self.objective.to(place.device).train()
        optimizer = torch.optim.AdamW(parameter_groups(self.objective, self.spec.weight_decay), fused=True)
        losses = self._resume(place, optimizer)
        progress = Progress(self.spec.steps, f"pre-training {self.key}", "steps", len(losses))
        for step in range(len(losses), self.spec.steps):
            losses.append(self._step(step, optimizer, place))
            if (step + 1) % place.save_every == 0 or step + 1 == self.spec.steps:
                self._save(place, optimizer, losses)
            progress.advance(note=f"loss {losses[-1]:.4f}")
            for observer in place.observers:
                observer(self.name, step + 1, losses[-1])
        progress.close()
        self.objective.eval()
        return losses

    def _step(self, step: int, optimizer: torch.optim.Optimizer, place: Workplace) -> float:
        generator = generator_of(place.seed, self.name, step)
        batch = self.objective.draw(self.spec.batch_size, generator)
        # Dropout and stochastic depth inside a library's network draw from the global generator.
        with initialised_by(place.seed, self.name, "network", step):
            loss = self.objective.loss(batch, generator)
        value = loss.item()
        if not math.isfinite(value):
            raise UserError(f"the loss of {self.key} is {value} at step {step + 1}; lower {self.key}.lr")
        for group in optimizer.param_groups:
            group["lr"] = self.spec.lr * rise_and_fall(self.spec.steps)(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(trained(self.objective), CLIP)
        optimizer.step()
        self.objective.after((step + 1) / self.spec.steps)
        return value

    def _path(self, place: Workplace) -> Path:
        return place.folder / f"{self.name}.pt"

    def _save(self, place: Workplace, optimizer: torch.optim.Optimizer, losses: list[float]) -> None:
        state = {
            "objective": self.objective.state_dict(),
            "optimizer": optimizer.state_dict(),
            "losses": torch.tensor(losses, dtype=torch.float64),
        }
        with atomic_path(self._path(place)) as temporary:
            torch.save(state, temporary)

    def _resume(self, place: Workplace, optimizer: torch.optim.Optimizer) -> list[float]:
        if not self._path(place).exists():
            return []
        state = torch.load(self._path(place), map_location=place.device, weights_only=True)
        self.objective.load_state_dict(state["objective"])
        optimizer.load_state_dict(state["optimizer"])
        return state["losses"].tolist()


def trained(network: nn.Module) -> list[nn.Parameter]:
    """Parameters that take a gradient."""
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


def parameter_groups(network: nn.Module, weight_decay: float) -> list[dict]:
    """Matrices and kernels are decayed; vectors (biases, norms, tokens) are not."""
    matrices = [parameter for parameter in trained(network) if parameter.ndim > 1]
    vectors = [parameter for parameter in trained(network) if parameter.ndim <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
