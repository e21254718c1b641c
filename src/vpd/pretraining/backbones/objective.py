"""What all objectives share: a network with everything that its training needs, and the vision phase's interface."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Generator, Tensor, nn

from vpd.pretraining.backbones.examples import Examples


class Objective(nn.Module):
    """A network in training; all that a resumed run needs lies in its ``state_dict()``.

    ``batch`` is one of the numbers that ``candidates`` gives: images, pairs or instances, as the objective has it.
    """

    sees: ClassVar[tuple[str, ...]] = ("images",)
    """What of the examples the objective looks at."""

    def __init__(self, examples: Examples) -> None:
        super().__init__()
        self.examples = examples

    def candidates(self, held: bool) -> Tensor:
        """Numbers of what a batch is drawn from, in training or when measured."""
        return self.examples.images(held)

    def loss(self, batch: Tensor, generator: Generator) -> Tensor:
        """Loss of the examples ``batch`` (B,); all randomness comes from ``generator``."""
        raise NotImplementedError

    def after(self, progress: float) -> None:
        """Called after every optimizer step with the share of all steps that is done."""

    def measure(self) -> dict[str, float]:
        """How well the network does on what was kept out of training; the same numbers whenever it is asked."""
        raise NotImplementedError

    def draw(self, count: int, generator: Generator) -> Tensor:
        """``count`` different candidates to train on, or all where there are fewer."""
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
    """An objective that trains a ``vpd.models.backbones.Backbone``."""

    def __init__(self, backbone: nn.Module, examples: Examples) -> None:
        super().__init__(examples)
        self.backbone = backbone

    def result(self) -> nn.Module:
        """The backbone whose weights are kept."""
        return self.backbone


def pooled(maps: list[Tensor]) -> Tensor:
    """Mean over the coarsest map, (B,C)."""
    return maps[-1].mean(dim=(2, 3))


class Fusion(nn.Module):
    """All maps of a backbone as one: each through a 1x1 convolution, resized to the finest and added."""

    def __init__(self, channels: list[int], width: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(count, width, 1) for count in channels)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """(B,width,H,W) at the finest map's resolution."""
        size = maps[0].shape[-2:]
        levels = (lateral(level) for lateral, level in zip(self.laterals, maps, strict=True))
        return sum(
            nn.functional.interpolate(level, size=size, mode="bilinear", align_corners=False) for level in levels
        )
