"""Self-distillation without labels."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from vpd.config.schema import BackboneSpec
from vpd.models.backbones import Backbone
from vpd.pretraining.backbones.examples import Examples, crops, flipped, jittered
from vpd.pretraining.backbones.objective import CHUNK, VisionObjective, mean_average_precision, pooled
from vpd.pretraining.loop import generator_of

GLOBAL_AREAS, LOCAL_AREAS = (0.4, 1.0), (0.1, 0.4)  # share of the image that a crop covers; DINO's begin at 0.05
GLOBAL_SIDE, LOCAL_SIDE = 3 / 4, 3 / 8  # sides of a crop as the networks see it, relative to the image
STRENGTH, GREY = 0.4, 0.2  # colour jitter; DINO's hue shifts, blur and solarisation are left out
STUDENT_TEMPERATURE, TEACHER_TEMPERATURE = 0.1, 0.04
CENTRE_MOMENTUM = 0.9
HIDDEN, BOTTLENECK, PROTOTYPES = 256, 64, 128  # of the projection head, which is thrown away (DINO: 2048, 256, 65536)
NEIGHBOURS, NEIGHBOUR_TEMPERATURE = 20, 0.07  # of the vote of nearest neighbours by which the paper judges features


class SelfDistillation(VisionObjective):
    """Learn features that agree between crops of an image, without labels, after DINO (Caron et al. 2021; B1).

    A student that sees four crops imitates its own moving average, the teacher, which sees two and is the result.
    """

    def __init__(self, backbone: Backbone, examples: Examples, spec: BackboneSpec) -> None:
        super().__init__(backbone, examples, spec)
        assert spec.training is not None  # pretrain_backbone has checked
        self.student = Branch(backbone)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.momentum = spec.training.momentum
        self.centre: Tensor
        self.register_buffer("centre", torch.zeros(PROTOTYPES))

    def result(self) -> Backbone:
        """The teacher's backbone."""
        return self.teacher.backbone

    def loss(self, batch: Tensor, generator: Generator) -> Tensor:
        """Mean cross-entropy of each view's student with every other global view's teacher."""
        images = self.pixels(batch)
        whole = [self._view(images, GLOBAL_SIDE, GLOBAL_AREAS, generator) for _ in range(2)]
        local = [self._view(images, LOCAL_SIDE, LOCAL_AREAS, generator) for _ in range(2)]
        with torch.no_grad():
            taught = self.teacher(torch.cat(whole))
        answers = [part for views in (whole, local) for part in self.student(torch.cat(views)).chunk(2)]
        targets = sharpened(taught, self.centre).chunk(2)
        self.centre.lerp_(taught.mean(dim=0), 1 - CENTRE_MOMENTUM)
        return distillation(answers, list(targets))

    def _view(self, images: Tensor, side: float, areas: tuple[float, float], generator: Generator) -> Tensor:
        height, width = self.examples.captions.size
        size = (round(side * height), round(side * width))
        return jittered(flipped(crops(images, size, areas, generator), generator), STRENGTH, GREY, generator)

    @torch.no_grad()
    def after(self, progress: float) -> None:
        """Move the teacher towards the student, ever more slowly: the momentum rises to 1 along a cosine."""
        share = (1 - self.momentum) * (math.cos(math.pi * progress) + 1) / 2
        for ours, theirs in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            ours.lerp_(theirs, share)

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Share of held-out images whose two views are nearest, and the precision of a vote of the nearest images."""
        held, trained = self.candidates(held=True), self.candidates(held=False)
        votes = voted(self._features(held), self._features(trained), self.examples.visible[trained])
        precision, chance = mean_average_precision(votes, self.examples.visible[held])
        view = partial(self._view, side=GLOBAL_SIDE, areas=GLOBAL_AREAS, generator=generator_of("held-out views"))
        one, other = self._features(held, view), self._features(held, view)
        matching = ((one @ other.T).argmax(dim=1) == torch.arange(len(held))).float().mean().item()
        return {"view_matching": matching, "neighbour_average_precision": precision, "chance": chance}

    def _features(self, numbers: Tensor, view: Callable[[Tensor], Tensor] = lambda images: images) -> Tensor:
        """(N,C) unit vectors of the teacher for views of images."""
        parts = [pooled(self.teacher.backbone(view(self.pixels(part)))).cpu() for part in numbers.split(CHUNK)]
        return F.normalize(torch.cat(parts), dim=1)


class Branch(nn.Module):
    """Student or teacher: a backbone, three layers, a normalised bottleneck, and the cosine to each prototype."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        # DINO's transformers do without batch normalisation. Here it tells the nearly equal features of a fresh network
        # apart: without it all answers become uniform within so few steps and stay so.
        widths = itertools.pairwise((backbone.channels[-1], HIDDEN, HIDDEN))
        hidden = [layer for a, b in widths for layer in (nn.Linear(a, b), nn.BatchNorm1d(b), nn.GELU())]
        self.layers = nn.Sequential(*hidden, nn.Linear(HIDDEN, BOTTLENECK))
        self.prototypes = nn.Parameter(torch.empty(PROTOTYPES, BOTTLENECK).normal_())

    def forward(self, images: Tensor) -> Tensor:
        """(B, PROTOTYPES) from the pooled map, which stands in for DINO's class token: the tasks read maps."""
        bottleneck = self.layers(pooled(self.backbone(images)))
        return F.linear(F.normalize(bottleneck, dim=1), F.normalize(self.prototypes, dim=1))


def sharpened(outputs: Tensor, centre: Tensor) -> Tensor:
    """The teacher's answer: centred, so that no prototype takes all, and sharpened, so that not all share alike."""
    return ((outputs - centre) / TEACHER_TEMPERATURE).softmax(dim=1)


def distillation(answers: list[Tensor], targets: list[Tensor]) -> Tensor:
    """Mean cross-entropy over all pairs of different views; view i of ``answers`` is view i of ``targets``."""
    logs = [(answer / STUDENT_TEMPERATURE).log_softmax(dim=1) for answer in answers]
    pairs = [pair for pair in itertools.product(range(len(targets)), range(len(logs))) if pair[0] != pair[1]]
    losses = [-(targets[one] * logs[other]).sum(dim=1).mean() for one, other in pairs]
    return torch.stack(losses).mean()


def voted(features: Tensor, known: Tensor, visible: Tensor) -> Tensor:
    """Share (N,K) of the vote of the nearest of ``known`` (M,C), weighted by cosine, whose classes are ``visible`` (M,K)."""
    cosines, nearest = (features @ known.T).topk(min(NEIGHBOURS, len(known)), dim=1)
    weights = (cosines / NEIGHBOUR_TEMPERATURE).softmax(dim=1)
    return (weights[..., None] * visible[nearest].float()).sum(dim=1)
