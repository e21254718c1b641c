"""What stands in the rooms, built from solids around the origin with its back towards +z (the wall)."""

from __future__ import annotations

from dataclasses import dataclass

from vpd.world.classes import COLOURS, Colour
from vpd.world.seeds import Rng
from vpd.world.shapes import Block, Ellipsoid, Frustum, Point, Solid


@dataclass(frozen=True)
class Model:
    """A thing before it is placed: its solids, how they are described, and the floor it needs (width, depth)."""

    name: str
    solids: tuple[Solid, ...]
    footprint: tuple[float, float]
    colour: str = ""
    size: str = ""
    pattern: str = ""
    top: float | None = None
    """Height of a surface that toys can lie on."""


def shade(colour: Colour, factor: float) -> Colour:
    """``colour`` made darker or lighter."""
    return tuple(min(1.0, part * factor) for part in colour)


def jitter(rng: Rng, name: str) -> Colour:
    """The named colour, slightly varied in brightness and less in hue."""
    factor = rng.between(0.9, 1.1)
    return tuple(min(1.0, max(0.03, part * factor + rng.between(-0.02, 0.02))) for part in COLOURS[name])


def block(x: float, y: float, z: float, width: float, height: float, depth: float, colour: Colour, **finish) -> Block:
    """A block centred at (x, z) that stands on height ``y``."""
    low: Point = (x - width / 2, y, z - depth / 2)
    return Block(low, (x + width / 2, y + height, z + depth / 2), colour, **finish)


def frustum(x: float, y: float, z: float, radius: float, height: float, colour: Colour, taper: float = 1.0, **finish):
    """A frustum on height ``y``; ``radius`` is the wider end's."""
    low: Point = (x - radius, y, z - radius)
    return Frustum(low, (x + radius, y + height, z + radius), colour, taper=taper, **finish)


def legs(width: float, depth: float, height: float, thickness: float, colour: Colour) -> tuple[Block, ...]:
    """Four legs in the corners."""
    x, z = (width - thickness) / 2, (depth - thickness) / 2
    corners = ((-x, -z), (x, -z), (-x, z), (x, z))
    return tuple(block(a, 0.0, b, thickness, height, thickness, colour) for a, b in corners)


def table(rng: Rng) -> Model:
    """Rectangular with four legs, or round with one."""
    name = rng.pick(("brown", "white", "black", "brown"))
    colour, height = jitter(rng, name), rng.between(0.62, 0.74)
    if rng.chance(0.35):
        radius = rng.between(0.45, 0.6)
        top = frustum(0.0, height - 0.07, 0.0, radius, 0.07, colour)
        pole = frustum(0.0, 0.0, 0.0, 0.08, height - 0.07, shade(colour, 0.8))
        foot = frustum(0.0, 0.0, 0.0, radius * 0.55, 0.05, shade(colour, 0.8))
        return Model("table", (top, pole, foot), (radius * 2, radius * 2), name, top=height)
    width, depth = rng.between(1.0, 1.5), rng.between(0.6, 0.8)
    top = block(0.0, height - 0.07, 0.0, width, 0.07, depth, colour, pattern="grain" if name == "brown" else "plain")
    return Model(
        "table", (top, *legs(width, depth, height, 0.08, shade(colour, 0.85))), (width, depth), name, top=height
    )


def chair(rng: Rng) -> Model:
    """Seat and back on four legs, or on a single pole (office chair)."""
    name = rng.pick(("red", "blue", "brown", "black", "white", "green", "yellow"))
    colour, side = jitter(rng, name), rng.between(0.46, 0.54)
    seat = block(0.0, 0.42, 0.0, side, 0.08, side, colour)
    back = block(0.0, 0.5, side / 2 - 0.04, side, rng.between(0.45, 0.6), 0.07, shade(colour, 0.95))
    dark = shade(colour, 0.75)
    if rng.chance(0.4):
        pole = frustum(0.0, 0.06, 0.0, 0.05, 0.36, COLOURS["black"])
        foot = frustum(0.0, 0.0, 0.0, 0.25, 0.06, COLOURS["black"])
        return Model("chair", (seat, back, pole, foot), (side, side), name)
    return Model("chair", (seat, back, *legs(side, side, 0.42, 0.06, dark)), (side, side), name)


def bed(rng: Rng) -> Model:
    """Frame, blanket, pillow and headboard."""
    name = rng.pick(("red", "blue", "green", "pink", "purple", "gray"))
    colour, wood = jitter(rng, name), jitter(rng, rng.pick(("brown", "white", "brown")))
    width, length = rng.between(1.1, 1.6), rng.between(1.8, 2.0)
    pattern = "striped" if rng.chance(0.35) else "plain"
    solids = (
        block(0.0, 0.12, 0.0, width, 0.18, length, wood),
        block(0.0, 0.30, -0.2, width, 0.2, length - 0.4, colour, pattern=pattern, accent=shade(colour, 1.35)),
        block(0.0, 0.30, length / 2 - 0.2, width, 0.17, 0.4, COLOURS["white"]),
        Ellipsoid(
            (-width * 0.38, 0.42, length / 2 - 0.45), (width * 0.38, 0.64, length / 2 - 0.08), (0.97, 0.96, 0.93)
        ),
        block(0.0, 0.12, length / 2 - 0.03, width, rng.between(0.7, 0.9), 0.06, shade(wood, 0.9)),
    )
    return Model("bed", solids, (width, length), name)


def sofa(rng: Rng) -> Model:
    """Seat, back and two arms."""
    name = rng.pick(("red", "blue", "green", "gray", "purple", "brown", "yellow"))
    colour, width, depth = jitter(rng, name), rng.between(1.4, 1.9), 0.8
    arm = shade(colour, 0.9)
    solids = (
        block(0.0, 0.08, 0.0, width, 0.32, depth, colour, pattern="halves", accent=shade(colour, 0.6)),
        block(
            0.0,
            0.08,
            depth / 2 - 0.11,
            width,
            0.72,
            0.22,
            shade(colour, 0.95),
            pattern="halves",
            accent=shade(colour, 0.6),
        ),
        block(-width / 2 + 0.1, 0.08, -0.02, 0.2, 0.5, depth - 0.04, arm),
        block(width / 2 - 0.1, 0.08, -0.02, 0.2, 0.5, depth - 0.04, arm),
    )
    return Model("sofa", solids, (width, depth), name)


def cabinet(rng: Rng) -> Model:
    """A tall cupboard or a low counter, with doors and knobs."""
    name = rng.pick(("brown", "white", "gray", "brown"))
    colour = jitter(rng, name)
    if rng.chance(0.5):
        width, height, depth = rng.between(0.8, 1.1), rng.between(1.5, 1.9), 0.45
        return Model(
            "cabinet", (block(0.0, 0.0, 0.0, width, height, depth, colour, pattern="doors"),), (width, depth), name
        )
    width, height, depth = rng.between(1.1, 1.7), rng.between(0.8, 0.9), 0.5
    body = block(0.0, 0.0, 0.0, width, height - 0.05, depth, colour, pattern="doors")
    slab = block(
        0.0, height - 0.05, 0.0, width + 0.06, 0.05, depth + 0.06, rng.pick(((0.3, 0.3, 0.32), (0.8, 0.78, 0.74)))
    )
    return Model("cabinet", (body, slab), (width + 0.06, depth + 0.06), name)


def lamp(rng: Rng) -> Model:
    """A floor lamp with a glowing shade."""
    name = rng.pick(("yellow", "white", "red", "green", "blue", "pink"))
    height, radius = rng.between(1.3, 1.65), rng.between(0.2, 0.26)
    metal = COLOURS[rng.pick(("black", "gray", "brown"))]
    solids = (
        frustum(0.0, height - 0.38, 0.0, radius, 0.38, jitter(rng, name), taper=0.6, glow=0.55),
        frustum(0.0, 0.0, 0.0, 0.04, height - 0.3, metal),
        frustum(0.0, 0.0, 0.0, 0.17, 0.05, metal),
    )
    return Model("lamp", solids, (0.45, 0.45), name)


def plant(rng: Rng) -> Model:
    """Leaves in a pot."""
    pot = frustum(0.0, 0.0, 0.0, 0.19, 0.34, jitter(rng, rng.pick(("brown", "white", "orange", "gray"))), taper=1.35)
    leaves = []
    for _ in range(6):
        x, z, y = rng.between(-0.2, 0.2), rng.between(-0.2, 0.2), rng.between(0.35, 0.85)
        wide, tall = rng.between(0.10, 0.17), rng.between(0.16, 0.28)
        green = (rng.between(0.14, 0.3), rng.between(0.42, 0.62), rng.between(0.14, 0.26))
        leaves.append(Ellipsoid((x - wide, y - tall * 0.6, z - wide), (x + wide, y + tall, z + wide), green))
    return Model("plant", (pot, *leaves), (0.6, 0.6))


def bathtub(rng: Rng) -> Model:
    """A white tub with water; it belongs to no class."""
    width, white = rng.between(1.4, 1.6), COLOURS["white"]
    solids = (
        block(0.0, 0.0, 0.0, width, 0.5, 0.72, white),
        block(0.0, 0.5, 0.0, width - 0.16, 0.01, 0.56, (0.55, 0.75, 0.85), gloss=0.4),
    )
    return Model("bathtub", solids, (width, 0.72))


def toy(rng: Rng, name: str, colour: str) -> Model:
    """A ball, box or cone, small or large, plain or striped."""
    size = rng.pick(("small", "large"))
    side = rng.between(0.36, 0.42) if size == "small" else rng.between(0.58, 0.68)
    pattern = "striped" if rng.chance(0.3) else "plain"
    paint, half = jitter(rng, colour), side / 2
    finish = {"pattern": pattern, "accent": (0.95, 0.95, 0.93)}
    if name == "ball":
        solids = (Ellipsoid((-half, 0.0, -half), (half, side, half), paint, gloss=0.5, **finish),)
    elif name == "box":
        solids = (block(0.0, 0.0, 0.0, side, side * rng.between(0.75, 1.0), side * 0.9, paint, **finish),)
    else:
        cone = frustum(0.0, 0.0, 0.0, half * 0.9, side * rng.between(1.25, 1.45), paint, taper=0.08, **finish)
        solids = (cone, block(0.0, 0.0, 0.0, side, 0.05, side, shade(paint, 0.85)))
    return Model(name, solids, (side, side), colour, size, "striped" if pattern == "striped" else "")


FURNITURE = {
    "table": table,
    "chair": chair,
    "bed": bed,
    "sofa": sofa,
    "cabinet": cabinet,
    "lamp": lamp,
    "plant": plant,
    "bathtub": bathtub,
}
