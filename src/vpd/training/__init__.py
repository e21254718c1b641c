"""Training: ``train`` makes one run's weights and history from a spec, a seed, a dataset and a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from vpd.config.schema import Spec
from vpd.training.observers import Observer
from vpd.training.record import Timing, is_finished, run_keys, timing, with_code

__all__ = ["Timing", "train"]


def train(
    spec: Spec, seed: int, data: Path, checkpoint: Path, out: Path, state: Path, observers: Iterable[Observer] = ()
) -> Timing:
    """Train ``spec`` with ``seed`` into ``out``, going on from ``state`` after an interruption.

    ``out`` gets ``<milestone>.safetensors``, ``history.csv`` and ``manifest.json``, all at once at the end. A finished run
    returns at once. ``state`` is removed on success. Observers are called with (step, values) at every logged step.
    """
    keys = with_code(run_keys(spec, seed, data, checkpoint))
    if is_finished(out, keys):
        return timing(seconds=0.0, steps=0)

    from vpd.datasets import build_dataset
    from vpd.models import build_model
    from vpd.training.loop import fit
    from vpd.training.state import seed_all

    seed_all(seed)
    dataset = build_dataset(spec, data, "train", seed)
    model = build_model(spec, checkpoint, dataset.classes)
    return fit(model, dataset, spec, seed, out, state, observers, keys)
