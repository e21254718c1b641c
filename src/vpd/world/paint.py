"""Colours of floors, wallpapers, openings and patterned solids, and light: ambient, a lamp with soft shadows, the camera's."""

from __future__ import annotations

import numpy as np
from numpy import ndarray

from vpd.world.classes import Colour
from vpd.world.furniture import Thing, shade
from vpd.world.rooms import Opening, Room
from vpd.world.shapes import NEAR, Solid, dot, spread

LINE = 0.018  # width of joints and grooves in metres
AMBIENT, DIFFUSE, HEADLIGHT = 0.44, 0.78, 0.12
FALLOFF = 0.045  # per square metre from the lamp
IN_SHADOW = 0.25  # share of the lamp's light that reaches shadows


def _fill(shape: tuple[int, ...], colour: Colour) -> ndarray:
    return np.stack([np.full(shape, part) for part in colour])


def _put(paint: ndarray, where: ndarray, colour: Colour) -> None:
    paint[:, where] = np.array(colour)[:, None]


def _darken(paint: ndarray, where: ndarray, factor: float) -> None:
    paint *= np.where(where, factor, 1.0)


def _grain(rows: ndarray, columns: ndarray) -> ndarray:
    """A number in [0, 1) for each pair of integers, always the same."""
    mixed = (rows.astype(np.int64) * 73856093) ^ (columns.astype(np.int64) * 19349663)
    return ((mixed >> 3) & 255) / 256.0


def paint_floor(room: Room, x: ndarray, z: ndarray) -> ndarray:
    """Planks, tiles or carpet."""
    paint = _fill(x.shape, room.floor_colour)
    if room.floor == "wooden":
        row = np.floor(x / 0.16)
        along = z / 1.1 + _grain(row, row)
        paint *= 0.86 + 0.24 * _grain(row, np.floor(along))
        _darken(paint, (x - row * 0.16 < LINE) | ((along - np.floor(along)) * 1.1 < LINE), 0.72)
    elif room.floor == "tiled":
        row, column = np.floor(x / 0.4), np.floor(z / 0.4)
        _darken(paint, (row + column) % 2.0 == 0.0, 0.82)
        _darken(paint, (x - row * 0.4 < LINE) | (z - column * 0.4 < LINE), 0.8)
    else:
        paint *= 0.94 + 0.1 * _grain(np.floor(x / 0.05), np.floor(z / 0.05))
    return paint


def paint_wall(room: Room, along: ndarray, up: ndarray) -> ndarray:
    """The room's wallpaper, with a skirting board."""
    paint = _fill(along.shape, room.wall_colour)
    if room.wallpaper == "tiles":
        row, column = np.floor(up / 0.4), np.floor(along / 0.4)
        _darken(paint, (up - row * 0.4 < 2.0 * LINE) | (along - column * 0.4 < 2.0 * LINE), 0.86)
        _darken(paint, row == 3.0, 0.8)
    elif room.wallpaper == "stripes":
        _darken(paint, np.floor(along / 0.22) % 2.0 == 0.0, 0.9)
    elif room.wallpaper == "panels":
        _darken(paint, up < 0.9, 0.82)
        _darken(paint, (np.abs(up - 0.9) < 0.03) | ((up < 0.9) & (along - np.floor(along / 0.5) * 0.5 < 0.03)), 0.75)
    elif room.wallpaper == "dado":
        band = (up > 0.9) & (up < 1.45)
        _put(paint, band, shade(room.wall_colour, 1.08))
        cell = np.floor(up / 0.14) + np.floor(along / 0.14)
        _darken(paint, band & (cell % 2.0 == 0.0), 0.8)
    if room.wallpaper != "tiles":
        _put(paint, up < 0.09, (0.95, 0.94, 0.92))
    return paint


def paint_opening(opening: Opening, u: ndarray, v: ndarray) -> tuple[ndarray, ndarray | float]:
    """Colours (3, N) and own light (N) of points of an opening; u, v run from 0 to 1 across it."""
    u0, u1, v0, v1 = opening.rectangle
    width, height = u1 - u0, v1 - v0
    edge = np.minimum(np.minimum(u, 1.0 - u) * width, np.minimum(v, 1.0 - v) * height)
    if opening.name == "door":
        return _door(opening, u, v, width), 0.0
    if opening.name != "window":
        return (_rug if opening.name == "rug" else _picture)(opening, u, v, edge), 0.0
    sky = np.array(opening.accent).reshape(3, 1)
    paint = sky + (0.97 - sky) * (0.7 * (1.0 - v))
    _put(paint, v < 0.16 + 0.5 * (u - 0.3) * (1.1 - u), (0.36, 0.56, 0.30))  # a hill
    frame = (edge < 0.08) | (np.abs(u - 0.5) * width < 0.035) | (np.abs(v - 0.6) < 0.03)
    _put(paint, frame, opening.colour)
    return paint, np.where(frame, 0.1, 0.3)


def _door(opening: Opening, u: ndarray, v: ndarray, width: float) -> ndarray:
    paint = _fill(u.shape, opening.colour)
    side = np.abs(u - 0.5)
    for low, high in ((0.08, 0.42), (0.5, 0.92)):
        inside = (side < 0.34) & (v > low) & (v < high)
        core = (side < 0.29) & (v > low + 0.02) & (v < high - 0.02)
        _darken(paint, inside & ~core, 0.7)
        _darken(paint, core, 0.93)
    _put(paint, (side * width > width / 2 - 0.07) | (v > 0.965), (0.93, 0.91, 0.87))
    _put(paint, (np.abs(u - 0.84) * width < 0.04) & (np.abs(v - 0.46) < 0.02), (0.95, 0.8, 0.3))
    return paint


def _rug(opening: Opening, u: ndarray, v: ndarray, edge: ndarray) -> ndarray:
    paint = _fill(u.shape, opening.colour)
    if opening.pattern == "striped":
        _put(paint, np.floor(u * 9.0) % 2.0 == 1.0, opening.accent)
    elif opening.pattern == "border":
        _put(paint, (edge > 0.1) & (edge < 0.2), opening.accent)
    else:
        radius = 4.0 * ((u - 0.5) * (u - 0.5) + (v - 0.5) * (v - 0.5))
        _put(paint, (radius > 0.45) & (radius < 0.7), opening.accent)
    return paint * (0.93 + 0.12 * _grain(np.floor(u * 40.0), np.floor(v * 40.0)))


def _picture(opening: Opening, u: ndarray, v: ndarray, edge: ndarray) -> ndarray:
    paint = _fill(u.shape, opening.colour)
    _put(paint, v < 0.3 + 0.35 * u, shade(opening.colour, 0.6))
    _put(paint, (u - 0.7) * (u - 0.7) + (v - 0.7) * (v - 0.7) < 0.02, opening.accent)
    _put(paint, edge < 0.05, (0.22, 0.16, 0.12))
    return paint


def paint_solid(solid: Solid, points: ndarray) -> ndarray:
    """Colours (3, ...) of points on a solid."""
    paint = _fill(points[0].shape, solid.colour)
    if solid.pattern == "plain":
        return paint
    (lx, ly, lz), (hx, hy, hz) = solid.low, solid.high
    x, y, z = points
    wide = hx - lx >= hz - lz
    side = (x - lx) / (hx - lx) if wide else (z - lz) / (hz - lz)
    up = (y - ly) / (hy - ly)
    if solid.pattern == "striped":
        flat = hy - ly < 0.3
        _put(paint, np.floor((side if flat else up) * 5.0) % 2.0 == 1.0, solid.accent)
    elif solid.pattern == "halves":
        _darken(paint, np.abs(side - 0.5) < 0.012, 0.6)
    elif solid.pattern == "grain":
        _darken(paint, np.floor(side * 12.0) % 2.0 == 0.0, 0.93)
    elif solid.pattern == "doors":
        _cupboard(paint, side, up, max(hx - lx, hz - lz), hy - ly)
    return paint


def _cupboard(paint: ndarray, side: ndarray, up: ndarray, width: float, height: float) -> None:
    leaves = 2.0 if width < 1.3 else 3.0
    leaf = side * leaves
    within = (leaf - np.floor(leaf)) * width / leaves
    rest = width / leaves - within
    edge = np.minimum(np.minimum(within, rest), np.minimum(up, 1.0 - up) * height)
    _darken(paint, edge < 0.025, 0.62)
    _darken(paint, (edge > 0.08) & (edge < 0.1), 0.85)
    knob = (np.abs(within - 0.1) < 0.03) & (np.abs(up - (0.55 if height > 1.2 else 0.75)) * height < 0.03)
    _put(paint, knob & (up < 0.97), (0.85, 0.75, 0.45))


# ---------------------------------------------------------------------------------------------------------------- light
def brightness(
    room: Room, things: list[Thing], rays: ndarray, points: ndarray, normals: ndarray, fixed: ndarray
) -> ndarray:
    """Light that reaches every ray's surface; 1 shows it in its own colour. ``fixed``: where that is the room itself."""
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
    rays = points[:, ::2, ::2] - spread(room.lamp, points)  # one test a pixel, softened over its neighbours
    lit = np.ones(rays[0].shape)
    for solid in (solid for thing in things for solid in thing.solids if not solid.glow):
        lit = np.where(solid.hit(room.lamp, rays) < 1.0 - 100.0 * NEAR, IN_SHADOW, lit)
    wide = np.pad(lit, 1, mode="edge")
    wide = (wide[:-2] + 2.0 * wide[1:-1] + wide[2:]) * 0.25
    wide = (wide[:, :-2] + 2.0 * wide[:, 1:-1] + wide[:, 2:]) * 0.25
    return wide.repeat(2, axis=0).repeat(2, axis=1)
