"""The resumable state of a training run: complete files in a folder of their own, the newest two kept.

The folder is no output of any stage, so that no orchestrator deletes it when a job fails.
"""

import random
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import optim

from vpd.models.base import Network
from vpd.training.runs import weights_metadata
from vpd.utils.digests import sha256
from vpd.utils.errors import UserError
from vpd.utils.files import atomic_path
from vpd.utils.fingerprint import Fingerprint

KEPT_STATES = 2


@dataclass
class Journal:
    """What a run has done so far, apart from its weights."""

    step: int = 0
    started: float = 0.0  # Unix time of the first attempt
    seconds: float = 0.0  # of training, over all attempts, up to the last saved state
    losses: list[float] = field(default_factory=list)  # of the steps since the last log
    rows: list[dict] = field(default_factory=list)  # the history
    weights: dict[str, str] = field(default_factory=dict)  # milestones kept so far and the SHA-256 of their files


def state_folder(state: Path, made_from: Fingerprint) -> Path:
    """Folder of the run with this fingerprint; another spec, seed, dataset, checkpoint or code has another one."""
    others = [path.name for path in sorted(state.glob("*")) if path.is_dir() and path.name != made_from.key]
    if others:
        _say(f"{state} also holds progress made with other settings ({', '.join(others)}), which this run cannot use")
    return state / made_from.key


def save_state(folder: Path, journal: Journal, model: Network, optimizer: optim.Optimizer) -> None:
    """Write everything a later process needs to continue after ``journal.step`` to the bit.

    Random generators are not among it: the loop seeds them anew in every step.
    """
    content = {"journal": asdict(journal), "model": model.trained_state(), "optimizer": optimizer.state_dict()}
    with atomic_path(folder / f"step-{journal.step:09d}.pt") as temporary:
        torch.save(content, temporary)
    for old in _states(folder)[KEPT_STATES:]:
        old.unlink()


def load_state(folder: Path, model: Network, optimizer: optim.Optimizer) -> Journal:
    """Restore the newest undamaged state and return its journal; an empty one if there is none.

    A damaged file (cut short, or a milestone of it gone) is reported in one line and the one before is tried.
    """
    for path in _states(folder):
        content = _read_state(path)
        if content is not None:
            _restore(path, content, model, optimizer)
            _say(f"continuing after step {content['journal']['step']} ({path})")
            return Journal(**content["journal"])
    return Journal()


def _read_state(path: Path) -> dict | None:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        for name, digest in content["journal"]["weights"].items():
            if sha256(weights_path(path.parent, name)) != digest:
                raise ValueError(f"{name}.safetensors is not the file it was saved with")
    except Exception as error:  # damage has no type of its own: zip, pickle and key errors all occur
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        _say(f"{path} is damaged ({reason}); going back to the state before it, or to the start")
        return None
    return content


def _restore(path: Path, content: dict, model: Network, optimizer: optim.Optimizer) -> None:
    try:
        model.load_trained_state(content["model"])
        optimizer.load_state_dict(content["optimizer"])
    except (UserError, RuntimeError, KeyError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{path} does not fit this version's model ({reason}); delete {path.parent} to start again"
        ) from error


def _states(folder: Path) -> list[Path]:
    """State files, newest first."""
    return sorted(folder.glob("step-*.pt"), reverse=True)


def weights_path(folder: Path, milestone: str) -> Path:
    """Where a milestone's weights wait until the run is finished."""
    return folder / f"{milestone}.safetensors"


def keep_weights(folder: Path, milestone: str, model: Network, seed: int, step: int) -> str:
    """Write the model's weights as a milestone and return the file's SHA-256; UserError if any is not finite."""
    tensors = model.trained_state()
    for name, value in tensors.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise UserError(f"{name} is not finite after step {step}; lower training.optimizer.lr and train again")
    with atomic_path(weights_path(folder, milestone)) as temporary:
        save_file(tensors, temporary, metadata=weights_metadata(seed, milestone, step))
    return sha256(weights_path(folder, milestone))


def seed_all(*numbers: int) -> None:
    """Seed Python, NumPy and torch (every device) from the numbers, such as (seed, step)."""
    value = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    random.seed(value)
    np.random.seed(value)
    torch.manual_seed(value)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
