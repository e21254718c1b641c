"""Latents that a run computes once: images without augmentation pass the frozen encoder when they are first seen."""

from __future__ import annotations

import math

from vpd.config.schema import ReferringSpec, Spec, VPDModel
from vpd.models.network import LATENT_CACHE_BYTES
from vpd.planning.networks import FLOAT, Configs, crop

IMAGES = {"refcoco": (16994, 1500), "refcoco+": (16992, 1500), "refcocog": (21899, 1300)}
"""Images of the training and validation splits of the RefCOCO family, whose sentences share them."""


def room(spec: Spec, configs: Configs) -> int:
    """Count the latents that a process keeps; none if they are samples, which differ each time (S2)."""
    assert isinstance(spec.model, VPDModel)
    if spec.model.posterior == "sample":
        return 0
    vae = configs["vae"]
    side = (spec.model.canvas or crop(spec)) // 2 ** (len(vae["block_out_channels"]) - 1)
    return int(LATENT_CACHE_BYTES // (FLOAT * vae["latent_channels"] * side**2))


def kept_in_training(spec: Spec, configs: Configs, images: int, processes: int) -> int:
    """Count the training images whose latents are there already; each of ``processes`` keeps its own."""
    if not isinstance(spec, ReferringSpec):  # the other tasks augment their images
        return 0
    distinct, space = IMAGES[spec.variant or "refcoco"][0], room(spec, configs)
    return round(images - processes * encodings(images / processes, distinct, space))


def kept_in_evaluation(spec: Spec, configs: Configs, inputs: int) -> int:
    """Count the network inputs whose latents are there already, in an evaluation with ``inputs`` for each milestone."""
    passes, space = len(spec.training.milestones), room(spec, configs)
    distinct = IMAGES[spec.variant or "refcoco"][1] if isinstance(spec, ReferringSpec) and space else inputs
    return passes * inputs - distinct - (passes - 1) * max(distinct - space, 0)


def encodings(draws: float, distinct: int, space: int) -> float:
    """Estimate the latents that one process computes for random ``draws`` of ``distinct`` images, keeping the first ``space``.

    After m draws a share of exp(-m / distinct) was never seen. A full cache stays as it is. If some images are drawn more often
    than others, more of those are kept, and fewer latents are computed than this.
    """
    filled = -distinct * math.log(1 - space / distinct) if space < distinct else math.inf  # draws until it is full
    first = distinct * (1 - math.exp(-min(draws, filled) / distinct))
    return first + max(draws - filled, 0.0) * (1 - space / distinct)
