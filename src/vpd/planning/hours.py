"""GPU-hours of training and of evaluation, scaled from the times that the authors report for their own runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from vpd.config.schema import DepthSpec, SegmentationSpec, Spec
from vpd.datasets.transforms import resized_size
from vpd.evaluation.inference import views
from vpd.evaluation.windows import window_starts
from vpd.planning.counting import Part

SAMPLES = {"ade20k": 20210, "nyuv2": 24231, "refcoco": 42404, "refcoco+": 42278, "refcocog": 42226}
"""Training samples of the real datasets: images, and in the RefCOCO family (UMD split of RefCOCOg) objects."""
EVALUATED = {"ade20k": 2000, "nyuv2": 654, "refcoco": 10834, "refcoco+": 10758, "refcocog": 4896}
"""Images, and in the RefCOCO family sentences, of the splits that the tables show."""
TYPICAL = (512, 683)
"""Height and width of a validation image of ADE20K, most of which have sides of 3 to 4."""


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
    """Count the images that one run sees; ``samples`` per epoch are those of the real dataset unless given."""
    training = spec.training
    if training.steps:
        return training.steps * training.batch_size
    samples = samples or SAMPLES[_dataset(spec)]
    return training.epochs * (samples // training.batch_size * training.batch_size if training.drop_last else samples)


def forward_passes(spec: Spec, samples: int | None = None) -> int:
    """Count the network inputs of one evaluation: windows, scales and mirror images (G7, G8, D11).

    ``samples`` are those of the real split unless given.
    """
    samples = samples or EVALUATED[_dataset(spec)]
    if isinstance(spec, SegmentationSpec):
        return samples * sum(_windows(spec, ratio) for ratio, _ in views(spec.evaluation))
    if isinstance(spec, DepthSpec):
        return samples * spec.evaluation.windows * (1 + spec.evaluation.flip)
    return samples


def _windows(spec: SegmentationSpec, ratio: float) -> int:
    settings = spec.evaluation
    size = resized_size(*TYPICAL, settings.short_side, settings.long_side, ratio)
    return math.prod(len(window_starts(side, settings.crop, settings.stride)) for side in size)


def _dataset(spec: Spec) -> str:
    return spec.variant or {"segmentation": "ade20k", "depth": "nyuv2"}[spec.task]


def training_macs(parts: Mapping[str, Part], checkpointing: bool) -> int:
    """Count the multiply-adds of one training image.

    Frozen parts run forward; trained parts run forward and, at twice that, backward. Gradient checkpointing computes the
    forward pass of the U-Net, or of the backbone, a second time.
    """
    forward = sum(part.macs for part in parts.values())
    backward = 2 * sum(part.macs for part in parts.values() if part.trainable)
    repeated = sum(part.macs for name, part in parts.items() if name in CHECKPOINTED)
    return forward + backward + (repeated if checkpointing else 0)


def gpu_hours(task: str, images: int, macs: int) -> float:
    """Scale the authors' V100-hours of ``task`` to ``images`` of ``macs`` multiply-adds each."""
    reference = REFERENCES[task]
    return reference.hours * GPUS * (images / reference.images) * (macs / reference.macs)
