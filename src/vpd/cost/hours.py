"""GPU-hours of a training run, scaled from the times that the authors report for their own runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vpd.cost.counting import Part
from vpd.spec import Spec

SAMPLES = {"ade20k": 20210, "nyuv2": 24231, "refcoco": 42404, "refcoco+": 42278, "refcocog": 42226}
"""Training samples of the real datasets: images, and in the RefCOCO family (UMD split of RefCOCOg) objects."""


@dataclass(frozen=True)
class Reference:
    """One of the authors' own runs: 8 V100 with 32 GB, single precision (issue 29 of their repository)."""

    hours: float
    images: int
    """Training images seen: steps times batch, or epochs times samples."""
    macs: float
    """Multiply-adds of one training image in our network with that experiment's settings (``training_macs``)."""


REFERENCES = {
    "segmentation": Reference(26.0, 80_000 * 16, 1798.66e9),
    "referring": Reference(83.0, 40 * SAMPLES["refcoco"], 1920.82e9),
    "depth": Reference(12.0, 25 * SAMPLES["nyuv2"], 1958.64e9),
}
GPUS = 8
CHECKPOINTED = ("unet", "backbone")
"""Parts that gradient checkpointing computes twice."""


def training_images(spec: Spec, samples: int | None = None) -> int:
    """Images that one run sees; ``samples`` per epoch are those of the real dataset unless given."""
    training = spec.training
    if training.steps:
        return training.steps * training.batch_size
    samples = samples or SAMPLES[spec.variant or {"segmentation": "ade20k", "depth": "nyuv2"}[spec.task]]
    return training.epochs * (samples // training.batch_size * training.batch_size if training.drop_last else samples)


def training_macs(parts: Mapping[str, Part], checkpointing: bool) -> int:
    """Multiply-adds of one training image: frozen parts forward, trained parts forward and twice that backward.

    Gradient checkpointing computes the forward pass of the U-Net, or of the backbone, a second time.
    """
    forward = sum(part.macs for part in parts.values())
    backward = 2 * sum(part.macs for part in parts.values() if part.trainable)
    repeated = sum(part.macs for name, part in parts.items() if name in CHECKPOINTED)
    return forward + backward + (repeated if checkpointing else 0)


def gpu_hours(spec: Spec, images: int, macs: int) -> float:
    """V100-hours of one run: the authors' hours x 8 GPUs x (images / their images) x (macs / those of that network)."""
    reference = REFERENCES[spec.task]
    return reference.hours * GPUS * (images / reference.images) * (macs / reference.macs)
