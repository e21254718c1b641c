"""Kinds of room: what each looks like and what belongs in it, and the room itself (surfaces, openings, light, camera)."""

from __future__ import annotations

from dataclasses import dataclass

from vpd.world.classes import COLOURS, FLOOR_COLOURS, WALL_COLOURS, Colour
from vpd.world.seeds import Rng
from vpd.world.shapes import Point


@dataclass(frozen=True)
class Kind:
    """Palette and contents of one kind of room; each wish is a thing and the probability that it is there."""

    walls: tuple[str, ...]
    floors: tuple[str, ...]
    wallpaper: tuple[str, ...]
    wishes: tuple[tuple[str, float], ...]
    toys: tuple[int, int]
    rug: float = 0.0
    window: float = 0.6
    door: float = 0.5


KINDS: dict[str, Kind] = {
    "bathroom": Kind(("white", "blue", "green"), ("tiled",), ("tiles",),
        (("bathtub", 0.9), ("cabinet", 0.6), ("plant", 0.5), ("chair", 0.2)), (2, 3), rug=0.6, window=0.4),
    "bedroom": Kind(("pink", "blue", "beige", "white", "yellow"), ("wooden", "carpeted"), ("plain", "stripes"),
        (("bed", 1.0), ("cabinet", 0.5), ("lamp", 0.7), ("chair", 0.3), ("plant", 0.2)), (1, 3), rug=0.5, window=0.7),
    "dining_room": Kind(("beige", "green", "yellow", "white"), ("wooden",), ("plain", "panels"),
        (("table", 1.0), ("chair", 1.0), ("chair", 0.9), ("plant", 0.5), ("cabinet", 0.4)), (1, 2), rug=0.5, window=0.7),
    "kitchen": Kind(("white", "yellow", "green", "beige"), ("tiled",), ("plain", "dado"),
        (("cabinet", 1.0), ("cabinet", 0.7), ("table", 0.7), ("chair", 0.7), ("plant", 0.2)), (1, 3), window=0.7),
    "living_room": Kind(("beige", "white", "gray", "green", "blue"), ("wooden", "carpeted"), ("plain", "panels", "stripes"),
        (("sofa", 1.0), ("lamp", 0.7), ("plant", 0.6), ("table", 0.5), ("chair", 0.2)), (1, 3), rug=0.8, window=0.7),
    "office": Kind(("white", "gray", "blue"), ("carpeted", "tiled"), ("plain",),
        (("table", 1.0), ("chair", 1.0), ("cabinet", 0.7), ("lamp", 0.4), ("plant", 0.5)), (1, 3), window=0.6, door=0.7),
    "office_kitchen": Kind(("white", "gray", "blue"), ("tiled",), ("dado",),
        (("cabinet", 1.0), ("table", 0.8), ("chair", 0.8), ("chair", 0.4), ("plant", 0.5)), (1, 3), window=0.4, door=0.8),
    "study": Kind(("green", "beige", "gray"), ("wooden", "carpeted"), ("panels", "plain"),
        (("table", 0.9), ("lamp", 0.8), ("cabinet", 0.8), ("chair", 0.7), ("sofa", 0.2)), (1, 3), rug=0.6, window=0.5),
}  # fmt: skip
"""Named after scene classes of NYUv2."""


@dataclass(frozen=True)
class Opening:
    """A rectangle on a surface of the room: window, door, rug, or a picture (which belongs to no class)."""

    name: str
    surface: str
    rectangle: tuple[float, float, float, float]  # from and to, (along, up) a wall or (x, z) on the floor
    colour: Colour
    accent: Colour
    pattern: str = "plain"


@dataclass(frozen=True)
class Camera:
    """Where it stands and looks; angles as (cosine, sine) pairs made from rational numbers."""

    place: Point
    yaw: tuple[float, float]
    pitch: tuple[float, float]


@dataclass(frozen=True)
class Room:
    """An empty room with its light and camera; x from -width/2 to width/2, y from 0 to height, z from 0 to depth."""

    kind: str
    width: float
    height: float
    depth: float
    floor: str
    floor_colour: Colour
    wall: str
    wall_colour: Colour
    wallpaper: str
    openings: tuple[Opening, ...]
    lamp: Point
    tint: Colour
    exposure: float
    camera: Camera


def _angle(half_tangent: float) -> tuple[float, float]:
    """Cosine and sine of the angle whose half has this tangent, without trigonometric functions."""
    square = half_tangent * half_tangent
    return (1.0 - square) / (1.0 + square), 2.0 * half_tangent / (1.0 + square)


def draw_room(rng: Rng, kind: str) -> Room:
    """Draw an empty room of ``kind``, one of ``KINDS``."""
    style = KINDS[kind]
    width, height, depth = rng.between(3.4, 5.2), rng.between(2.4, 2.8), rng.between(3.6, 6.0)
    floor, wall = rng.pick(style.floors), rng.pick(style.walls)
    warm = rng.between(-0.06, 0.06)
    eye = (rng.between(-0.12, 0.12) * width, rng.between(1.35, 1.65), 0.1)
    floor_colour, wallpaper = rng.pick(FLOOR_COLOURS[floor]), rng.pick(style.wallpaper)
    openings = tuple(_openings(rng, style, width, height, depth))
    lamp = (rng.between(-0.3, 0.3) * width, height - 0.25, rng.between(0.25, 0.6) * depth)
    exposure = rng.between(0.88, 1.12)
    camera = Camera(eye, _angle(rng.between(-0.13, 0.13)), _angle(rng.between(0.07, 0.14)))
    surfaces = (floor, floor_colour, wall, WALL_COLOURS[wall], wallpaper)
    return Room(kind, width, height, depth, *surfaces, openings, lamp, (1.0 + warm, 1.0, 1.0 - warm), exposure, camera)


def _openings(rng: Rng, style: Kind, width: float, height: float, depth: float) -> list[Opening]:
    """At most one opening on each wall, so that none overlap, and a rug."""
    walls = rng.shuffled(("left", "right"))
    walls.insert(rng.pick((0, 2, 2)), "back")
    openings = []
    if rng.chance(style.window):
        span = _span(rng, wall := walls.pop(), rng.between(1.0, 1.6), width, depth)
        sky = rng.pick(((0.36, 0.62, 0.92), (0.50, 0.70, 0.90), (0.90, 0.60, 0.42)))
        rectangle = (*span, rng.between(0.9, 1.1), height - rng.between(0.3, 0.5))
        openings.append(Opening("window", wall, rectangle, (0.94, 0.93, 0.9), sky))
    if rng.chance(style.door):
        span = _span(rng, wall := walls.pop(), rng.between(0.85, 1.0), width, depth)
        paint = rng.pick((COLOURS["brown"], (0.75, 0.58, 0.4), COLOURS["white"], (0.45, 0.55, 0.62), (0.62, 0.25, 0.2)))
        openings.append(Opening("door", wall, (*span, 0.0, rng.between(1.95, 2.1)), paint, (0.85, 0.8, 0.7)))
    if walls and rng.chance(0.6):
        span, low = _span(rng, wall := walls.pop(), rng.between(0.5, 0.9), width, depth), rng.between(1.25, 1.4)
        colour, accent = rng.pick(("blue", "green", "orange", "purple")), rng.pick(("yellow", "white", "red"))
        rectangle = (*span, low, low + rng.between(0.4, 0.7))
        openings.append(Opening("picture", wall, rectangle, COLOURS[colour], COLOURS[accent]))
    if rng.chance(style.rug):
        across, along = rng.between(1.5, min(2.4, width - 0.8)), rng.between(1.0, 1.6)
        x, z = rng.between(-0.2, 0.2) * width, rng.between(1.9, max(1.9, depth - along / 2 - 0.4))
        paint = COLOURS[rng.pick(("red", "blue", "green", "purple", "gray", "orange", "brown"))]
        rectangle = (x - across / 2, x + across / 2, z - along / 2, z + along / 2)
        pattern, edge = rng.pick(("border", "striped", "oval")), rng.pick(((0.93, 0.9, 0.82), (0.2, 0.2, 0.25)))
        openings.append(Opening("rug", "floor", rectangle, paint, edge, pattern))
    return openings


def _span(rng: Rng, surface: str, size: float, width: float, depth: float) -> tuple[float, float]:
    """Where a rectangle of this size begins and ends along a wall, in view of the camera."""
    low, high = (-width / 2 + 0.25, width / 2 - 0.25) if surface == "back" else (1.6, depth - 0.25)
    start = rng.between(low, max(low, high - size))
    return start, start + size
