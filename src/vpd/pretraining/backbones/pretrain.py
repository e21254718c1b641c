"""Miniature pre-training of one backbone, from drawn images to its checkpoint folder.

Phases: the vision objective and, for a backbone with a language model, masked language modelling. Each goes on where a
killed run stopped.
"""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from vpd.config.schema import BackboneSpec, ObjectiveSpec
from vpd.models.backbones import build_backbone
from vpd.pretraining.backbones.examples import Examples, load_examples
from vpd.pretraining.backbones.objective import Objective, VisionObjective
from vpd.pretraining.backbones.outputs import Outcome, write_outputs
from vpd.pretraining.backbones.training import train_objective
from vpd.pretraining.loop import cpu_threads, initialised_by
from vpd.pretraining.workdir import Observer, Workplace, is_finished, open_workplace
from vpd.utils.digests import sha256
from vpd.utils.errors import UserError, pick
from vpd.utils.files import locked, read_json
from vpd.utils.fingerprint import code_digest

OBJECTIVES = {
    "classification": ("vpd.pretraining.backbones.classification", "Classification"),
    "masked-image": ("vpd.pretraining.backbones.masked_image", "MaskedImage"),
    "self-distillation": ("vpd.pretraining.backbones.self_distillation", "SelfDistillation"),
    "contrast": ("vpd.pretraining.backbones.contrast", "Contrast"),
    "caption-contrast": ("vpd.pretraining.backbones.caption_contrast", "CaptionContrast"),
    "promptable-masks": ("vpd.pretraining.backbones.promptable_masks", "PromptableMasks"),
}
"""Objective -> module and class; imported when asked for, because transformers alone takes seconds."""
LANGUAGE = "masked-language"
CODE = ("checkpoints", "families", "models/backbones")
"""Packages whose change makes a finished backbone stale."""


def pretrain_backbone(
    name: str,
    spec: BackboneSpec,
    captions: Path,
    objects: Path,
    out: Path,
    state: Path,
    *,
    save_every: int = 100,
    observers: Sequence[Observer] = (),
) -> None:
    """Train backbone ``name`` on drawn images and write its checkpoint folder ``out``, manifest.json last.

    ``captions`` and ``objects`` are the folders of datasets that show the same images. ``state`` holds the resumable
    state, kept every ``save_every`` steps, and is removed at the end. A finished ``out`` of the same spec, data and code
    is left alone. UserError if ``spec`` lacks what its objectives need.
    """
    _check(name, spec)
    for data in (captions, objects):
        read_json(data / "manifest.json")
    identity = {
        "name": name,
        "spec": spec.digest(),
        "captions": sha256(captions / "manifest.json"),
        "objects": sha256(objects / "manifest.json"),
        "code": code_digest(*CODE),
    }
    if is_finished(out, identity, ("history.csv", "loss.png")):
        return
    with locked(state), cpu_threads(spec.threads):
        place = open_workplace(state, identity, spec.seed, save_every, observers)
        write_outputs(spec, _train(name, spec, load_examples(captions, objects), place), out, identity)
        shutil.rmtree(state)


def objective_class(name: str) -> type[VisionObjective]:
    """The class that trains vision by the objective ``name``."""
    module, kind = pick(name, OBJECTIVES, "objective")
    return getattr(importlib.import_module(module), kind)


def _check(name: str, spec: BackboneSpec) -> None:
    key = f"backbones.{name}"
    needed = {"training": True, "language_training": bool(spec.language), "vocabulary": _reads(spec)}
    for field, need in needed.items():
        if need and getattr(spec, field) is None:
            raise UserError(f"{key} is to be pre-trained with {spec.objective}, but has no {field}; give it one")


def _reads(spec: BackboneSpec) -> bool:
    """Whether any of the networks reads words."""
    return bool(spec.language) or "captions" in objective_class(spec.objective).sees


def _train(name: str, spec: BackboneSpec, examples: Examples, place: Workplace) -> list[Outcome]:
    """One outcome per phase."""
    key = f"backbones.{name}"

    def vision() -> Objective:
        return objective_class(spec.objective)(build_backbone(spec.vision), examples, spec)

    def language() -> Objective:
        from vpd.pretraining.backbones.masked_language import MaskedLanguage

        return MaskedLanguage(examples, spec)

    outcomes = [_phase(spec.objective, f"{key}.training", vision, spec.training, place)]
    if spec.language is not None:
        outcomes.append(_phase(LANGUAGE, f"{key}.language_training", language, spec.language_training, place))
    return outcomes


def _phase(phase: str, key: str, build: Callable[[], Objective], spec: ObjectiveSpec, place: Workplace) -> Outcome:
    """Build, measure, train and measure again."""
    with initialised_by(place.seed, phase):
        objective = build()
    fresh = objective.to(place.device).eval().measure()
    losses = train_objective(phase, key, objective, spec, place)
    measures = {"fresh": fresh, "trained": objective.measure()}
    return Outcome(phase, objective, losses, spec.steps * spec.batch_size, measures)
