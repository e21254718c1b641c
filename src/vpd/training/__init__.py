"""Training: from a spec, a seed, a dataset and a checkpoint to the weights and the history of one run."""

from collections.abc import Callable, Sequence
from pathlib import Path

from vpd.config.schema import Spec
from vpd.training.runs import run_fingerprint
from vpd.utils.fingerprint import is_finished

__all__ = ["Observer", "train"]

Observer = Callable[[int, dict[str, float]], None]
"""Called with (step, values) at every logged step of the training. It must neither raise nor block."""


def train(
    spec: Spec, seed: int, data: Path, checkpoint: Path, out: Path, state: Path, observers: Sequence[Observer] = ()
) -> None:
    """Train one run, or return at once if ``out`` holds it already.

    A killed training continues from its last ``state`` and ends with the same bits as an undisturbed one. ``out`` gets
    ``<milestone>.safetensors``, ``history.csv``, ``timing.json`` and the manifest, all at once at the end.
    UserError if the loss or a weight is not finite, or the batch does not fit the dataset.
    """
    made_from = run_fingerprint(spec, seed, data, checkpoint)
    if is_finished(out, made_from):
        return

    from vpd.datasets import build_dataset
    from vpd.models import build_model
    from vpd.training.loop import fit
    from vpd.training.state import seed_all

    seed_all(seed)
    dataset = build_dataset(spec, data, "train", seed)
    model = build_model(spec, checkpoint, dataset.classes)
    fit(model, dataset, spec, seed, out, state, made_from, observers)
