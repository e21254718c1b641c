"""What experiments cost before they run: size, multiply-adds, memory and GPU-hours, for tables and schedulers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vpd.config.schema import BackboneSpec, DepthSpec, ReferringSpec, SegmentationSpec, Spec, VPDModel
from vpd.datasets.transforms import resized_size
from vpd.evaluation.inference import views
from vpd.evaluation.windows import window_starts
from vpd.planning.costs import GIB, figures
from vpd.planning.latents import kept_in_evaluation, kept_in_training
from vpd.planning.networks import CLASSES, FLOAT, FORMATS, Part, Parts, count, crop, encoder_parameters, text_parameters
from vpd.pretrained.stable_diffusion import configs
from vpd.utils.errors import UserError
from vpd.utils.files import write_json
from vpd.utils.progress import track

if TYPE_CHECKING:
    from vpd.config.params import Params

MIB = 1 << 20
RESERVED = 3 * GIB // 2  # bytes of a GPU: CUDA's context, its libraries' workspaces, what the allocator cannot use
ENCODER_MAPS = 4  # that the VAE encoder holds at its finest level: a block's input, its norm, a convolution's two ends
CHECKPOINTED = 1 / 3  # share of activations that checkpointing keeps; 0.14 to 0.40 measured on the paper's networks
RECOMPUTED = ("unet", "backbone")  # parts that gradient checkpointing computes twice
MARGIN = 1.2  # reserved over expected host memory and time
STARTING = 30  # minutes for imports, prompts and saving, whatever the training
HOST, WORKER = 3072, 1024  # MiB for a process with its two caches of 1 GiB, and for each of its loader processes
SAMPLES = {"ade20k": 20210, "nyuv2": 24231, "refcoco": 42404, "refcoco+": 42278, "refcocog": 42226}
"""Training samples of the real datasets: images, and in the RefCOCO family (UMD split of RefCOCOg) objects."""
EVALUATED = {"ade20k": 2000, "nyuv2": 654, "refcoco": 10834, "refcoco+": 10758, "refcocog": 4896}
"""Images, and in the RefCOCO family sentences, of the splits that the tables show."""
TYPICAL = (512, 683)  # height and width of a validation image of ADE20K, most of which have sides of 3 to 4
GPUS = 8
REFERENCES = {
    "segmentation": (26.0, 80_000 * 16 * 2153.7e9),
    "referring": (83.0, 40 * (SAMPLES["refcoco"] * 2271.2e9 + GPUS * EVALUATED["refcoco"] * 1012.5e9)),
    "depth": (12.0, 25 * SAMPLES["nyuv2"] * 2345.8e9),
}
"""The authors' own runs on 8 V100 with 32 GB in single precision (issue 29 of their repository), from which hours are
scaled: hours, and what their code computes in them. It repeats the U-Net's blocks in the backward pass (S14), and for
referring segmentation validates on the whole split on every GPU after each epoch (R6)."""


@dataclass(frozen=True)
class Cost:
    """Cost of one run of an experiment; multiply-adds are those of one training image, memory is in bytes."""

    spec: Spec
    parts: dict[str, Part]
    text_parameters: int  # of text encoders that stay in memory; not in the paper's figures
    encoder: int  # working memory of VPD's frozen encoder for one image
    images: int  # training images that the run sees
    evaluation_images: int  # network inputs of the evaluation of all the run's milestones
    kept: int = 0  # of the training images, those whose latents are there already
    evaluation_kept: int = 0  # the same of the network inputs
    encoder_parameters: int = 0  # of text encoders, also of those that encode the prompts and are left

    @property
    def total(self) -> Part:
        """All parts together."""
        return sum(self.parts.values(), Part(0, 0, 0, 0, 0))

    @property
    def training_macs(self) -> int:
        """Multiply-adds of a step: forward, backward (twice that, of trained parts), and what checkpointing repeats."""
        backward = 2 * sum(part.macs for part in self.parts.values() if part.trainable)
        repeated = sum(part.macs for name, part in self.parts.items() if name in RECOMPUTED)
        return self.total.macs + backward + (repeated if self.spec.training.gradient_checkpointing else 0)

    @property
    def gpu_hours(self) -> float:
        """V100-hours of training."""
        return self._hours(self.images, self.training_macs, self.kept)

    @property
    def evaluation_hours(self) -> float:
        """V100-hours of the evaluation of all milestones."""
        return self._hours(self.evaluation_images, self.total.macs, self.evaluation_kept)

    def _hours(self, images: int, macs: int, kept: int) -> float:
        hours, reference_macs = REFERENCES[self.spec.task]
        saved = kept * self.parts["vae"].macs if kept else 0
        return hours * GPUS * (images * macs - saved) / reference_macs

    @property
    def state(self) -> int:
        """Bytes of the weights, in single precision, and for trained ones of their gradients and AdamW's two moments."""
        return FLOAT * (self.total.parameters + self.text_parameters + 3 * self.total.trainable)

    def step_bytes(self, processes: int = 1) -> int:
        """Estimate the memory of a training step in each of ``processes`` that share the effective batch."""
        # Inputs and outputs of trained layers are 0.84 to 1.33 times the activations of real steps; 0.55 to 0.76 for BEiT
        # and Swin V2, which materialise their attention.
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
        assert isinstance(self.spec, SegmentationSpec | ReferringSpec | DepthSpec)
        weights = FLOAT * (self.total.parameters + self.text_parameters)
        per_image = int(CHECKPOINTED * self.total.activations) + self.encoder
        return weights + self.spec.evaluation.batch_size * per_image + RESERVED


def cost(spec: Spec, parts: Parts | None = None) -> Cost:
    """Count the cost of one run of ``spec`` on the real dataset without computing anything.

    ``parts`` are VPD's configurations (Stable Diffusion 1's by default) or a baseline's backbone; UserError for others.
    """
    parts = parts or configs()
    if isinstance(parts, BackboneSpec) != (spec.model.kind != "vpd"):
        raise UserError(f"{spec.name} uses checkpoint {spec.checkpoint}; give its parts, or its backbone, to count it")
    counted = count(spec, parts, CLASSES[FORMATS[spec.task]])
    training, samples = spec.training, SAMPLES[spec.variant or FORMATS[spec.task]]
    per_epoch = samples - samples % training.batch_size * training.drop_last
    images = training.steps * training.batch_size if training.steps else (training.epochs or 0) * per_epoch
    inputs = forward_passes(spec)
    encoder = kept = evaluation_kept = 0
    if isinstance(parts, dict) and isinstance(spec.model, VPDModel):
        kept, evaluation_kept = kept_in_training(spec, parts, images, GPUS), kept_in_evaluation(spec, parts, inputs)
        encoder = ENCODER_MAPS * FLOAT * parts["vae"]["block_out_channels"][0] * (spec.model.canvas or crop(spec)) ** 2
    passes = inputs * len(training.milestones)
    texts = text_parameters(spec, parts), encoder_parameters(spec, parts)
    return Cost(spec, counted, texts[0], encoder, images, passes, kept, evaluation_kept, texts[1])


def forward_passes(spec: Spec) -> int:
    """Count the network inputs of one evaluation: windows, scales and mirror images (G7, G8, D11)."""
    samples = EVALUATED[spec.variant or FORMATS[spec.task]]
    if isinstance(spec, DepthSpec):
        return samples * spec.evaluation.windows * (1 + spec.evaluation.flip)
    if not isinstance(spec, SegmentationSpec):
        return samples
    settings, windows = spec.evaluation, 0
    for ratio, _ in views(settings):
        size = resized_size(*TYPICAL, settings.short_side, settings.long_side, ratio)
        windows += math.prod(len(window_starts(side, settings.crop, settings.stride)) for side in size)
    return samples * windows


def resources(cost: Cost, gpus: int = 1) -> dict[str, dict[str, int]]:
    """Return by stage what jobs of all seeds should reserve: training on ``gpus`` GPUs, evaluation on one."""
    evaluated = cost.evaluation_bytes(), FLOAT * cost.total.parameters, cost.evaluation_hours
    return {
        "train": _reserved(cost, gpus, cost.gpu_bytes(gpus), gpus * cost.state, cost.gpu_hours),
        "evaluate": _reserved(cost, 1, *evaluated),
    }


def _reserved(cost: Cost, gpus: int, gpu_bytes: int, host_bytes: int, hours: float) -> dict[str, int]:
    workers = cost.spec.training.workers
    # Before that, every process has the text encoders beside the network until the prompts are encoded: 19 GB of T5.
    host_bytes = max(host_bytes, gpus * FLOAT * (cost.total.parameters + cost.encoder_parameters))
    return {
        "gpus": gpus,
        "gpu_mem_mb": math.ceil(gpu_bytes / MIB),
        "mem_mb": math.ceil((gpus * (HOST + workers * WORKER) + host_bytes / MIB) * MARGIN),
        "runtime": STARTING + math.ceil(hours * 60 / gpus * len(cost.spec.seeds) * MARGIN),
        "cpus": gpus * (1 + workers),
    }


def all_costs(params: Params, names: Sequence[str] | None = None, checkpoint: str | None = None) -> dict[str, Cost]:
    """Count the experiments ``names``, or the whole matrix; UserError if the scale generates its data.

    With ``checkpoint``, VPD's experiments are counted as if they used that one.
    """
    specs = [params.resolve(name) for name in names or params.experiments]
    for spec in specs:
        if params.dataset(spec.dataset).source == "synthetic":
            raise UserError(
                f"{params.source}: scale {params.scale} generates its data and pre-trains its own checkpoints, whose sizes "
                "vpd cost does not know; use --scale paper"
            )

    def parts(spec: Spec) -> Parts:
        if spec.model.kind != "vpd":
            return params.backbone(spec.checkpoint)
        return configs(params.checkpoint(checkpoint or spec.checkpoint).family)

    return {spec.name: cost(spec, parts(spec)) for spec in track(specs, len(specs), "costs", "experiment")}


def write_costs(params: Params, costs: Mapping[str, Cost], path: Path) -> None:
    """Write ``{experiment: {resources, hours, trainable, figures}}`` as JSON; resources and hours by stage."""
    entries: dict[str, dict[str, object]] = {}
    for name, found in costs.items():
        hours = {"train": found.gpu_hours, "evaluate": found.evaluation_hours}
        entries[name] = {
            "resources": resources(found, params.resources(name).gpus),
            "hours": {stage: round(one_seed * len(found.spec.seeds), 3) for stage, one_seed in hours.items()},
            "trainable": found.total.trainable,
            "figures": figures(found),
        }
    write_json(path, entries)
