"""Held-out scenes: drawn by the world with seeds that no dataset has, with all that the measures ask about them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import count, islice

import numpy as np
import torch
from torch import Tensor

from vpd.datasets.images import through_jpeg
from vpd.pretraining.captions import Captions
from vpd.pretraining.workdir import Workdir
from vpd.utils.files import atomic_path
from vpd.utils.progress import track
from vpd.world.classes import COLOURS, LABELS, THINGS
from vpd.world.language import LEAST_SHARE, request
from vpd.world.language import captions as captions_of
from vpd.world.rooms import KINDS
from vpd.world.scene import Scene, draw_scene
from vpd.world.seeds import unseen_seed

Pair = tuple[str, str]  # a class and a colour
PAIRS: tuple[Pair, ...] = tuple((name, colour) for name in THINGS for colour in COLOURS)
ROOMS: tuple[str, ...] = tuple(sorted(KINDS))
CLASSES: tuple[str, ...] = tuple(LABELS)
CAPTIONS = 4  # of each scene; the first ones name its things


@dataclass(frozen=True)
class Scenes:
    """N images and what is in them; one prompt for each, which asks for its room and one of its things."""

    images: Tensor  # (N,3,H,W) uint8
    labels: Tensor  # (N,H,W) uint8: class + 1; 0 is none
    things: Tensor  # (N,H,W) uint8: pair of PAIRS + 1; 0 is none
    rooms: Tensor  # (N,) index in ROOMS
    asked: Tensor  # (N,) index in PAIRS of the thing that the prompt names
    prompts: list[str]
    captions: list[list[str]]  # CAPTIONS of each

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def areas(self) -> Tensor:
        """(N,P) int64: visible pixels of each of PAIRS."""
        counts = [torch.bincount(things.flatten(), minlength=len(PAIRS) + 1) for things in self.things]
        return torch.stack(counts)[:, 1:]

    @property
    def present(self) -> Tensor:
        """(N,P) bool: whether things of the pair are as large as those that captions name."""
        return self.areas >= LEAST_SHARE * self.things[0].numel()

    @property
    def captioned(self) -> Captions:
        """The images with the first caption of each, in the form that the pre-training has them."""
        numbers = torch.arange(len(self))
        return Captions(self.images, [texts[0] for texts in self.captions], numbers, numbers)


def held_out(part: str, number: int, size: tuple[int, int], workdir: Workdir) -> Scenes:
    """Draw ``number`` scenes of a part of ``vpd.world.seeds.UNSEEN``, height and width ``size``; kept in ``workdir``."""
    path = workdir.folder / f"scenes-{part}.pt"
    if not path.exists():
        scenes = islice(_scenes(workdir.seed, part, size), number)
        facts = [_facts(*scene) for scene in track(scenes, number, f"drawing scenes to {part}", "scenes")]
        columns = [torch.stack(column) for column in zip(*(tensors for tensors, _ in facts), strict=True)]
        with atomic_path(path) as temporary:
            torch.save((columns, [texts for _, texts in facts]), temporary)
    (images, labels, things, rooms, asked), texts = torch.load(path, weights_only=True)
    prompts, captions = [prompt for prompt, *_ in texts], [rest for _, *rest in texts]
    return Scenes(images, labels, things, rooms, asked, prompts, captions)


def _scenes(seed: int, part: str, size: tuple[int, int]) -> Iterator[tuple[Scene, str, Pair]]:
    """Endless scenes with a prompt and the thing it names; those with nothing to name are left out."""
    draw = partial(draw_scene, width=size[1], height=size[0])
    for index in count():
        scene = draw(unseen_seed(seed, part, index))
        if wanted := request(scene):
            prompt, thing = wanted
            yield scene, prompt, (thing.name, thing.colour)


def _facts(scene: Scene, prompt: str, pair: Pair) -> tuple[list[Tensor], list[str]]:
    """The tensors of ``Scenes`` in their order; the prompt and the captions."""
    # As the datasets' images, which are files, or their noise would tell them from these.
    image = torch.from_numpy(through_jpeg(scene.picture.image)).permute(2, 0, 1).contiguous()
    labels = torch.from_numpy(scene.picture.labels.astype(np.uint8))
    things = torch.zeros_like(labels)
    for one in scene.instances:
        if one.colour:
            things[torch.from_numpy(scene.mask(one))] = PAIRS.index((one.name, one.colour)) + 1
    places = [torch.tensor(ROOMS.index(scene.room.kind)), torch.tensor(PAIRS.index(pair))]
    return [image, labels, things, *places], [prompt, *islice(captions_of(scene), CAPTIONS)]
