"""Supervised classification, ImageNet's stand-in: which classes are visible in the image."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from vpd.config.schema import BackboneSpec
from vpd.pretraining.backbones.examples import Examples
from vpd.pretraining.backbones.objective import VisionObjective, pooled
from vpd.pretraining.backbones.precision import mean_average_precision
from vpd.pretraining.backbones.views import flipped

CHUNK = 64
"""Images looked at together when measured."""


class Classification(VisionObjective):
    """One sigmoid per class over the pooled coarsest map, since a drawn image shows several classes at once.

    Images are flipped, but not cropped as in ImageNet's recipe, because a crop may lose a class that the list names.
    """

    sees = ("images", "classes")

    def __init__(self, backbone: nn.Module, examples: Examples, spec: BackboneSpec) -> None:
        super().__init__(backbone, examples)
        self.norm = nn.LayerNorm(backbone.channels[-1])
        self.classifier = nn.Linear(backbone.channels[-1], len(examples.classes))

    def logits(self, images: Tensor) -> Tensor:
        """(B, classes)."""
        return self.classifier(self.norm(pooled(self.backbone(images))))

    def loss(self, batch: Tensor, generator: Generator) -> Tensor:
        """Binary cross-entropy, averaged over images and classes."""
        logits = self.logits(flipped(self.pixels(batch), generator))
        return F.binary_cross_entropy_with_logits(logits, self.examples.shown[batch].to(logits))

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Mean average precision over the classes that some of the images show and some do not, and that of chance."""
        numbers = self.candidates(held=True)
        scores = torch.cat([self.logits(self.pixels(part)).cpu() for part in numbers.split(CHUNK)])
        precision, chance = mean_average_precision(scores, self.examples.shown[numbers])
        return {"mean_average_precision": precision, "chance": chance}
