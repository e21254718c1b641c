"""What an experiment costs: size, multiply-adds, memory and GPU-hours."""

from __future__ import annotations

from dataclasses import dataclass

from vpd.config.schema import BackboneSpec, Spec
from vpd.planning.cost.activations import Kept, keep
from vpd.planning.cost.counting import Part, count, text_parameters
from vpd.planning.cost.hours import forward_passes, gpu_hours, training_images, training_macs
from vpd.planning.cost.network import CLASSES, LAYOUTS, Parts, crop
from vpd.pretrained.stable_diffusion import sd1_configs
from vpd.utils.digests import digest
from vpd.utils.errors import UserError

GIB = 1 << 30
FLOAT = 4
"""Bytes of a weight, of its gradient, and of each of AdamW's two moments, whatever the precision of the activations."""
RESERVED = 3 * GIB // 2
"""Of a GPU: CUDA's context, the workspaces of its libraries, and what the allocator cannot use."""
ENCODER_MAPS = 4
"""Maps that the VAE encoder holds at once at its finest level: a block's input, its norm, a convolution's two ends."""
NO_COST = {"unet", "backbone", "timestep", "latent_scale"}
"""Model settings that change numbers, not what they cost."""
ARCHITECTURE = {"vision", "language", "vocabulary"}
"""Settings of a backbone that decide its cost."""
_measured: dict[str, dict] = {}


@dataclass(frozen=True)
class Cost:
    """Cost of one run of an experiment; multiply-adds are those of one training image, memory is in bytes."""

    parts: dict[str, Part]
    """VPD: vae, unet, adapter, neck, head; a baseline: backbone, neck, head; LAVT: backbone, language, fusion, head.
    Where there is no neck of that name, all of it is head."""
    text_parameters: int
    """Of the frozen text encoder, where prompts come with the images. The paper's figures leave it out, and so do
    ``parameters`` and ``macs``; memory includes it."""
    kept: Kept
    """Activations kept for the backward pass, without gradient checkpointing."""
    kept_checkpointed: Kept
    """The same with gradient checkpointing."""
    encoder: int
    """Working memory of VPD's frozen encoder for one image."""
    batch_size: int
    """Images of one optimizer step."""
    accumulate: int
    checkpointing: bool
    images: int
    """Training images that the run sees."""
    gpu_hours: float
    """V100-hours (see ``vpd.planning.cost.hours``)."""
    evaluation_batch: int
    evaluation_images: int
    """Network inputs of measuring all of the run's milestones."""
    evaluation_hours: float
    """V100-hours of that."""

    @property
    def parameters(self) -> int:
        """All parameters."""
        return sum(part.parameters for part in self.parts.values())

    @property
    def trainable(self) -> int:
        """Parameters that the optimizer changes."""
        return sum(part.trainable for part in self.parts.values())

    @property
    def macs(self) -> int:
        """Multiply-adds of the forward pass, attention products included."""
        return sum(part.macs for part in self.parts.values())

    @property
    def mmcv_macs(self) -> int:
        """Multiply-adds of the forward pass in mmcv's convention, the paper's."""
        return sum(part.mmcv_macs for part in self.parts.values())

    @property
    def training_macs(self) -> int:
        """Multiply-adds of the forward and the backward pass."""
        return training_macs(self.parts, self.checkpointing)

    @property
    def state(self) -> int:
        """Bytes of weights, gradients and AdamW's moments; frozen weights have neither of the others."""
        return FLOAT * (self.parameters + self.text_parameters + 3 * self.trainable)

    def step_bytes(self, processes: int = 1) -> int:
        """Memory of a training step in each of ``processes`` that share its batch, accumulation taken into account."""
        micro_batch = -(-self.batch_size // (self.accumulate * processes))
        kept = self.kept_checkpointed if self.checkpointing else self.kept
        return self.state + kept.copies + micro_batch * (kept.per_image + self.encoder)

    def gpu_bytes(self, gpus: int = 1) -> int:
        """Memory to expect on each GPU."""
        return self.step_bytes(gpus) + RESERVED

    def evaluation_bytes(self) -> int:
        """Memory of an evaluation: weights, and per image less than what checkpointing keeps for the backward pass."""
        weights = FLOAT * (self.parameters + self.text_parameters)
        return weights + self.evaluation_batch * (self.kept_checkpointed.per_image + self.encoder)


def cost(
    spec: Spec,
    parts: Parts | None = None,
    classes: int | None = None,
    samples: int | None = None,
    evaluated: int | None = None,
) -> Cost:
    """Cost of one run of ``spec``, without computing anything.

    ``parts`` are VPD's configurations of unet, vae and text_encoder (Stable Diffusion 1's unless given, see
    ``read_parts``), or a baseline's backbone (``params.backbone(spec.checkpoint)``); ``classes``, ``samples`` per epoch
    and ``evaluated`` samples are those of the real dataset unless given.
    """
    parts = parts or sd1_configs()
    if isinstance(parts, BackboneSpec) != (spec.model.kind != "vpd"):
        raise UserError(f"{spec.name} uses checkpoint {spec.checkpoint}; give its parts, or its backbone, to count it")
    measured = _measure(spec, parts, CLASSES[LAYOUTS[spec.task]] if classes is None else classes)
    training, images = spec.training, training_images(spec, samples)
    macs = training_macs(measured["parts"], training.gradient_checkpointing)
    forward = sum(part.macs for part in measured["parts"].values())
    inputs = forward_passes(spec, evaluated) * len(training.milestones)
    return Cost(
        **measured,
        encoder=_encoder(spec, parts),
        batch_size=training.batch_size,
        accumulate=training.accumulate,
        checkpointing=training.gradient_checkpointing,
        images=images,
        gpu_hours=gpu_hours(spec.task, images, macs),
        evaluation_batch=spec.evaluation.batch_size,
        evaluation_images=inputs,
        evaluation_hours=gpu_hours(spec.task, inputs, forward),
    )


def _encoder(spec: Spec, parts: Parts) -> int:
    if spec.model.kind != "vpd":
        return 0
    side = spec.model.canvas or crop(spec)
    return ENCODER_MAPS * FLOAT * parts["vae"]["block_out_channels"][0] * side**2


def _measure(spec: Spec, parts: Parts, classes: int) -> dict:
    """The fields of ``Cost`` that take a network; specs whose differences cost nothing share one measurement."""
    model = spec.model.model_dump(mode="json", exclude=NO_COST)
    training = spec.training.model_dump(mode="json", include={"precision", "loss"})
    own = parts.model_dump(include=ARCHITECTURE) if isinstance(parts, BackboneSpec) else parts
    key = digest([spec.task, model, training, crop(spec), own, classes])
    if key not in _measured:
        _measured[key] = {  # Counting comes first: it makes the tables that networks keep by grid from real tensors.
            "parts": count(spec, parts, classes),
            "text_parameters": text_parameters(spec, parts),
            "kept": keep(spec, parts, classes, checkpointing=False),
            "kept_checkpointed": keep(spec, parts, classes, checkpointing=True),
        }
    return _measured[key]
