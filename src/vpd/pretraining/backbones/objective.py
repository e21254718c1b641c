"""The interface of all pre-training objectives, and what several of them use."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Generator, Tensor, nn

from vpd.config.schema import BackboneSpec
from vpd.models.backbones import Backbone, save_backbone
from vpd.pretraining.backbones.examples import Examples

VOCABULARY = "backbones.vocabulary"  # key of params.yaml, for messages
CHUNK = 64  # examples in one forward pass when measured


class Objective(nn.Module):
    """A network in training; all that a resumed run needs lies in its ``state_dict()``.

    A ``batch`` (B,) holds some of the numbers that ``candidates`` gives: of images, pairs or instances, depending on the
    objective.
    """

    def __init__(self, examples: Examples) -> None:
        super().__init__()
        self.examples = examples

    def candidates(self, held: bool) -> Tensor:
        """Numbers of what a batch is drawn from: held out, to measure with, or to train on."""
        return self.examples.images(held)

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
    """Mean average precision of ``scores`` (N,K) for the classes ``visible`` (N,K) bool, and that of chance.

    Only classes that some of the images show and some do not count; (0, 0) if there is none.
    """
    mixed = visible.any(dim=0) & ~visible.all(dim=0)
    precisions = []
    for score, positive in zip(scores.T[mixed], visible.T[mixed], strict=True):
        ranked = positive[score.argsort(descending=True, stable=True)]
        precision = ranked.cumsum(0) / torch.ones_like(ranked).cumsum(0)  # of the images that score at least as high
        precisions.append(precision[ranked].mean().item())
    count = max(len(precisions), 1)
    return sum(precisions) / count, sum(visible.T[mixed].float().mean(dim=1).tolist()) / count
