"""What experiments cost before they run: size, multiply-adds, memory and GPU-hours, for tables and schedulers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vpd.config.schema import BackboneSpec, DatasetSpec, Spec
from vpd.planning.costs import GIB, figures
from vpd.planning.counting import FLOAT, Part, count, text_parameters
from vpd.planning.hours import forward_passes, gpu_hours, training_images, training_macs
from vpd.planning.networks import CLASSES, LAYOUTS, Parts, crop, read_parts
from vpd.pretrained.stable_diffusion import sd1_configs
from vpd.utils.digests import digest
from vpd.utils.errors import UserError
from vpd.utils.files import write_json
from vpd.utils.progress import track
from vpd.world.classes import CLASSES as SYNTHETIC_CLASSES

if TYPE_CHECKING:
    from vpd.config.params import Params

MIB = 1 << 20
RESERVED = 3 * GIB // 2
"""Bytes of a GPU: CUDA's context, the workspaces of its libraries, and what the allocator cannot use."""
ENCODER_MAPS = 4
"""Maps that the VAE encoder holds at once at its finest level: a block's input, its norm, a convolution's two ends."""
CHECKPOINTED = 1 / 3
"""Share of the activations that gradient checkpointing keeps; 0.14 to 0.40 when measured on the paper's networks."""
MARGIN = 1.2
"""Reserved over expected host memory and time."""
STARTING = 30
"""Minutes for imports, prompts and saving, whatever the training."""
HOST, WORKER = 3072, 1024
"""MiB for a process with its two caches of 1 GiB, and for each of its loader processes."""
NO_COST = {"unet", "backbone", "timestep", "latent_scale"}
"""Model settings that change numbers, not costs."""
ARCHITECTURE = {"vision", "language", "vocabulary"}
"""Settings of a backbone that decide its cost."""
_counted: dict[str, tuple[dict[str, Part], int]] = {}


@dataclass(frozen=True)
class Cost:
    """Cost of one run of an experiment; multiply-adds are those of one training image, memory is in bytes."""

    spec: Spec
    parts: dict[str, Part]
    """By the names in ``counting.PARTS``."""
    text_parameters: int
    """Of the frozen text encoder where prompts come with the images. The paper's figures leave it out, and so do
    ``parameters`` and ``macs``; memory includes it."""
    encoder: int
    """Working memory of VPD's frozen encoder for one image."""
    images: int
    """Training images that the run sees."""
    evaluation_images: int
    """Network inputs of the evaluation of all the run's milestones."""

    @property
    def total(self) -> Part:
        """All parts together."""
        return sum(self.parts.values(), Part(0, 0, 0, 0, 0))

    @property
    def training_macs(self) -> int:
        """Multiply-adds of the forward and the backward pass."""
        return training_macs(self.parts, self.spec.training.gradient_checkpointing)

    @property
    def gpu_hours(self) -> float:
        """V100-hours of training."""
        return gpu_hours(self.spec.task, self.images, self.training_macs)

    @property
    def evaluation_hours(self) -> float:
        """V100-hours of the evaluation of all milestones."""
        return gpu_hours(self.spec.task, self.evaluation_images, self.total.macs)

    @property
    def weights(self) -> int:
        """Bytes of all weights, which stay in single precision."""
        return FLOAT * (self.total.parameters + self.text_parameters)

    @property
    def state(self) -> int:
        """Bytes of the weights and, for trained ones, their gradients and AdamW's two moments."""
        return self.weights + 3 * FLOAT * self.total.trainable

    def step_bytes(self, processes: int = 1) -> int:
        """Estimate the memory of a training step in each of ``processes`` that share the effective batch.

        Trained layers keep their inputs and outputs. Against the activations of real steps that is 0.84 to 1.33 times as
        much, and 0.55 to 0.76 for BEiT and Swin V2, which materialise their attention.
        """
        training = self.spec.training
        micro_batch = -(-training.batch_size // (training.accumulate * processes))
        share = CHECKPOINTED if training.gradient_checkpointing else 1.0
        share /= 2 if training.precision == "bf16" else 1
        return self.state + micro_batch * (int(share * self.total.activations) + self.encoder)

    def gpu_bytes(self, gpus: int = 1) -> int:
        """Estimate the memory of each GPU in training."""
        return self.step_bytes(gpus) + RESERVED

    def evaluation_bytes(self) -> int:
        """Estimate the memory of a GPU in an evaluation: weights, and per image at most what checkpointing would keep."""
        per_image = int(CHECKPOINTED * self.total.activations) + self.encoder
        return self.weights + self.spec.evaluation.batch_size * per_image + RESERVED


def cost(
    spec: Spec,
    parts: Parts | None = None,
    classes: int | None = None,
    samples: int | None = None,
    evaluated: int | None = None,
) -> Cost:
    """Count the cost of one run of ``spec`` without computing anything.

    Args:
        spec: the experiment.
        parts: VPD's configurations (``read_parts``; Stable Diffusion 1's by default), or a baseline's backbone
            (``params.backbone(spec.checkpoint)``).
        classes: number of classes; those of the real dataset by default.
        samples: training images per epoch; those of the real dataset by default.
        evaluated: evaluated samples; those of the real split by default.

    Raises:
        UserError: ``parts`` are not those of the experiment's kind of network.
    """
    parts = parts or sd1_configs()
    if isinstance(parts, BackboneSpec) != (spec.model.kind != "vpd"):
        raise UserError(f"{spec.name} uses checkpoint {spec.checkpoint}; give its parts, or its backbone, to count it")
    counted, text = _count(spec, parts, CLASSES[LAYOUTS[spec.task]] if classes is None else classes)
    encoder = 0
    if isinstance(parts, dict):
        encoder = ENCODER_MAPS * FLOAT * parts["vae"]["block_out_channels"][0] * (spec.model.canvas or crop(spec)) ** 2
    inputs = forward_passes(spec, evaluated) * len(spec.training.milestones)
    return Cost(spec, counted, text, encoder, training_images(spec, samples), inputs)


def _count(spec: Spec, parts: Parts, classes: int) -> tuple[dict[str, Part], int]:
    """Count a network once for all specs whose differences do not change its cost."""
    model = spec.model.model_dump(mode="json", exclude=NO_COST)
    own = parts.model_dump(include=ARCHITECTURE) if isinstance(parts, BackboneSpec) else parts
    key = digest([spec.task, model, crop(spec), own, classes])
    if key not in _counted:
        _counted[key] = count(spec, parts, classes), text_parameters(spec, parts)
    return _counted[key]


# ---------------------------------------------------------------------------------------------------------------- reserves
def resources(cost: Cost, gpus: int = 1) -> dict[str, int]:
    """Return what a job that trains all seeds should reserve: gpus, gpu_mem_mb (each), mem_mb, runtime (minutes), cpus."""
    return _reserved(cost, gpus, cost.gpu_bytes(gpus), gpus * cost.state, cost.gpu_hours)


def evaluation_resources(cost: Cost) -> dict[str, int]:
    """Return what a job that evaluates all seeds on one GPU should reserve; the names are those of ``resources``."""
    return _reserved(cost, 1, cost.evaluation_bytes(), FLOAT * cost.total.parameters, cost.evaluation_hours)


def _reserved(cost: Cost, gpus: int, gpu_bytes: int, host_bytes: int, hours: float) -> dict[str, int]:
    workers = cost.spec.training.workers
    return {
        "gpus": gpus,
        "gpu_mem_mb": math.ceil(gpu_bytes / MIB),
        "mem_mb": math.ceil((gpus * (HOST + workers * WORKER) + host_bytes / MIB) * MARGIN),
        "runtime": STARTING + math.ceil(hours * 60 / gpus * len(cost.spec.seeds) * MARGIN),
        "cpus": gpus * (1 + workers),
    }


# ------------------------------------------------------------------------------------------------------------- the matrix
def all_costs(params: Params, checkpoints: Path | None = None, names: Sequence[str] | None = None) -> dict[str, Cost]:
    """Count the experiments ``names``, or the whole matrix.

    Args:
        params: where experiments, datasets and backbones come from.
        checkpoints: folder with a diffusers pipeline folder per checkpoint, whose configurations are read; Stable
            Diffusion 1's are used without it.
        names: experiments.

    Raises:
        UserError: an unknown experiment, or the scale pre-trains its own checkpoints and ``checkpoints`` is missing.
    """
    specs = [params.resolve(name) for name in names or params.experiments]
    return {spec.name: _cost(params, spec, checkpoints) for spec in track(specs, len(specs), "costs", "experiment")}


def _cost(params: Params, spec: Spec, checkpoints: Path | None) -> Cost:
    dataset = params.dataset(spec.dataset)
    synthetic = dataset.source == "drawn" and dataset.layout == "ade20k"
    classes = len(SYNTHETIC_CLASSES) if synthetic else CLASSES[dataset.layout]
    samples, evaluated = _drawn(dataset, "training", "train"), _drawn(dataset, "validation", "test", "val")
    return cost(spec, _parts(params, spec, checkpoints), classes, samples, evaluated)


def _parts(params: Params, spec: Spec, checkpoints: Path | None) -> Parts | None:
    if spec.model.kind != "vpd":
        return params.backbone(spec.checkpoint)
    if checkpoints is None and params.checkpoint(spec.checkpoint).source == "pretrained":
        raise UserError(
            f"{params.source}: scale {params.scale} pre-trains checkpoint {spec.checkpoint}, so its size is unknown until "
            "then; give the folder of its checkpoints with --checkpoints"
        )
    return read_parts(checkpoints / spec.checkpoint) if checkpoints else None


def _drawn(dataset: DatasetSpec, *splits: str) -> int | None:
    """Size of the first of ``splits`` that a synthetic dataset has; None for a real dataset."""
    return next((dataset.draw[split] for split in splits if split in dataset.draw), None)


def write_costs(params: Params, costs: Mapping[str, Cost], path: Path) -> None:
    """Write ``{experiment: {resources, hours, trainable, figures}}`` as JSON; resources and hours by stage."""
    write_json(path, {name: _entry(cost, params.resources(name).gpus) for name, cost in costs.items()})


def _entry(cost: Cost, gpus: int) -> dict[str, Any]:
    seeds = len(cost.spec.seeds)
    return {
        "resources": {"train": resources(cost, gpus), "evaluate": evaluation_resources(cost)},
        "hours": {"train": round(cost.gpu_hours * seeds, 3), "evaluate": round(cost.evaluation_hours * seeds, 3)},
        "trainable": cost.total.trainable,
        "figures": figures(cost),
    }
