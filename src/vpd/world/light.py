"""How bright surfaces are: ambient light, a lamp below the ceiling with soft shadows, and a little from the camera."""

from __future__ import annotations

import numpy as np
from numpy import ndarray

from vpd.world.placement import Thing
from vpd.world.rooms import Room
from vpd.world.shapes import NEAR, dot, spread

AMBIENT, DIFFUSE, HEADLIGHT = 0.44, 0.78, 0.12
FALLOFF = 0.045
"""Per square metre from the lamp."""
IN_SHADOW = 0.25
"""Share of the lamp's light that reaches shadows."""


def brightness(
    room: Room, things: list[Thing], rays: ndarray, points: ndarray, normals: ndarray, fixed: ndarray
) -> ndarray:
    """Light that reaches every ray's surface.

    Args:
        room: with lamp and size.
        things: which throw shadows.
        rays: (3, H, W) directions from the camera.
        points: (3, H, W) where they end.
        normals: (3, H, W) of the surfaces there.
        fixed: (H, W) bool, where the surface is the room itself.

    Returns:
        (H, W); 1 shows a surface in its own colour.
    """
    to_lamp = spread(room.lamp, points) - points
    square = dot(to_lamp, to_lamp)
    facing = np.maximum(dot(normals, to_lamp), 0.0) / np.sqrt(square)
    lamp = DIFFUSE * facing / (1.0 + FALLOFF * square) * _shadow(room, things, points)
    x, y, z = points
    gaps = (y, room.height - y, x + room.width / 2, room.width / 2 - x, room.depth - z)
    # Ambient light fades towards the room's edges; a point of a wall is not counted as near its own wall.
    corner = sum(np.maximum(0.0, 1.0 - 2.0 * np.abs(gap)) for gap in gaps) - fixed
    front = HEADLIGHT * np.abs(dot(normals, rays)) / np.sqrt(dot(rays, rays))
    return AMBIENT * (1.0 - 0.35 * np.minimum(corner, 1.5)) + lamp + front


def highlight(room: Room, points: ndarray, normals: ndarray, rays: ndarray) -> ndarray:
    """Mirror image of the lamp: the twelfth power of the cosine between reflected ray and lamp."""
    mirrored = rays - 2.0 * dot(rays, normals) * normals
    to_lamp = spread(room.lamp, points) - points
    cosine = np.maximum(dot(mirrored, to_lamp), 0.0) / np.sqrt(dot(mirrored, mirrored) * dot(to_lamp, to_lamp))
    fourth = cosine * cosine * cosine * cosine
    return fourth * fourth * fourth


def _shadow(room: Room, things: list[Thing], points: ndarray) -> ndarray:
    """How much of the lamp each ray's surface sees: one test a pixel, softened over its neighbours."""
    rays = points[:, ::2, ::2] - spread(room.lamp, points)
    lit = np.ones(rays[0].shape)
    for solid in (solid for thing in things for solid in thing.solids if not solid.glow):
        lit = np.where(solid.hit(room.lamp, rays) < 1.0 - 100.0 * NEAR, IN_SHADOW, lit)
    wide = np.pad(lit, 1, mode="edge")
    wide = (wide[:-2] + 2.0 * wide[1:-1] + wide[2:]) * 0.25
    wide = (wide[:, :-2] + 2.0 * wide[:, 1:-1] + wide[:, 2:]) * 0.25
    return wide.repeat(2, axis=0).repeat(2, axis=1)
