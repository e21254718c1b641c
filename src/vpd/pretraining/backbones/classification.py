"""Supervised classification, in place of ImageNet's."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from vpd.config.schema import BackboneSpec
from vpd.models.backbones import Backbone
from vpd.pretraining.backbones.examples import Examples, flipped
from vpd.pretraining.backbones.objective import CHUNK, VisionObjective, mean_average_precision, pooled


class Classification(VisionObjective):
    """Learn which classes are visible in an image: the objective of Swin, SwinV2-L (22K) and ConvNeXt (B1, B2).

    One sigmoid per class over the pooled coarsest map, since a synthetic scene shows several classes at once. A batch
    (B,) numbers images.
    """

    def __init__(self, backbone: Backbone, examples: Examples, spec: BackboneSpec) -> None:
        super().__init__(backbone, examples, spec)
        self.norm = nn.LayerNorm(backbone.channels[-1])
        self.classifier = nn.Linear(backbone.channels[-1], len(examples.classes))

    def logits(self, images: Tensor) -> Tensor:
        """(B, classes)."""
        return self.classifier(self.norm(pooled(self.backbone(images))))

    def loss(self, batch: Tensor, generator: Generator) -> Tensor:
        """Binary cross-entropy, averaged over images and classes."""
        # Not cropped as in ImageNet's recipe: a crop may lose a class that the label still names.
        logits = self.logits(flipped(self.pixels(batch), generator))
        return F.binary_cross_entropy_with_logits(logits, self.examples.visible[batch].to(logits))

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Mean average precision on the held-out images, and that of chance."""
        numbers = self.candidates(held=True)
        scores = torch.cat([self.logits(self.pixels(part)).cpu() for part in numbers.split(CHUNK)])
        precision, chance = mean_average_precision(scores, self.examples.visible[numbers])
        return {"mean_average_precision": precision, "chance": chance}
