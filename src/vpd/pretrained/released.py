"""The authors' released VPD weights (wl-zhao/VPD), turned into a run that ``vpd evaluate`` takes."""

import tempfile
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import cosine_similarity

from vpd.config.schema import Spec, released_spec
from vpd.evaluation.run import open_model
from vpd.models.base import misfits
from vpd.models.network import VPD
from vpd.pretrained.original import convert
from vpd.pretrained.tensors import read_tensors
from vpd.training.runs import publish, run_fingerprint
from vpd.utils.digests import sha256
from vpd.utils.errors import UserError

CONTAINERS = ("state_dict", "model")  # where mmcv's files (segmentation) and the others keep the weights
MARKS = {"decode_head.": "segmentation", "classifier.": "referring", "last_layer_depth.": "depth"}
ENCODER = "vae."
OTHER_ENCODER = 1e-2  # a tensor's relative difference in another VAE; storage in half precision makes 5e-4


def import_weights(spec: Spec, file: Path, data: Path, checkpoint: Path, run: Path) -> dict[str, Any]:
    """Write released weights as a run; evaluate it with ``released_spec(spec)``.

    Args:
        spec: the experiment that the file was trained for.
        file: the authors' file.
        data: dataset folder.
        checkpoint: folder of the Stable Diffusion checkpoint that the file was trained from.
        run: gets ``seed<n>``.

    Returns:
        The file's name and digest, how far its frozen VAE is from the checkpoint's, and (segmentation, depth) the cosine
        of its class embeddings with those of our prompts (G3).

    Raises:
        UserError: the file is damaged, another task's, made for another VAE, or does not fit the network of ``spec``.
    """
    spec = released_spec(spec)
    state = read_released(file, spec.task)
    network, dataset = open_model(spec, data, checkpoint)
    model = cast(VPD, network)  # The task's names, which were checked, are VPD's.
    classes: list[str] = dataset.classes
    facts = {"file": file.name, "sha256": sha256(file), **adopt(model, state, file, classes)}
    publish_run(spec, model, data, checkpoint, run)
    return facts


def read_released(file: Path, task: str) -> dict[str, Tensor]:
    """Read the file's tensors under our names; UserError if they are not those of a released model of ``task``."""
    state = read_tensors(file, CONTAINERS)
    tasks = {other for name in state for mark, other in MARKS.items() if f".{mark}" in f".{name}"}
    if tasks and task not in tasks:
        raise UserError(
            f"{file} holds a {tasks.pop()} model, but the experiment is {task}; name an experiment of that task"
        )
    try:
        return convert(state)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None


def adopt(model: VPD, state: dict[str, Tensor], file: Path, classes: list[str]) -> dict[str, Any]:
    """Load ``state`` into ``model`` and return what a comparison of both says; UserError if it does not fit."""
    own = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("text.")}
    if fault := misfits(own, state):
        raise UserError(
            f"{file} does not fit this experiment ({fault}); choose the experiment, checkpoint and prompt length that the "
            "file was made with"
        )
    # The largest L2 difference of a tensor of the frozen VAE, relative to its norm.
    encoder = {name: tensor for name, tensor in own.items() if name.startswith(ENCODER)}
    differences = [(state[n].float() - x).norm() / x.norm().clamp_min(1e-12) for n, x in encoder.items()]
    largest = round(max(differences).item(), 9)
    if largest > OTHER_ENCODER:
        raise UserError(
            f"{file} was made with another VAE than the checkpoint's (a tensor differs by {largest:.2g} of its norm); "
            "give the Stable Diffusion 1 checkpoint that the file was trained from"
        )
    facts: dict[str, Any] = {"vae_difference": largest}
    if "class_embeddings" in state:
        facts["class_embeddings"] = embedding_agreement(state["class_embeddings"], own["class_embeddings"], classes)
    model.load_trained_state({n: state[n].to(x.dtype) for n, x in own.items() if not n.startswith(ENCODER)})
    return facts


def embedding_agreement(given: Tensor, own: Tensor, classes: list[str]) -> dict[str, Any]:
    """Compare class embeddings (classes, width) by cosine; ``in_order`` counts those nearest to ours of the same class."""
    cosines = cosine_similarity(given.float()[:, None], own.float()[None], dim=-1)
    same = {name: round(value, 6) for name, value in zip(classes, cosines.diagonal().tolist(), strict=True)}
    worst = min(same, key=same.__getitem__)
    return {
        "mean": round(sum(same.values()) / len(same), 6),
        "worst": same[worst],
        "worst_class": worst,
        "in_order": int((cosines.argmax(dim=1) == torch.arange(len(classes))).sum()),
        "by_class": same,
    }


def publish_run(spec: Spec, model: VPD, data: Path, checkpoint: Path, run: Path) -> None:
    """Write the model's trained weights as a finished run without history: the only place that knows a run's files."""
    run.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=run) as folder:  # on the same disk
        path = Path(folder) / "final.safetensors"
        save_file(model.trained_state(), path)
        # Files do not say at which step of an epoch the authors stopped; 0 means that the step is not known.
        steps, made_from = spec.training.steps or 0, run_fingerprint(spec, spec.seeds[0], data, checkpoint)
        publish(run / f"seed{spec.seeds[0]}", {"final": path}, {"final": steps}, [], made_from)
