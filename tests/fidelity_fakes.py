"""What the tests of docs/fidelity.md share: which test shows which setting, and specs by the names of settings."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fixtures.parity import narrow
from vpd.config.params import Experiment, Params, load_params, merge
from vpd.config.schema import Spec

ROOT = Path(__file__).parent.parent
EFFECTS: dict[str, dict[str, list[str]]] = {}
"""Id of docs/fidelity.md -> setting -> tests that show its effect."""
SECTIONS = ("model", "data", "training", "evaluation")


def shows(**settings: str) -> Callable:
    """Mark a test as the proof that settings (their keys, separated by spaces) do what the row of an id says."""

    def note(test: Callable) -> Callable:
        for name, keys in settings.items():
            for key in keys.split():
                EFFECTS.setdefault(name, {}).setdefault(key, []).append(test.__name__)
        return test

    return note


@cache
def params(protocol: str = "official", scale: str = "paper") -> Params:
    """The project's params.yaml."""
    return load_params(ROOT / "params.yaml", scale, protocol)


def experiment(
    name: str,
    changes: dict[str, Any] | None = None,
    *,
    protocol: str = "official",
    scale: str = "paper",
    schedule: str | None = None,
) -> Spec:
    """Resolve an experiment as if its line in params.yaml also had ``changes``, such as {"model.timestep": 0}."""
    known = params(protocol, scale)
    line = known.experiments[name]
    written = {section: getattr(line, section) for section in SECTIONS}
    for key, value in (changes or {}).items():
        for part in reversed(key.split(".")):
            value = {part: value}
        written = merge(written, value)
    changed = Experiment.model_validate(line.model_dump() | written | {"schedule": schedule or line.schedule})
    document = known.document.model_copy(update={"experiments": {name: changed}})
    return Params(document, known.source).resolve(name)


def checkpoint_of_factor_8(folder: Path, seed: int = 1) -> Path:
    """A narrow Stable Diffusion folder whose VAE halves three times and whose text model takes 77 tokens."""
    torch.manual_seed(seed)
    return narrow.write_checkpoint(folder, vae=(8, 8, 16, 16), length=77)


def rng(seed: int = 0) -> np.random.Generator:
    """A generator of random numbers."""
    return np.random.default_rng(seed)
