"""What stands in the rooms, built from solids around the origin with its back towards +z (the wall); sizes in metres."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vpd.world.classes import COLOURS, Colour
from vpd.world.seeds import Rng
from vpd.world.shapes import Block, Ellipsoid, Frustum, Solid

Area = tuple[float, float, float, float]  # of the floor: x from, x to, z from, z to


@dataclass(frozen=True)
class Model:
    """A thing before it is placed: its solids, the floor it needs (width, depth), and how it is described."""

    name: str
    solids: tuple[Solid, ...]
    footprint: tuple[float, float]
    colour: str = ""
    size: str = ""
    pattern: str = ""
    top: float | None = None  # height of a surface that toys can lie on


@dataclass(frozen=True)
class Thing:
    """A placed thing."""

    model: Model
    solids: tuple[Solid, ...]
    area: Area


def shade(colour: Colour, factor: float) -> Colour:
    """``colour`` made darker or lighter."""
    red, green, blue = colour
    return min(1.0, red * factor), min(1.0, green * factor), min(1.0, blue * factor)


def _jitter(rng: Rng, name: str) -> Colour:
    factor = rng.between(0.9, 1.1)
    red, green, blue = (min(1.0, max(0.03, part * factor + rng.between(-0.02, 0.02))) for part in COLOURS[name])
    return red, green, blue


def _block(
    x: float, y: float, z: float, width: float, height: float, depth: float, colour: Colour, **finish: Any
) -> Block:
    """A block centred at (x, z) that stands on height ``y``."""
    return Block((x - width / 2, y, z - depth / 2), (x + width / 2, y + height, z + depth / 2), colour, **finish)


def _pole(y: float, radius: float, height: float, colour: Colour, **finish: Any) -> Frustum:
    """A frustum in the middle, on height ``y``; ``radius`` is the wider end's."""
    return Frustum((-radius, y, -radius), (radius, y + height, radius), colour, **finish)


def _legs(width: float, depth: float, height: float, thickness: float, colour: Colour) -> tuple[Block, ...]:
    x, z = (width - thickness) / 2, (depth - thickness) / 2
    corners = ((-x, -z), (x, -z), (-x, z), (x, z))
    return tuple(_block(a, 0.0, b, thickness, height, thickness, colour) for a, b in corners)


def _table(rng: Rng) -> Model:
    name = rng.pick(("brown", "white", "black", "brown"))
    colour, height = _jitter(rng, name), rng.between(0.62, 0.74)
    if rng.chance(0.35):
        radius, dark = rng.between(0.45, 0.6), shade(colour, 0.8)
        board = _pole(height - 0.07, radius, 0.07, colour)
        solids = (board, _pole(0.0, 0.08, height - 0.07, dark), _pole(0.0, radius * 0.55, 0.05, dark))
        return Model("table", solids, (radius * 2, radius * 2), name, top=height)
    width, depth = rng.between(1.0, 1.5), rng.between(0.6, 0.8)
    top = _block(0.0, height - 0.07, 0.0, width, 0.07, depth, colour, pattern="grain" if name == "brown" else "plain")
    legs = _legs(width, depth, height, 0.08, shade(colour, 0.85))
    return Model("table", (top, *legs), (width, depth), name, top=height)


def _chair(rng: Rng) -> Model:
    name = rng.pick(("red", "blue", "brown", "black", "white", "green", "yellow"))
    colour, side = _jitter(rng, name), rng.between(0.46, 0.54)
    seat = _block(0.0, 0.42, 0.0, side, 0.08, side, colour)
    back = _block(0.0, 0.5, side / 2 - 0.04, side, rng.between(0.45, 0.6), 0.07, shade(colour, 0.95))
    if rng.chance(0.4):
        below: tuple[Solid, ...] = (_pole(0.06, 0.05, 0.36, COLOURS["black"]), _pole(0.0, 0.25, 0.06, COLOURS["black"]))
    else:
        below = _legs(side, side, 0.42, 0.06, shade(colour, 0.75))
    return Model("chair", (seat, back, *below), (side, side), name)


def _bed(rng: Rng) -> Model:
    name = rng.pick(("red", "blue", "green", "pink", "purple", "gray"))
    colour, wood = _jitter(rng, name), _jitter(rng, rng.pick(("brown", "white", "brown")))
    width, length = rng.between(1.1, 1.6), rng.between(1.8, 2.0)
    pattern, end, pillow = "striped" if rng.chance(0.35) else "plain", length / 2, width * 0.38
    solids = (
        _block(0.0, 0.12, 0.0, width, 0.18, length, wood),
        _block(0.0, 0.30, -0.2, width, 0.2, length - 0.4, colour, pattern=pattern, accent=shade(colour, 1.35)),
        _block(0.0, 0.30, end - 0.2, width, 0.17, 0.4, COLOURS["white"]),
        Ellipsoid((-pillow, 0.42, end - 0.45), (pillow, 0.64, end - 0.08), (0.97, 0.96, 0.93)),
        _block(0.0, 0.12, end - 0.03, width, rng.between(0.7, 0.9), 0.06, shade(wood, 0.9)),
    )
    return Model("bed", solids, (width, length), name)


def _sofa(rng: Rng) -> Model:
    name = rng.pick(("red", "blue", "green", "gray", "purple", "brown", "yellow"))
    colour, width, depth = _jitter(rng, name), rng.between(1.4, 1.9), 0.8
    seam, arm = {"pattern": "halves", "accent": shade(colour, 0.6)}, shade(colour, 0.9)
    solids = (
        _block(0.0, 0.08, 0.0, width, 0.32, depth, colour, **seam),
        _block(0.0, 0.08, depth / 2 - 0.11, width, 0.72, 0.22, shade(colour, 0.95), **seam),
        _block(-width / 2 + 0.1, 0.08, -0.02, 0.2, 0.5, depth - 0.04, arm),
        _block(width / 2 - 0.1, 0.08, -0.02, 0.2, 0.5, depth - 0.04, arm),
    )
    return Model("sofa", solids, (width, depth), name)


def _cabinet(rng: Rng) -> Model:
    name = rng.pick(("brown", "white", "gray", "brown"))
    colour = _jitter(rng, name)
    if rng.chance(0.5):
        width, height = rng.between(0.8, 1.1), rng.between(1.5, 1.9)
        return Model(
            "cabinet", (_block(0.0, 0.0, 0.0, width, height, 0.45, colour, pattern="doors"),), (width, 0.45), name
        )
    width, height, depth = rng.between(1.1, 1.7), rng.between(0.8, 0.9), 0.5
    body = _block(0.0, 0.0, 0.0, width, height - 0.05, depth, colour, pattern="doors")
    stone = rng.pick(((0.3, 0.3, 0.32), (0.8, 0.78, 0.74)))
    slab = _block(0.0, height - 0.05, 0.0, width + 0.06, 0.05, depth + 0.06, stone)
    return Model("cabinet", (body, slab), (width + 0.06, depth + 0.06), name)


def _lamp(rng: Rng) -> Model:
    name = rng.pick(("yellow", "white", "red", "green", "blue", "pink"))
    height, radius = rng.between(1.3, 1.65), rng.between(0.2, 0.26)
    metal = COLOURS[rng.pick(("black", "gray", "brown"))]
    glowing = _pole(height - 0.38, radius, 0.38, _jitter(rng, name), taper=0.6, glow=0.55)
    solids = (glowing, _pole(0.0, 0.04, height - 0.3, metal), _pole(0.0, 0.17, 0.05, metal))
    return Model("lamp", solids, (0.45, 0.45), name)


def _plant(rng: Rng) -> Model:
    pot = rng.pick(("brown", "white", "orange", "gray"))
    solids: list[Solid] = [_pole(0.0, 0.19, 0.34, _jitter(rng, pot), taper=1.35)]
    for _ in range(6):
        x, z, y = rng.between(-0.2, 0.2), rng.between(-0.2, 0.2), rng.between(0.35, 0.85)
        wide, tall = rng.between(0.10, 0.17), rng.between(0.16, 0.28)
        green = (rng.between(0.14, 0.3), rng.between(0.42, 0.62), rng.between(0.14, 0.26))
        solids.append(Ellipsoid((x - wide, y - tall * 0.6, z - wide), (x + wide, y + tall, z + wide), green))
    return Model("plant", tuple(solids), (0.6, 0.6))


def _bathtub(rng: Rng) -> Model:  # belongs to no class
    width, water = rng.between(1.4, 1.6), (0.55, 0.75, 0.85)
    tub = _block(0.0, 0.0, 0.0, width, 0.5, 0.72, COLOURS["white"])
    return Model("bathtub", (tub, _block(0.0, 0.5, 0.0, width - 0.16, 0.01, 0.56, water, gloss=0.4)), (width, 0.72))


def draw_toy(rng: Rng, name: str, colour: str) -> Model:
    """A ball, box or cone."""
    size = rng.pick(("small", "large"))
    side = rng.between(0.36, 0.42) if size == "small" else rng.between(0.58, 0.68)
    pattern = "striped" if rng.chance(0.3) else "plain"
    paint, half = _jitter(rng, colour), side / 2
    solids: tuple[Solid, ...]
    if name == "ball":
        solids = (Ellipsoid((-half, 0.0, -half), (half, side, half), paint, pattern, gloss=0.5),)
    elif name == "box":
        solids = (_block(0.0, 0.0, 0.0, side, side * rng.between(0.75, 1.0), side * 0.9, paint, pattern=pattern),)
    else:
        cone = _pole(0.0, half * 0.9, side * rng.between(1.25, 1.45), paint, taper=0.08, pattern=pattern)
        solids = (cone, _block(0.0, 0.0, 0.0, side, 0.05, side, shade(paint, 0.85)))
    return Model(name, solids, (side, side), colour, size, "striped" if pattern == "striped" else "")


FURNITURE: dict[str, Callable[[Rng], Model]] = {
    "table": _table, "chair": _chair, "bed": _bed, "sofa": _sofa, "cabinet": _cabinet, "lamp": _lamp, "plant": _plant,
    "bathtub": _bathtub,
}  # fmt: skip
