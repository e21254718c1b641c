"""Where a pre-training keeps its resumable states, and whether it is needed at all."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from vpd.utils.files import read_json

Observer = Callable[[str, int, float], None]
"""Called with phase, steps done and loss after every step, once a state due at that step is on disk."""
Identity = dict[str, str]
"""Everything that the result depends on, as digests; the manifest starts with it."""


@dataclass(frozen=True)
class Workplace:
    """Where and how often phases keep their resumable states, and the seed that all their randomness comes from."""

    folder: Path
    seed: int
    save_every: int
    device: torch.device
    observers: tuple[Observer, ...] = ()


def open_workplace(
    state: Path, identity: Identity, seed: int, save_every: int, observers: Iterable[Observer]
) -> Workplace:
    """The folder of this identity within ``state``, which exists; states of any other are removed."""
    folder = state / "-".join(digest[:16] for digest in identity.values())
    for other in state.iterdir():
        if other.is_dir() and other != folder:
            shutil.rmtree(other)
    folder.mkdir(exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Workplace(folder, seed, save_every, device, tuple(observers))


def is_finished(out: Path, identity: Identity, also: Iterable[str]) -> bool:
    """Whether ``out`` was made from ``identity`` and has all files that its manifest lists, and those in ``also``."""
    if not (out / "manifest.json").exists():
        return False
    manifest = read_json(out / "manifest.json")
    same = all(manifest.get(key) == value for key, value in identity.items())
    return same and all((out / name).is_file() for name in (*manifest["files"], *also))
