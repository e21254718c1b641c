"""The oracle: a small network that says which things of which colour an image shows and what kind of room.

It judges drawn images, is trained on scenes of its own and shares nothing with the networks that draw.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from vpd.config.schema import OracleSpec
from vpd.measures.scenes import PAIRS, ROOMS, Scenes
from vpd.pretraining.loop import Phase, initialised_by, rise_and_fall
from vpd.pretraining.workdir import Workdir

CHUNK = 64  # images judged at a time
STRIDE = 4  # pixels of a cell's side
WEIGHT = 4.0  # of the things' loss beside the room's; most cells show no thing


@dataclass(frozen=True)
class Verdict:
    """What the oracle says of N images."""

    things: Tensor  # (N,P) probability of each of PAIRS
    rooms: Tensor  # (N,) the likeliest of ROOMS
    features: Tensor  # (N,C) from which it tells both


class Oracle(nn.Module):
    """Residual network that says what each cell of STRIDE x STRIDE pixels shows; a thing is there if it is in any cell.

    To be told where things are teaches it several times as fast as to be told that they are there.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _Stage(3, width // 2, 2), _Stage(width // 2, width, 2), _Stage(width, width, 1), _Stage(width, width, 1)
        )
        self.things = nn.Conv2d(width, 1 + len(PAIRS), 1)
        self.rooms = nn.Linear(width, len(ROOMS))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of nothing and of things (B,1+P,h,w) and of rooms (B,R), and features (B,C), of images in [-1,1]."""
        maps = self.body(images)
        features = maps.mean(dim=(2, 3))
        return self.things(maps), self.rooms(features), features

    @torch.no_grad()
    def judge(self, images: Tensor) -> Verdict:
        """Judge images (N,3,H,W) uint8."""
        device = next(self.parameters()).device
        parts = []
        for part in images.split(CHUNK):
            things, rooms, features = self(_pixels(part).to(device))
            found = things.softmax(dim=1)[:, 1:].amax(dim=(2, 3))
            parts.append([value.cpu() for value in (found, rooms.argmax(dim=1), features)])
        return Verdict(*(torch.cat(values) for values in zip(*parts, strict=True)))


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

    def loss_of(generator: Generator) -> Tensor:
        batch = torch.randint(len(scenes), (spec.batch_size,), generator=generator)
        mirrored = torch.rand(spec.batch_size, generator=generator) < 0.5  # neither things nor rooms have a side
        images, shown = _mirrored(_pixels(scenes.images[batch]), mirrored), _mirrored(scenes.things[batch], mirrored)
        # What is drawn passed an autoencoder, and it is not sharpness that is judged.
        images = softened(images, torch.rand(spec.batch_size, generator=generator) < 0.5)
        things, rooms, _ = oracle(images.to(workdir.device))
        found = F.cross_entropy(things, shares(shown).to(workdir.device))
        return WEIGHT * found + F.cross_entropy(rooms, scenes.rooms[batch].to(workdir.device))

    factor = rise_and_fall(spec.steps)
    phase = Phase("oracle", "measures.oracle", oracle, spec.steps, spec.lr, factor)
    return oracle, phase.train(workdir, loss_of)


def _mirrored(images: Tensor, mirrored: Tensor) -> Tensor:
    return torch.where(mirrored.view(-1, *[1] * (images.ndim - 1)), images.flip(-1), images)


def softened(images: Tensor, chosen: Tensor) -> Tensor:
    """Reduce the ``chosen`` (B,) of images (B,3,H,W) to half their resolution."""
    half = F.interpolate(F.avg_pool2d(images, 2), images.shape[-2:], mode="bilinear", align_corners=False)
    return torch.where(chosen.view(-1, 1, 1, 1), half, images)


def shares(things: Tensor) -> Tensor:
    """Share of each cell that nothing and each of PAIRS has, (B,1+P,h,w), of ``things`` (B,H,W) as in ``Scenes``."""
    height, width = (side // STRIDE for side in things.shape[1:])
    cell = torch.arange(height)[:, None] * width + torch.arange(width)
    cell = cell.repeat_interleave(STRIDE, dim=0).repeat_interleave(STRIDE, dim=1)
    counts = torch.zeros(len(things), (1 + len(PAIRS)) * height * width)
    places = (things.long() * height * width + cell).flatten(1)
    counts.scatter_add_(1, places, torch.ones(1).expand_as(places))
    return counts.view(len(things), -1, height, width) / STRIDE**2


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
