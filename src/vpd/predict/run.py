"""``vpd predict``: one trained network over any pictures, one at a time, into files."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy import ndarray

from vpd.config.schema import Spec
from vpd.datasets.images import read_image
from vpd.predict.network import load_network
from vpd.predict.panels import draw_panel, plain_text
from vpd.predict.pictures import Job, find_pictures, plan_outputs, say
from vpd.predict.predictions import Prediction
from vpd.predict.tasks import Task, build_task, check_options
from vpd.utils.errors import UserError, printable
from vpd.utils.files import atomic_path
from vpd.utils.progress import Progress

MAX_ASPECT = 100


def predict(
    spec: Spec,
    weights: Path,
    checkpoint: Path,
    images: Sequence[Path],
    out: Path,
    *,
    text: str | None = None,
    scene: str | None = None,
    names: list[str] | None = None,
    precision: str = "fp32",
) -> int:
    """Predict for pictures and write ``x.png``, ``x.npz`` and ``x.panel.png`` for ``x.jpg``, all at its upright size.

    Args:
        spec: resolved spec of the experiment.
        weights: its ``final.safetensors``.
        checkpoint: the checkpoint that it was trained from.
        images: files, and folders that are searched recursively.
        out: folder to write into.
        text: expression to find (referring).
        scene: scene class (depth).
        names: classes in label order (segmentation).
        precision: fp32 as in evaluation, or bf16.

    Returns:
        How many pictures failed, each of them reported in one sentence.
    """
    check_options(spec, text, scene)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file, but predictions need a folder; name another --out")
    pictures, faults = find_pictures(images, out)
    jobs = plan_outputs(pictures, out)
    for fault in faults:
        say(fault)
    if not jobs:
        return len(faults)
    network = load_network(spec, weights, checkpoint, names, precision=precision)
    failed = _predict_all(spec, build_task(network, text, scene), jobs)
    if failed < len(jobs):
        print(f"predictions are in {out}; look at the files that end in .panel.png")
    return failed + len(faults)


def _predict_all(spec: Spec, task: Task, jobs: list[Job]) -> int:
    failed = 0
    progress = Progress(len(jobs), f"predict {spec.name}", "pictures")
    for job in jobs:
        name = printable(job.image.name)
        try:
            image = read_image(job.image)
            prediction = infer(spec, task, image, str(job.image))
            _write(job, prediction, f"{name}   {spec.name}")
        except UserError as fault:
            failed += 1
            say(str(fault))
        progress.advance(note=name)
    progress.close()
    return failed


def infer(spec: Spec, task: Task, image: ndarray, name: str) -> Prediction:
    """Predict for one picture (H, W, 3) uint8, the same whatever was predicted before."""
    if max(image.shape[:2]) > MAX_ASPECT * min(image.shape[:2]):  # its windows would fill the memory
        raise UserError(f"{name} has a side of more than {MAX_ASPECT} times the other; crop it")
    with torch.random.fork_rng(), torch.inference_mode():
        torch.manual_seed(spec.seeds[0])  # VAE latents may be samples
        return task.infer(image, name)


def _write(job: Job, prediction: Prediction, title: str) -> None:
    with atomic_path(job.arrays) as path:  # first, because it tells whose the pictures are
        np.savez_compressed(path, allow_pickle=False, **prediction.arrays)
    with atomic_path(job.picture) as path:
        prediction.png.save(path)
    with plain_text():
        draw_panel(prediction, title).save(job.panel)
