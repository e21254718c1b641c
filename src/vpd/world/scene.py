"""A scene: a furnished room seen by one camera, with everything that the datasets need to know about what is visible."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy import ndarray

from vpd.world.classes import COLOURS, TOYS
from vpd.world.furniture import FURNITURE, Area, Model, Thing, draw_toy
from vpd.world.render import FOCAL, Picture, render
from vpd.world.rooms import KINDS, Room, draw_room
from vpd.world.seeds import CONTENT, NOISE, Rng

AGAINST_WALL = ("bed", "sofa", "cabinet", "bathtub")
CORNERS = ("lamp", "plant")
TOY_COLOURS = tuple(name for name in COLOURS if name in ("red", "orange", "yellow", "green", "blue", "purple"))
TRIES = 24
GAP = 0.06  # metres kept between things


@dataclass(frozen=True)
class Instance:
    """A thing of which at least one pixel is visible."""

    index: int
    name: str
    colour: str
    size: str
    pattern: str
    area: int  # visible pixels
    box: tuple[int, int, int, int]  # x, y, width and height of the visible part in pixels
    across: float  # centroid of the visible part, 0 at the left image edge and 1 at the right
    distance: float  # least visible depth in metres


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


def draw_scene(seed: int, width: int, height: int, kind: str | None = None) -> Scene:
    """Draw a scene; the contents depend on the seed, the kind of room and the picture's shape, not on its size."""
    rng = Rng(seed, CONTENT)
    room = draw_room(rng, kind or rng.pick(sorted(KINDS)))
    things = furnish(rng, room, width / (2.0 * FOCAL * max(width, height)))
    picture = render(room, things, width, height, Rng(seed, NOISE))
    found = (_instance(thing, index, picture) for index, thing in enumerate(things))
    return Scene(seed, room, things, picture, tuple(instance for instance in found if instance))


def _instance(thing: Thing, index: int, picture: Picture) -> Instance | None:
    mask = picture.instances == index
    rows, columns = np.nonzero(mask)
    if not len(rows) or not picture.labels[rows[0], columns[0]]:
        return None  # hidden, or of no class
    left, top = int(columns.min()), int(rows.min())
    box = (left, top, int(columns.max()) - left + 1, int(rows.max()) - top + 1)
    across = (int(columns.sum()) / len(columns) + 0.5) / mask.shape[1]
    looks = (thing.model.name, thing.model.colour, thing.model.size, thing.model.pattern)
    return Instance(index, *looks, len(rows), box, across, float(picture.depth[mask].min()))


# ------------------------------------------------------------------------------------------------------------- furnishing
def furnish(rng: Rng, room: Room, view: float) -> list[Thing]:
    """Draw the room's contents, of which none is inside another; ``view`` is the tangent of half the viewing angle."""
    style = KINDS[room.kind]
    things: list[Thing] = []
    for name, probability in style.wishes:
        if rng.chance(probability):
            _add(rng, room, view, things, FURNITURE[name](rng))
    for _ in range(rng.count(*style.toys)):
        model = draw_toy(rng, rng.pick(TOYS), rng.pick(TOY_COLOURS))
        tables = [thing for thing in things if thing.model.top is not None]
        if tables and model.size == "small" and rng.chance(0.5):
            _lay_on(rng, things, tables[0], model)
        else:
            _add(rng, room, view, things, model)
    return things


def _add(rng: Rng, room: Room, view: float, things: list[Thing], model: Model) -> None:
    """Place the model at the first random spot that is free; leave it out if none of ``TRIES`` is."""
    blocked, half = [thing.area for thing in things], room.width / 2
    for low, high, surface in ((*door.rectangle[:2], door.surface) for door in room.openings if door.name == "door"):
        floor = {"left": (-half, -half + 0.5, low, high), "right": (half - 0.5, half, low, high)}
        blocked.append(floor.get(surface, (low, high, room.depth - 0.5, room.depth)))  # or the door would not open
    cosine, sine = room.camera.yaw
    for _ in range(TRIES):
        x, z, quarter = _spot(rng, room, view, model)
        width, depth = model.footprint if quarter % 2 == 0 else model.footprint[::-1]
        area = (x - width / 2, x + width / 2, z - depth / 2, z + depth / 2)
        inside = area[0] > -half and area[1] < half and area[2] > 1.0 and area[3] < room.depth
        right, away = x - room.camera.place[0], z - room.camera.place[2]
        across, away = cosine * right - sine * away, sine * right + cosine * away
        seen = away > 1.5 and abs(across) < 0.9 * view * away
        if inside and seen and not any(_overlap(area, other) for other in blocked):
            things.append(Thing(model, tuple(solid.placed(x, 0.0, z, quarter) for solid in model.solids), area))
            return


def _spot(rng: Rng, room: Room, view: float, model: Model) -> tuple[float, float, int]:
    """A centre on the floor and the quarter turns that put the back to the wall."""
    width, depth = model.footprint
    side = room.width / 2 - 0.02
    if model.name in AGAINST_WALL:
        wall = rng.pick(("back", "back", "left", "right"))
        if wall == "back":
            return rng.between(-side, side), room.depth - depth / 2 - 0.02, 0
        z = rng.between(1.7, room.depth)
        return (side - depth / 2, z, 1) if wall == "right" else (-side + depth / 2, z, 3)
    if model.name in CORNERS and rng.chance(0.7):
        x = rng.between(0.7, 1.0) * (side - width / 2)
        return (x if rng.chance(0.5) else -x), rng.between(2.2, room.depth - depth / 2), 0
    near, far = (1.75, 3.5) if model.size else (2.2, room.depth - depth / 2)
    away = rng.between(near, min(far, room.depth - depth / 2))
    across = rng.between(-0.85, 0.85) * view * away
    cosine, sine = room.camera.yaw
    x, z = room.camera.place[0] + cosine * across + sine * away, cosine * away - sine * across
    return x, z, rng.count(0, 3)


def _overlap(one: Area, two: Area) -> bool:
    apart_x = one[0] > two[1] + GAP or two[0] > one[1] + GAP
    return not (apart_x or one[2] > two[3] + GAP or two[2] > one[3] + GAP)


def _lay_on(rng: Rng, things: list[Thing], table: Thing, model: Model) -> None:
    """Put a small thing on the table, unless one already lies there."""
    assert table.model.top is not None
    x = rng.between(table.area[0] + 0.25, table.area[1] - 0.25)
    z = rng.between(table.area[2] + 0.25, table.area[3] - 0.25)
    half = model.footprint[0] / 2
    area = (x - half, x + half, z - half, z + half)
    lying = [other for other in things if other is not table and other.model.size and other.solids[0].low[1] > 0.3]
    if not any(_overlap(area, other.area) for other in lying):
        things.append(Thing(model, tuple(solid.placed(x, table.model.top, z, 0) for solid in model.solids), area))
