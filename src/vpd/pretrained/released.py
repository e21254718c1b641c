"""The authors' released VPD weights (wl-zhao/VPD), turned into a run that ``vpd evaluate`` takes."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from vpd.config.schema import Spec
from vpd.evaluation.run import open_model
from vpd.pretrained.fitting import misfits
from vpd.pretrained.keymap import convert
from vpd.pretrained.reading import read_tensors, tensors_of
from vpd.training.record import MANIFEST, publish, run_keys
from vpd.utils.digests import sha256
from vpd.utils.errors import UserError
from vpd.utils.files import read_json

CONTAINERS = ("state_dict", "model")
"""Where mmcv's files (segmentation) and the others (referring, depth) keep the weights."""
MARKS = {"decode_head.": "segmentation", "classifier.": "referring", "last_layer_depth.": "depth"}
"""Beginnings of names that only one task's model has."""
ENCODER, TEXT = "vae.", "text."
OTHER_ENCODER = 1e-2
"""Relative difference of a tensor from which the file's VAE is another one; storage in half precision makes 5e-4."""
DECIMALS = 6


def released_spec(spec: Spec) -> Spec:
    """What of ``spec`` released weights can stand for: its first seed and only the final milestone."""
    training = spec.training.model_copy(update={"milestones": {"final": 1.0}})
    evaluation = spec.evaluation.model_copy(update={"best": False})
    return spec.model_copy(update={"seeds": spec.seeds[:1], "training": training, "evaluation": evaluation})


def import_weights(spec: Spec, file: Path, data: Path, checkpoint: Path, run: Path) -> dict:
    """Write the weights in ``file`` to ``run/seed<n>`` and return its manifest; evaluate it with ``released_spec(spec)``.

    The manifest has the keys of a trained run and ``released``: the file's name and digest, how far its frozen VAE is
    from the checkpoint's, and (segmentation, depth) the cosine of its class embeddings with those of our prompts (G3).
    UserError if the file is damaged, another task's, made for another VAE, or does not fit the network of ``spec``.
    """
    spec = released_spec(spec)
    keys = run_keys(spec, spec.seeds[0], data, checkpoint)
    state = read_released(file, spec.task)
    model, dataset = open_model(spec, data, checkpoint)
    facts = {"file": file.name, "sha256": sha256(file), **adopt(model, state, file, dataset.classes)}
    return write_run(spec, model, run / f"seed{spec.seeds[0]}", {**keys, "released": facts})


def read_released(file: Path, task: str) -> dict[str, Tensor]:
    """The file's tensors under our names; UserError if they are not those of a released model of ``task``."""
    state = tensors_of(file, read_tensors(file), CONTAINERS)
    marked = {found for name in state for mark, found in MARKS.items() if f".{mark}" in f".{name}"}
    if marked and task not in marked:
        raise UserError(
            f"{file} holds a {marked.pop()} model, but the experiment is {task}; name an experiment of that task"
        )
    try:
        return convert(state)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None


def adopt(model: nn.Module, state: dict[str, Tensor], file: Path, classes: list[str]) -> dict:
    """Load ``state`` into ``model`` and return what was found out about it; UserError if it does not fit."""
    own = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(TEXT)}
    if fault := misfits(own, state):
        raise UserError(
            f"{file} does not fit this experiment ({fault}); choose the experiment, checkpoint and prompt length that the "
            "file was made with"
        )
    facts: dict = {"vae_difference": encoder_difference(own, state)}
    if facts["vae_difference"] > OTHER_ENCODER:
        raise UserError(
            f"{file} was made with another VAE than the checkpoint's (a tensor differs by {facts['vae_difference']:.2g} "
            "of its norm); give the Stable Diffusion 1 checkpoint that the file was trained from"
        )
    if "class_embeddings" in state:
        facts["class_embeddings"] = embedding_agreement(state["class_embeddings"], own["class_embeddings"], classes)
    trained = {name: state[name].to(own[name].dtype) for name in own if not name.startswith(ENCODER)}
    model.load_trained_state(trained)
    return facts


def encoder_difference(own: dict[str, Tensor], state: dict[str, Tensor]) -> float:
    """Largest L2 difference of a tensor of the frozen VAE, relative to its norm."""
    differences = [
        ((state[name].float() - tensor).norm() / tensor.norm().clamp_min(1e-12)).item()
        for name, tensor in own.items()
        if name.startswith(ENCODER)
    ]
    return round(max(differences), 9)


def embedding_agreement(given: Tensor, own: Tensor, classes: list[str]) -> dict:
    """Cosines of the file's class embeddings with those of our prompts, per class, their mean and their minimum.

    ``in_order``: how many of the file's embeddings are nearest to ours of the same class, which an order of classes
    other than ours would show.
    """
    given, own = given.float(), own.float()
    cosines = cosine_similarity(given[:, None], own[None], dim=-1)
    same = {name: round(value, DECIMALS) for name, value in zip(classes, cosines.diagonal().tolist(), strict=True)}
    worst = min(same, key=same.__getitem__)
    return {
        "mean": round(sum(same.values()) / len(same), DECIMALS),
        "worst": same[worst],
        "worst_class": worst,
        "in_order": int((cosines.argmax(dim=1) == torch.arange(len(classes))).sum()),
        "by_class": same,
    }


def write_run(spec: Spec, model: nn.Module, out: Path, keys: dict) -> dict:
    """Publish the model's trained weights as a finished run without history, and return its manifest."""
    with tempfile.TemporaryDirectory(dir=_existing(out)) as folder:
        path = Path(folder) / "final.safetensors"
        save_file(model.trained_state(), path)
        # An epoch's length at which the authors stopped is not in the file; 0 says that the step is not known.
        publish(out, {"final": path}, {"final": spec.training.steps or 0}, [], keys)
    return read_json(out / MANIFEST)


def _existing(out: Path) -> Path:
    """The folder that holds ``out``, on the same disk."""
    out.parent.mkdir(parents=True, exist_ok=True)
    return out.parent
