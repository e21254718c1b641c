"""The training loop that all phases of pre-training share and the files that every one writes; a run resumes to the bit."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

from vpd.pretraining.workdir import Workdir
from vpd.utils.errors import UserError
from vpd.utils.files import atomic_path
from vpd.utils.fingerprint import Fingerprint, write_manifest
from vpd.utils.progress import Progress

HISTORY_EVERY = 10  # steps that one line of history.csv averages
LossOf = Callable[[Generator], Tensor]  # draws all that is random from the generator and returns the loss


def seed_of(*key: object) -> int:
    """A 63-bit seed that depends on ``key`` and nothing else."""
    text = "/".join(map(str, key))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator_of(*key: object) -> Generator:
    """A CPU generator seeded by ``key``."""
    return Generator().manual_seed(seed_of(*key))


@contextlib.contextmanager
def initialised_by(*key: object) -> Iterator[None]:
    """Seed torch's global generator by ``key`` in the block, and restore its state afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_of(*key))
        yield


def constant_after(warmup: int) -> Callable[[int], float]:
    """Learning-rate factor that rises linearly to 1 within ``warmup`` steps and stays there."""
    return lambda step: min(1.0, (step + 1) / max(warmup, 1))


def rise_and_fall(steps: int) -> Callable[[int], float]:
    """Learning-rate factor that rises linearly to 1 within a tenth of ``steps`` and falls linearly to 0 at the end."""
    rise = max(steps // 10, 1)
    return lambda step: min((step + 1) / rise, (steps - step) / max(steps - rise + 1, 1), 1.0)


@dataclass
class Phase:
    """Training of one model by AdamW with the learning rate ``lr * factor(step)``.

    All randomness of a step comes from (seed, phase, step), so that there is no random state to save.
    """

    name: str  # names the state file and, with the seed, all randomness: another name gives other weights
    settings: str  # key in params.yaml, for progress and messages
    model: nn.Module
    steps: int
    lr: float
    factor: Callable[[int], float]
    groups: list[dict] | None = None  # parameter groups with settings of their own; default: all parameters in one
    max_gradient_norm: float | None = None
    ema_decay: float | None = None
    average: dict[str, Tensor] = field(default_factory=dict)  # moving average of the parameters, with ``ema_decay``

    def train(self, workdir: Workdir, loss_of: LossOf, after: Callable[[int], None] = lambda step: None) -> list[float]:
        """Train from the last saved state; return the loss of every step. ``after`` gets each step's number from 1."""
        self.model.to(workdir.device).train()
        self.average = (
            {} if self.ema_decay is None else {n: w.detach().clone() for n, w in self.model.named_parameters()}
        )
        optimizer = torch.optim.AdamW(self.groups or self.model.parameters(), lr=self.lr, fused=True)
        path, losses = workdir.folder / f"{self.name}.pt", list[float]()
        if path.exists():
            state = torch.load(path, map_location=workdir.device, weights_only=True)
            self.model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            self.average, losses = state["average"], state["losses"].tolist()
        progress = Progress(self.steps, self.settings, "steps", len(losses))
        for step in range(len(losses), self.steps):
            losses.append(self._step(step, optimizer, workdir, loss_of))
            after(step + 1)
            if (step + 1) % workdir.save_every == 0 or step + 1 == self.steps:
                state = {"model": self.model.state_dict(), "optimizer": optimizer.state_dict(), "average": self.average}
                with atomic_path(path) as temporary:
                    torch.save(state | {"losses": torch.tensor(losses, dtype=torch.float64)}, temporary)
            progress.advance(note=f"loss {losses[-1]:.4f}")
        progress.close()
        self.model.eval()
        return losses

    def _step(self, step: int, optimizer: torch.optim.Optimizer, workdir: Workdir, loss_of: LossOf) -> float:
        # Dropout and stochastic depth inside a library's network draw from the global generator.
        with initialised_by(workdir.seed, self.name, "network", step):
            loss = loss_of(generator_of(workdir.seed, self.name, step))
        value = loss.item()
        if not math.isfinite(value):
            raise UserError(
                f"the loss of {self.settings} is {value} at step {step + 1}; lower {self.settings}.lr or look at the images"
            )
        for group in optimizer.param_groups:
            group["lr"] = self.lr * self.factor(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.max_gradient_norm is not None:
            nn.utils.clip_grad_norm_(trained_parameters(self.model), self.max_gradient_norm)
        optimizer.step()
        if self.ema_decay is not None:
            update_average(self.average, self.model, step, self.ema_decay)
        return value


@torch.no_grad()
def update_average(average: dict[str, Tensor], model: nn.Module, step: int, decay: float) -> None:
    """Average ``a <- d a + (1 - d) w`` with ``d = min(decay, (1 + step) / (10 + step))``, in place."""
    # The memory is short at first, so that the initial weights, which are noise, do not reach the early milestones.
    decay = min(decay, (1 + step) / (10 + step))
    for name, weight in model.named_parameters():
        average[name].lerp_(weight, 1.0 - decay)


def trained_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Parameters that take a gradient."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def averaged(losses: list[float]) -> list[tuple[int, float]]:
    """(step, mean loss) of every HISTORY_EVERY steps, at the last of them; the final chunk may be shorter."""
    chunks = [losses[start : start + HISTORY_EVERY] for start in range(0, len(losses), HISTORY_EVERY)]
    return [(HISTORY_EVERY * index + len(chunk), sum(chunk) / len(chunk)) for index, chunk in enumerate(chunks)]


def complete(
    folder: Path, made_from: Fingerprint, losses: Mapping[str, list[float]], facts: Mapping[str, object]
) -> None:
    """Add history.csv, from the losses of every step by phase, to the networks in ``folder`` and, last, the manifest."""
    with atomic_path(folder / "history.csv") as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("phase", "step", "loss"))
        for phase, values in losses.items():
            writer.writerows((phase, step, f"{loss:.6f}") for step, loss in averaged(values))
    write_manifest(folder, made_from, facts)


def turn_off_library_bars() -> None:
    """Turn off the progress bars of diffusers and transformers: standard error is for the stage's own progress."""
    for name in {"diffusers", "transformers"} & sys.modules.keys():
        sys.modules[name].utils.logging.disable_progress_bar()
