"""One drawn scene: from an integer seed to everything the datasets need."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy import ndarray

from vpd.world.classes import TOYS
from vpd.world.placement import Thing, furnish
from vpd.world.render import Picture, render, view_tangent
from vpd.world.rooms import KINDS, Room, draw_room
from vpd.world.seeds import CONTENT, LANGUAGE, NOISE, Rng


@dataclass(frozen=True)
class Instance:
    """A thing of which at least one pixel is visible."""

    index: int
    name: str
    colour: str
    size: str
    pattern: str
    area: int
    """Visible pixels."""
    box: tuple[int, int, int, int]
    """x, y, width and height of the visible part in pixels."""
    across: float
    """Centroid of the visible part, 0 at the left image edge and 1 at the right."""
    distance: float
    """Least visible depth in metres."""

    @property
    def toy(self) -> bool:
        """Whether it is a ball, box or cone."""
        return self.name in TOYS


@dataclass(frozen=True)
class Scene:
    """A scene and its picture."""

    seed: int
    room: Room
    things: list[Thing]
    picture: Picture
    instances: tuple[Instance, ...]

    def mask(self, instance: Instance) -> ndarray:
        """Visible pixels of an instance, (H, W) bool."""
        return self.picture.instances == instance.index

    def rng(self) -> Rng:
        """The stream that words are drawn from."""
        return Rng(self.seed, LANGUAGE)


def draw_scene(seed: int, width: int, height: int, kind: str | None = None) -> Scene:
    """Draw the scene of ``seed``; the same arguments give the same bytes on every machine."""
    rng = Rng(seed, CONTENT)
    room = draw_room(rng, kind or rng.pick(sorted(KINDS)))
    things = furnish(rng, room, view_tangent(width, height))
    picture = render(room, things, width, height, Rng(seed, NOISE))
    found = (_instance(thing, index, picture) for index, thing in enumerate(things))
    return Scene(seed, room, things, picture, tuple(instance for instance in found if instance))


def _instance(thing: Thing, index: int, picture: Picture) -> Instance | None:
    """Measure a thing's visible part; None if it is hidden or belongs to no class."""
    mask = picture.instances == index
    rows, columns = np.nonzero(mask)
    if not len(rows) or not picture.labels[rows[0], columns[0]]:
        return None
    left, top = int(columns.min()), int(rows.min())
    box = (left, top, int(columns.max()) - left + 1, int(rows.max()) - top + 1)
    across = (int(columns.sum()) / len(columns) + 0.5) / mask.shape[1]
    model = thing.model
    distance = float(picture.depth[mask].min())
    return Instance(index, model.name, model.colour, model.size, model.pattern, len(rows), box, across, distance)
