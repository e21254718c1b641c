"""The training loop that the phases of pre-training share: resumable to the bit, and silent about what is trained."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

from vpd.pretraining.diffusion.ema import EMA
from vpd.pretraining.workdir import Workplace
from vpd.utils.errors import UserError
from vpd.utils.files import atomic_path
from vpd.utils.progress import Progress


def seed_of(*key: object) -> int:
    """A 63-bit seed that depends on ``key`` and nothing else."""
    text = "/".join(map(str, key))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator_of(*key: object) -> Generator:
    """A CPU generator seeded by ``key``."""
    return Generator().manual_seed(seed_of(*key))


@contextlib.contextmanager
def initialised_by(*key: object) -> Iterator[None]:
    """Weights made in the block depend on ``key`` alone; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_of(*key))
        yield


@contextlib.contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Torch computes with ``count`` threads in the block, since another number gives other last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def constant_after(warmup: int) -> Callable[[int], float]:
    """Learning-rate factor that rises linearly to 1 within ``warmup`` steps and stays there."""
    return lambda step: min(1.0, (step + 1) / max(warmup, 1))


def rise_and_fall(steps: int) -> Callable[[int], float]:
    """Learning-rate factor that rises linearly to 1 within a tenth of ``steps`` and falls linearly to 0 at the end."""
    rise = max(steps // 10, 1)
    return lambda step: min((step + 1) / rise, (steps - step) / max(steps - rise + 1, 1), 1.0)


@dataclass
class Phase:
    """One model on its way through ``steps`` optimizer steps of AdamW at ``lr`` times ``factor(step)``.

    Randomness of step s comes from (seed, phase, s) alone, so that model, optimizer, average and losses are the whole
    state, and a run that is resumed makes the same bits as one that never stopped.
    """

    name: str
    settings: str
    """Where params.yaml has them, for messages."""
    model: nn.Module
    steps: int
    lr: float
    factor: Callable[[int], float]
    groups: list[dict] | None = None
    """Parameters in groups of their own settings; all of the model's by default."""
    largest_gradient: float | None = None
    """Norm to which a larger gradient is scaled down."""
    ema: EMA | None = None

    def train(
        self,
        place: Workplace,
        loss_of: Callable[[Generator], Tensor],
        after: Callable[[int], None] = lambda step: None,
    ) -> list[float]:
        """Train from the last state in ``place`` to the end and return the loss of every step.

        ``loss_of`` draws its batch from the generator; ``after`` is called with the steps done, before a state is kept.
        """
        self.model.to(place.device).train()
        optimizer = torch.optim.AdamW(self.groups or self.model.parameters(), lr=self.lr, fused=True)
        losses = self._resume(place, optimizer)
        progress = Progress(self.steps, self.settings, "steps", len(losses))
        for step in range(len(losses), self.steps):
            losses.append(self._step(step, optimizer, place, loss_of))
            after(step + 1)
            if (step + 1) % place.save_every == 0 or step + 1 == self.steps:
                self._save(place, optimizer, losses)
            progress.advance(note=f"loss {losses[-1]:.4f}")
            for observer in place.observers:
                observer(self.name, step + 1, losses[-1])
        progress.close()
        self.model.eval()
        return losses

    def _step(
        self, step: int, optimizer: torch.optim.Optimizer, place: Workplace, loss_of: Callable[[Generator], Tensor]
    ) -> float:
        # Dropout and stochastic depth inside a library's network draw from the global generator.
        with initialised_by(place.seed, self.name, "network", step):
            loss = loss_of(generator_of(place.seed, self.name, step))
        value = loss.item()
        if not math.isfinite(value):
            raise UserError(
                f"the loss of {self.settings} is {value} at step {step + 1}; lower {self.settings}.lr or look at the images"
            )
        for group in optimizer.param_groups:
            group["lr"] = self.lr * self.factor(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.largest_gradient is not None:
            nn.utils.clip_grad_norm_(trained_parameters(self.model), self.largest_gradient)
        optimizer.step()
        if self.ema is not None:
            self.ema.update(self.model, step)
        return value

    def _path(self, place: Workplace) -> Path:
        return place.folder / f"{self.name}.pt"

    def _save(self, place: Workplace, optimizer: torch.optim.Optimizer, losses: list[float]) -> None:
        state = {
            "model": self.model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "ema": self.ema.weights if self.ema is not None else {},
            "losses": torch.tensor(losses, dtype=torch.float64),
        }
        with atomic_path(self._path(place)) as temporary:
            torch.save(state, temporary)

    def _resume(self, place: Workplace, optimizer: torch.optim.Optimizer) -> list[float]:
        if not self._path(place).exists():
            return []
        state = torch.load(self._path(place), map_location=place.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        if self.ema is not None:
            self.ema.weights = state["ema"]
        return state["losses"].tolist()


def trained_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Parameters that take a gradient."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
