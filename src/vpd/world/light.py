"""How bright surfaces are: ambient light, a lamp below the ceiling with soft shadows, and a little from the camera."""

from __future__ import annotations

import numpy as np
from numpy import ndarray

from vpd.world.placement import Thing
from vpd.world.rooms import Room
from vpd.world.shapes import NEAR, Rays

AMBIENT, DIFFUSE, HEADLIGHT = 0.44, 0.78, 0.12
FALLOFF = 0.045
"""Per square metre from the lamp."""
IN_SHADOW = 0.25
"""Share of the lamp's light that reaches shadows."""


def brightness(room: Room, things: list[Thing], rays: Rays, point: Rays, normal: ndarray, fixed: ndarray) -> ndarray:
    """Brightness of every ray's surface; ``fixed`` says where that is the room itself.

    Ambient light fades towards edges of the room; a wall point is not counted as near its own wall.
    """
    to_lamp = tuple(a - p for a, p in zip(room.lamp, point, strict=True))
    square = _dot(to_lamp, to_lamp)
    facing = np.maximum(_dot(normal, to_lamp), 0.0) / np.sqrt(square)
    lamp = DIFFUSE * facing / (1.0 + FALLOFF * square) * _shadow(room, things, point)
    x, y, z = point
    gaps = (y, room.height - y, x + room.width / 2, room.width / 2 - x, room.depth - z)
    corner = sum(np.maximum(0.0, 1.0 - 2.0 * np.abs(gap)) for gap in gaps) - fixed
    front = HEADLIGHT * np.abs(_dot(normal, rays)) / np.sqrt(_dot(rays, rays))
    return AMBIENT * (1.0 - 0.35 * np.minimum(corner, 1.5)) + lamp + front


def highlight(room: Room, point: Rays, normal: Rays, ray: Rays) -> ndarray:
    """Mirror image of the lamp: the twelfth power of the cosine between reflected ray and lamp."""
    facing = _dot(ray, normal)
    mirrored = tuple(d - 2.0 * facing * n for d, n in zip(ray, normal, strict=True))
    to_lamp = tuple(a - p for a, p in zip(room.lamp, point, strict=True))
    cosine = np.maximum(_dot(mirrored, to_lamp), 0.0) / np.sqrt(_dot(mirrored, mirrored) * _dot(to_lamp, to_lamp))
    fourth = cosine * cosine * cosine * cosine
    return fourth * fourth * fourth


def _dot(one: Rays, two: Rays) -> ndarray:
    return one[0] * two[0] + one[1] * two[1] + one[2] * two[2]


def _shadow(room: Room, things: list[Thing], point: Rays) -> ndarray:
    """How much of the lamp each ray's surface sees: one test a pixel, softened over its neighbours."""
    rays = tuple(part[::2, ::2] - a for part, a in zip(point, room.lamp, strict=True))
    lit = np.ones(rays[0].shape)
    for thing in things:
        for solid in thing.solids:
            if not solid.glow:
                lit = np.where(solid.hit(room.lamp, rays) < 1.0 - 100.0 * NEAR, IN_SHADOW, lit)
    wide = np.pad(lit, 1, mode="edge")
    wide = (wide[:-2] + 2.0 * wide[1:-1] + wide[2:]) * 0.25
    wide = (wide[:, :-2] + 2.0 * wide[:, 1:-1] + wide[:, 2:]) * 0.25
    return wide.repeat(2, axis=0).repeat(2, axis=1)
