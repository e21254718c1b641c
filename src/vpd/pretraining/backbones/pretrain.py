"""Miniature pre-training of one backbone, from synthetic scenes to its checkpoint folder."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Generator, Tensor, nn

from vpd.config.schema import BackboneSpec, ObjectiveSpec
from vpd.models.backbones import build_backbone
from vpd.pretraining.backbones.examples import Examples, load_examples
from vpd.pretraining.backbones.masked_image import MaskedImage
from vpd.pretraining.backbones.objective import Classification, Objective
from vpd.pretraining.backbones.promptable_masks import PromptableMasks
from vpd.pretraining.backbones.self_distillation import SelfDistillation
from vpd.pretraining.loop import Phase, averaged, complete, initialised_by, rise_and_fall, trained_parameters
from vpd.pretraining.workdir import Workdir, backbone_fingerprint, open_workdir
from vpd.utils.errors import UserError
from vpd.utils.files import atomic_folder
from vpd.utils.fingerprint import is_finished

CAPTIONED = ("contrast", "caption-contrast")
LANGUAGE = "masked-language"
MAX_GRADIENT_NORM = 3.0  # as DINO clips it; SAM clips at 0.1, and several of the others not at all


def pretrain_backbone(
    name: str, spec: BackboneSpec, captions: Path, objects: Path, out: Path, state: Path, *, save_every: int = 100
) -> None:
    """Pre-train a backbone unless ``out`` is finished already; an interrupted run resumes to the bit.

    Args:
        name: the backbone's in params.yaml.
        spec: networks, objective and training.
        captions: a captions dataset.
        objects: the objects dataset of the same scenes.
        out: gets vision/, with a text encoder language/, history.csv and the manifest, all at once at the end.
        state: holds the resumable state, saved every ``save_every`` steps; removed at the end.

    Raises:
        UserError: ``spec`` or a dataset does not suffice, a loss is not finite, or another process works in ``state``.
    """
    reads = spec.language is not None or spec.objective in CAPTIONED
    needed = {"training": True, "language_training": spec.language is not None, "vocabulary": reads}
    if lacking := [key for key, need in needed.items() if need and getattr(spec, key) is None]:
        raise UserError(
            f"backbones.{name} is to be pre-trained with {spec.objective}, but has no {lacking[0]}; give it one"
        )
    made_from = backbone_fingerprint(name, spec, captions, objects)
    if is_finished(out, made_from):
        return
    with open_workdir(state, made_from, spec, save_every) as workdir:
        examples = load_examples(captions, objects)
        parts = {"vision": spec.objective} | ({"language": LANGUAGE} if spec.language is not None else {})
        trained = {part: _train(name, spec, phase, examples, workdir) for part, phase in parts.items()}
        with atomic_folder(out) as folder:
            facts = {
                **{"name": name, "source": "pretrained", "objective": spec.objective, "repo": None, "revision": None},
                "parameters": {part: objective.save(folder) for part, (objective, _, _) in trained.items()},
                "phases": {parts[part]: summary for part, (_, _, summary) in trained.items()},
                "images_seen": trained["vision"][2]["seen"],
            }
            complete(folder, made_from, {parts[part]: losses for part, (_, losses, _) in trained.items()}, facts)


def build_objective(name: str, spec: BackboneSpec, examples: Examples) -> Objective:
    """Build the fresh network of the phase ``name``: an objective as params.yaml calls it, or ``masked-language``."""
    # Some are imported only here, because transformers takes seconds.
    if name == LANGUAGE:
        from vpd.pretraining.backbones.masked_language import MaskedLanguage

        return MaskedLanguage(examples, spec)
    backbone = build_backbone(spec.vision)
    if name in CAPTIONED:
        from vpd.pretraining.backbones.contrast import CaptionContrast, Contrast

        return (Contrast if name == "contrast" else CaptionContrast)(backbone, examples, spec)
    objectives = {
        "classification": Classification,
        "masked-image": MaskedImage,
        "self-distillation": SelfDistillation,
        "promptable-masks": PromptableMasks,
    }
    return objectives[name](backbone, examples, spec)


def _train(
    name: str, spec: BackboneSpec, phase: str, examples: Examples, workdir: Workdir
) -> tuple[Objective, list[float], dict[str, object]]:
    """Build, measure, train and measure again; return the network, the loss of every step and the manifest's facts."""
    key = "language_training" if phase == LANGUAGE else "training"
    training: ObjectiveSpec = getattr(spec, key)
    with initialised_by(workdir.seed, phase):
        objective = build_objective(phase, spec, examples)
    # Without the fresh network's measures the trained one's say little.
    measures = {"fresh": objective.to(workdir.device).eval().measure()}
    steps = spec.steps(training)
    losses = train_objective(phase, f"backbones.{name}.{key}", objective, training, steps, workdir)
    measures["trained"] = objective.measure()
    means = [round(loss, 6) for _, loss in averaged(losses)]
    summary = {
        "steps": len(losses),
        "seen": len(losses) * training.batch_size,
        "loss": {"first": means[0], "last": means[-1]},
        "measures": {state: {key: round(value, 6) for key, value in of.items()} for state, of in measures.items()},
    }
    return objective, losses, summary


def train_objective(
    phase: str, settings: str, objective: Objective, spec: ObjectiveSpec, steps: int, workdir: Workdir
) -> list[float]:
    """Train ``objective`` and return the loss of every step; ``settings`` is the key of ``spec``, for messages."""
    numbers = objective.candidates(held=False)

    def loss_of(generator: Generator) -> Tensor:
        order = torch.randperm(len(numbers), generator=generator)
        return objective.loss(numbers[order[: spec.batch_size]], generator)

    # One recipe for all objectives, so that a comparison of backbones compares objectives and not tuning: AdamW, as in the
    # papers of all of them but CLIP's, which has Adam with decoupled decay, the same.
    factor, groups = rise_and_fall(steps), parameter_groups(objective, spec.weight_decay)
    training = Phase(phase, settings, objective, steps, spec.lr, factor, groups, MAX_GRADIENT_NORM)
    return training.train(workdir, loss_of, after=lambda step: objective.after(step / steps))


def parameter_groups(network: nn.Module, weight_decay: float) -> list[dict]:
    """Matrices and kernels are decayed; vectors (biases, norms, tokens) are not."""
    matrices = [parameter for parameter in trained_parameters(network) if parameter.ndim > 1]
    vectors = [parameter for parameter in trained_parameters(network) if parameter.ndim <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
