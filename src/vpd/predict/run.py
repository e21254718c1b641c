"""``vpd predict``: one trained network over any pictures, one at a time."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from numpy import ndarray
from torch import Tensor, nn

from vpd.config.schema import LavtModel, Spec
from vpd.evaluation.inference import Predict
from vpd.evaluation.run import predictor
from vpd.predict.depth import Depth
from vpd.predict.inputs import Job, find_pictures, plan
from vpd.predict.panel import Panel, plain_text, printable
from vpd.predict.pictures import read_picture
from vpd.predict.referring import Referring
from vpd.predict.segmentation import Segmentation
from vpd.predict.weights import build, check_names, classes, load_weights, scene_names
from vpd.utils.errors import UserError, pick
from vpd.utils.progress import Progress

OPTIONS = {"text": "referring", "scene": "depth"}
"""Option -> the only task that it is for."""


class Task(Protocol):
    """What is predicted for a picture, and how it is written and shown."""

    def infer(self, image: ndarray, name: str) -> Any:
        """Predict for an RGB image (H, W, 3) uint8."""

    def save(self, result: Any, job: Job) -> None:
        """Write ``job.picture`` and ``job.arrays``."""

    def panel(self, image: ndarray, result: Any, title: str) -> Panel:
        """Draw the picture beside its prediction."""


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
) -> int:
    """Predict for every picture that ``images`` name, files or folders, into ``out``; return how many failed.

    For ``x.jpg`` there will be ``x.png`` (class ids with colours; a mask of 0 and 255; millimetres), ``x.npz``
    (``labels``; ``probability``; ``depth`` in metres) and ``x.panel.png`` to look at, all at the size of the upright
    picture. ``text`` is the expression (referring), ``scene`` the scene class (depth), ``names`` the classes in label
    order (segmentation). A picture that fails is one sentence on standard error; UserError for all other mistakes.
    """
    check_options(spec, text=text, scene=scene)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file, but predictions need a folder; name another --out")
    found, faults = find_pictures(images, out, say)
    jobs = plan(found, out)
    for fault in faults:
        say(fault)
    if not jobs:
        return len(faults)
    state = load_weights(weights, spec, say)
    choice = choose(spec, state, text, scene, names)
    model = build(spec, checkpoint, state)
    return len(faults) + predict_all(spec, choice(model, predictor(spec, model)), jobs)


def check_options(spec: Spec, **options: str | None) -> None:
    """UserError for a missing or blank text, and for an option that does nothing for the task."""
    for name, task in OPTIONS.items():
        if options[name] is not None and spec.task != task:
            raise UserError(f"--{name} is for {task} only, but {spec.name} is {spec.task}; leave it out")
    if spec.task == "referring" and not (options["text"] or "").strip():
        raise UserError(f"{spec.name} looks for what a text describes; give one, such as --text 'the red chair'")


def choose(
    spec: Spec, state: dict[str, Tensor], text: str | None, scene: str | None, names: list[str] | None
) -> Callable[[nn.Module, Predict], Task]:
    """Return how to make the task from the network, with all options checked before that is loaded."""
    if spec.task == "segmentation":
        known = check_names(names, classes(spec, state))
        return lambda model, predict: Segmentation(predict, spec.evaluation, known)
    if spec.task == "referring":
        part = "language" if isinstance(spec.model, LavtModel) else "text"
        return lambda model, predict: Referring(predict, spec.evaluation.size, fitting(text, getattr(model, part)))
    number, name = scene_class(scene, scene_names(spec, state))
    return lambda model, predict: Depth(predict, spec.evaluation, number, name)


def fitting(text: str, reader: nn.Module) -> str:
    """``text``, after saying so if the network's text encoder ``reader`` does not see all of it."""
    tokens = len(reader.tokenizer(text).input_ids)
    if tokens > reader.length:
        say(f"the text has {tokens} tokens, of which the network sees {reader.length}; shorten it")
    return text


def scene_class(scene: str | None, known: list[str]) -> tuple[int, str]:
    """Id of a scene class and how to call it; without ``scene`` the mean of all, -1, which is said."""
    if scene is not None:
        if not known:
            raise UserError("the prompt of this experiment does not depend on the scene; leave --scene out")
        name = scene.strip().lower().replace(" ", "_")
        return pick(name, {name: (number, name.replace("_", " ")) for number, name in enumerate(known)}, "scene")
    if known:
        say(f"no --scene is given, so the prompt is the mean of all {len(known)} scene classes")
    return -1, "scene not given"


@torch.inference_mode()
def predict_all(spec: Spec, task: Task, jobs: list[Job]) -> int:
    """Predict, write and draw one picture after the other; return how many failed."""
    failed = 0
    progress = Progress(len(jobs), f"predict {spec.name}", "pictures")
    for job in jobs:
        try:
            image, note = read_picture(job.image)
            torch.manual_seed(spec.seeds[0])  # latents may be samples
            result = task.infer(image, str(job.image))
        except UserError as fault:
            failed += 1
            say(str(fault), progress)
        else:
            if note:
                say(note, progress)
            task.save(result, job)
            with plain_text():
                task.panel(image, result, f"{printable(job.image.name)}   {spec.name}").save(job.panel)
        progress.advance(note=printable(job.image.name))
    progress.close()
    return failed


def say(sentence: str, progress: Progress | None = None) -> None:
    """Print one sentence to standard error, above the bar where there is one."""
    line = f"vpd: {printable(sentence)}"
    if progress is not None and progress.bar is not None:
        progress.bar.write(line, file=sys.stderr)
    else:
        print(line, file=sys.stderr, flush=True)
