"""The oracle: a small network that says which things of which colour an image shows and what kind of room.

It judges drawn images, is trained on scenes of its own and shares nothing with the networks that draw.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from vpd.config.schema import OracleSpec
from vpd.pretraining.diffusion.scenes import PAIRS, ROOMS, Scenes
from vpd.pretraining.loop import Phase, initialised_by, rise_and_fall
from vpd.pretraining.workdir import Workdir

CHUNK = 64  # images judged at a time
RARE = -4.0  # first logit of a thing: most images lack most things


@dataclass(frozen=True)
class Verdict:
    """What the oracle says of N images."""

    things: Tensor  # (N,P) probability of each of PAIRS
    rooms: Tensor  # (N,) the likeliest of ROOMS
    features: Tensor  # (N,C) from which it tells both


class Oracle(nn.Module):
    """Residual network with maps of 1/4 of the image's side; a thing is there if it is anywhere on the map."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _Stage(3, width // 2, 2), _Stage(width // 2, width, 2), _Stage(width, width, 1), _Stage(width, width, 1)
        )
        self.things = nn.Conv2d(width, len(PAIRS), 1)
        self.rooms = nn.Linear(width, len(ROOMS))
        nn.init.constant_(self.things.bias, RARE)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of things (B,P) and of rooms (B,R), and features (B,C), of images (B,3,H,W) in [-1,1]."""
        maps = self.body(images)
        features = maps.mean(dim=(2, 3))
        return self.things(maps).amax(dim=(2, 3)), self.rooms(features), features

    @torch.no_grad()
    def judge(self, images: Tensor) -> Verdict:
        """Judge images (N,3,H,W) uint8."""
        device = next(self.parameters()).device
        parts = [[value.cpu() for value in self(_pixels(part).to(device))] for part in images.split(CHUNK)]
        things, rooms, features = (torch.cat(values) for values in zip(*parts, strict=True))
        return Verdict(things.sigmoid(), rooms.argmax(dim=1), features)


class _Stage(nn.Module):
    """A strided convolution, and a residual block."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = _convolution(inputs, outputs, stride)
        self.residual = nn.Sequential(
            nn.ReLU(), _convolution(outputs, outputs), nn.ReLU(), _convolution(outputs, outputs)
        )

    def forward(self, maps: Tensor) -> Tensor:
        maps = self.first(maps)
        return F.relu(maps + self.residual(maps))


def _convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs))


def _pixels(images: Tensor) -> Tensor:
    return images.float() / 127.5 - 1.0


def train_oracle(spec: OracleSpec, scenes: Scenes, workdir: Workdir) -> tuple[Oracle, list[float]]:
    """Train on ``scenes``; return the oracle with the loss of every step."""
    with initialised_by(workdir.seed, "oracle"):
        oracle = Oracle(spec.width)
    present, known = scenes.present, known_pairs(scenes)

    def loss_of(generator: Generator) -> Tensor:
        batch = torch.randint(len(scenes), (spec.batch_size,), generator=generator)
        mirrored = torch.rand(spec.batch_size, generator=generator) < 0.5  # neither things nor rooms have a side
        images = _pixels(scenes.images[batch])
        images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
        things, rooms, _ = oracle(images.to(workdir.device))
        target, weight = present[batch].to(things), known[batch].to(things)
        found = F.binary_cross_entropy_with_logits(things, target, weight, reduction="sum") / spec.batch_size
        return found + F.cross_entropy(rooms, scenes.rooms[batch].to(workdir.device))

    factor = rise_and_fall(spec.steps)
    phase = Phase("oracle", "pretraining.measures.oracle", oracle, spec.steps, spec.lr, factor)
    return oracle, phase.train(workdir, loss_of)


def known_pairs(scenes: Scenes) -> Tensor:
    """(N,P) bool: all but what is visible, but smaller than what captions name; there the oracle may say either."""
    return scenes.present | (scenes.areas == 0)


def choose_threshold(things: Tensor, scenes: Scenes) -> float:
    """Least probability (N,P) that counts as found, so that as many things are found in ``scenes`` as there are.

    Then the oracle errs as often by what it misses as by what it makes up.
    """
    ranked = things[known_pairs(scenes)].sort(descending=True).values
    return ranked[max(int(scenes.present.sum()), 1) - 1].item()


def share_found(verdict: Verdict, threshold: float, pairs: Tensor, rooms: Tensor) -> dict[str, float]:
    """Share of N images in which the oracle finds the asked pair (N,), and that of those with the asked room (N,)."""
    found = verdict.things[torch.arange(len(pairs)), pairs] >= threshold
    return {"thing": found.float().mean().item(), "room": (verdict.rooms == rooms).float().mean().item()}
