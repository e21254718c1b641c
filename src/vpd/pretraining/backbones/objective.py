"""The interface of all pre-training objectives, what several of them use, and the plainest one, classification."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from vpd.config.schema import BackboneSpec
from vpd.models.backbones import Backbone, save_backbone
from vpd.pretraining.backbones.examples import Examples, flipped

VOCABULARY = "backbones.vocabulary"  # key of params.yaml, for messages
CHUNK = 64  # examples in one forward pass when measured


class Objective(nn.Module):
    """A network in training; all that a resumed run needs lies in its ``state_dict()``.

    A ``batch`` (B,) holds some of the numbers that ``candidates`` gives: of images, unless ``kind`` says otherwise.
    """

    kind = "images"

    def __init__(self, examples: Examples) -> None:
        super().__init__()
        self.examples = examples

    def candidates(self, held: bool) -> Tensor:
        """Numbers of what a batch is drawn from: held out, to measure with, or to train on."""
        return self.examples.numbers(self.kind, held)

    def loss(self, batch: Tensor, generator: Generator) -> Tensor:
        """Loss of the examples ``batch``, a scalar; all randomness comes from ``generator``."""
        raise NotImplementedError

    def after(self, progress: float) -> None:
        """Called after every optimizer step with the share of all steps that is done."""

    def measure(self) -> dict[str, float]:
        """Measure the network on what is held out; repeated calls return the same numbers."""
        raise NotImplementedError

    def save(self, folder: Path) -> int:
        """Write the network, without what only its training needs, below ``folder``; return its parameters' number."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        """Where the network computes."""
        return next(self.parameters()).device

    def pixels(self, images: Tensor) -> Tensor:
        """Images of the given numbers as float32 (B,3,H,W) in [-1,1]."""
        return self.examples.captions.pixels(images).to(self.device)


class VisionObjective(Objective):
    """An objective that trains a backbone; subclasses add what the objective needs beside it."""

    def __init__(self, backbone: Backbone, examples: Examples, spec: BackboneSpec) -> None:
        super().__init__(examples)
        self.backbone, self.vision = backbone, spec.vision

    def result(self) -> Backbone:
        """The backbone whose weights are saved."""
        return self.backbone

    def save(self, folder: Path) -> int:
        """Write the backbone to ``folder``/vision."""
        backbone = self.result().cpu().eval()
        save_backbone(backbone, self.vision, folder)
        return sum(parameter.numel() for parameter in backbone.network.parameters())


def pooled(maps: list[Tensor]) -> Tensor:
    """Mean over the coarsest map, (B,C)."""
    return maps[-1].mean(dim=(2, 3))


def mean_average_precision(scores: Tensor, visible: Tensor) -> tuple[float, float]:
    """Mean average precision of ``scores`` (N,K) for the classes that some images show and some do not; that of chance."""
    mixed = visible.any(dim=0) & ~visible.all(dim=0)
    precisions = []
    for score, positive in zip(scores.T[mixed], visible.T[mixed], strict=True):
        ranked = positive[score.argsort(descending=True, stable=True)]
        precision = ranked.cumsum(0) / torch.ones_like(ranked).cumsum(0)  # of the images that score at least as high
        precisions.append(precision[ranked].mean().item())
    count = max(len(precisions), 1)
    return sum(precisions) / count, sum(visible.T[mixed].float().mean(dim=1).tolist()) / count


class Classification(VisionObjective):
    """Learn which classes are visible in an image, in place of ImageNet's: for Swin, SwinV2-L (22K) and ConvNeXt (B1, B2)."""

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
