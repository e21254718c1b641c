"""The interface of all pre-training objectives, and what several of them use."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn

from vpd.config.schema import BackboneSpec
from vpd.models.backbones import Backbone
from vpd.pretraining.backbones.examples import Examples

CHUNK = 64
"""Examples in one forward pass when measured."""


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

    def draw(self, count: int, generator: Generator) -> Tensor:
        """``count`` different candidates to train on, or all if there are fewer."""
        numbers = self.candidates(held=False)
        return numbers[torch.randperm(len(numbers), generator=generator)[:count]]

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
        self.backbone = backbone

    def result(self) -> Backbone:
        """The backbone whose weights are saved."""
        return self.backbone


def pooled(maps: list[Tensor]) -> Tensor:
    """Mean over the coarsest map, (B,C)."""
    return maps[-1].mean(dim=(2, 3))


def mean_average_precision(scores: Tensor, visible: Tensor) -> tuple[float, float]:
    """Mean average precision of ``scores`` (N,K) for the classes ``visible`` (N,K) bool, and that of chance.

    Only classes that some of the images show and some do not count; (0, 0) if there is none.
    """
    mixed = [column for column in range(visible.shape[1]) if 0 < visible[:, column].sum() < len(visible)]
    count = max(len(mixed), 1)
    total = sum(average_precision(scores[:, column], visible[:, column]) for column in mixed)
    return total / count, sum(visible[:, column].float().mean().item() for column in mixed) / count


def average_precision(scores: Tensor, positive: Tensor) -> float:
    """Mean, over the positives, of the share of positives among all that score at least as high."""
    ranked = positive[scores.argsort(descending=True, stable=True)]
    precision = ranked.cumsum(0) / (ranked.new_ones(len(ranked)).cumsum(0))
    return precision[ranked].mean().item()
