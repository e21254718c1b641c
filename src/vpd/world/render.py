"""Ray casting: room and things to colours, classes, instances and depth.

Four rays a pixel give its colour; its class, instance and depth are those of the ray whose surface most of the four see, since
labels cannot be averaged. Arrays of rays are (2 H, 2 W), colours and normals with a leading 3.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy import ndarray

from vpd.world.classes import LABELS, OTHER
from vpd.world.furniture import Thing
from vpd.world.paint import brightness, highlight, paint_floor, paint_opening, paint_solid, paint_wall
from vpd.world.rooms import Camera, Room
from vpd.world.seeds import Rng
from vpd.world.shapes import Solid, nonzero, spread

FOCAL = 0.8  # focal length over the longer image side, about NYUv2's 519 of 640
ROOM = 1000  # codes from here on are a label plus this number; smaller ones count things from 0
PLANES = {"floor": (1, 1.0), "ceiling": (1, -1.0), "back": (2, -1.0), "left": (0, 1.0), "right": (0, -1.0)}
"""Surface of the room -> axis and sign of its normal."""


@dataclass
class _Buffers:  # what each ray has met so far
    distance: ndarray
    code: ndarray
    paint: ndarray
    normal: ndarray
    glow: ndarray
    shine: ndarray


@dataclass(frozen=True)
class Picture:
    """A rendered scene."""

    image: ndarray  # (H, W, 3) uint8
    labels: ndarray  # (H, W) uint8, 0 = no class
    instances: ndarray  # (H, W) int32, the index of the thing, or -1
    depth: ndarray  # (H, W) float64, metres along the viewing axis


def render(room: Room, things: list[Thing], width: int, height: int, rng: Rng) -> Picture:
    """Draw the furnished room at ``width`` x ``height`` pixels; ``rng`` gives the camera noise."""
    rays = _rays(room.camera, width, height)
    buffers = _empty_room(room, rays)
    for index, thing in enumerate(things):
        for solid in thing.solids:
            _draw(buffers, room, rays, solid, index)
    points = spread(room.camera.place, rays) + buffers.distance * rays
    light = brightness(room, things, rays, points, buffers.normal, buffers.code >= ROOM)
    image = _develop(buffers, room, light, rng)
    code, depth = _vote(buffers.code, buffers.distance)
    table = np.array([LABELS.get(thing.model.name, OTHER) for thing in things] or [OTHER], np.uint8)
    labels = np.where(code < ROOM, table[np.minimum(code, len(table) - 1)], code - ROOM).astype(np.uint8)
    return Picture(image, labels, np.where(code < ROOM, code, -1).astype(np.int32), depth)


def _rays(camera: Camera, width: int, height: int) -> ndarray:
    """World directions of 2 x 2 rays a pixel, with length one along the viewing axis, so that distance is depth."""
    focal = FOCAL * max(width, height)
    right = (((np.arange(2 * width) + 0.5) * 0.5 - width * 0.5) / focal)[None, :]
    up = ((height * 0.5 - (np.arange(2 * height) + 0.5) * 0.5) / focal)[:, None]
    (cos_yaw, sin_yaw), (cos_pitch, sin_pitch) = camera.yaw, camera.pitch
    away = cos_pitch + up * sin_pitch
    y = np.broadcast_to(up * cos_pitch - sin_pitch, (2 * height, 2 * width))
    return np.stack((right * cos_yaw + away * sin_yaw, y, away * cos_yaw - right * sin_yaw))


def _empty_room(room: Room, rays: ndarray) -> _Buffers:
    (dx, dy, dz), (ox, oy, oz), half = rays, room.camera.place, room.width / 2
    to_side = (np.where(dx > 0.0, half, -half) - ox) / nonzero(dx)
    to_level = (np.where(dy > 0.0, room.height, 0.0) - oy) / nonzero(dy)
    to_back = (room.depth - oz) / dz
    distance = np.minimum(np.minimum(to_side, to_level), to_back)
    level, back = distance == to_level, distance == to_back
    surfaces = {
        "floor": level & (dy <= 0.0),
        "ceiling": level & (dy > 0.0),
        "back": back & ~level,
        "left": ~(level | back) & (dx <= 0.0),
        "right": ~(level | back) & (dx > 0.0),
    }
    scalar, vector = distance.shape, rays.shape
    code = np.zeros(scalar, np.int32)
    buffers = _Buffers(distance, code, np.zeros(vector), np.zeros(vector), np.zeros(scalar), np.zeros(scalar))
    points = spread(room.camera.place, rays) + distance * rays
    for name, where in surfaces.items():
        _paint_surface(buffers, room, name, where, points[:, where])
    return buffers


def _paint_surface(buffers: _Buffers, room: Room, name: str, where: ndarray, points: ndarray) -> None:
    (x, y, z), (axis, sign) = points, PLANES[name]
    u, v = (x, z) if axis == 1 else ((x, y) if name == "back" else (z, y))
    if name == "floor":
        paint = paint_floor(room, u, v)
    elif name == "ceiling":
        paint = np.full((3, *u.shape), 0.93)
    else:
        paint = paint_wall(room, u, v)
    code = np.full(u.shape, ROOM + LABELS[name if axis == 1 else "wall"], np.int32)
    glow = np.zeros(u.shape)
    for opening in (opening for opening in room.openings if opening.surface == name):
        u0, u1, v0, v1 = opening.rectangle
        inside = (u > u0) & (u < u1) & (v > v0) & (v < v1)
        s, t = (u[inside] - u0) / (u1 - u0), (v[inside] - v0) / (v1 - v0)
        if opening.pattern == "oval":
            oval = (s - 0.5) * (s - 0.5) + (t - 0.5) * (t - 0.5) < 0.25
            inside[inside] = oval
            s, t = s[oval], t[oval]
        paint[:, inside], glow[inside] = paint_opening(opening, s, t)
        code[inside] = ROOM + LABELS.get(opening.name, OTHER)
    buffers.paint[:, where], buffers.code[where], buffers.glow[where] = paint, code, glow
    buffers.normal[axis][where] = sign


def _window_of(solid: Solid, room: Room, shape: tuple[int, ...]) -> tuple[slice, slice] | None:
    """Rows and columns of the rays that can meet the solid; most solids fill a small part of the image."""
    height, width = shape[0] // 2, shape[1] // 2
    focal, (ox, oy, oz) = FOCAL * max(width, height), room.camera.place
    (cos_yaw, sin_yaw), (cos_pitch, sin_pitch) = room.camera.yaw, room.camera.pitch
    columns, rows = [], []
    for x in (solid.low[0] - ox, solid.high[0] - ox):
        for z in (solid.low[2] - oz, solid.high[2] - oz):
            across, level = cos_yaw * x - sin_yaw * z, sin_yaw * x + cos_yaw * z
            for y in (solid.low[1] - oy, solid.high[1] - oy):
                away = max(0.05, level * cos_pitch - y * sin_pitch)
                columns.append(width + 2.0 * focal * across / away)
                rows.append(height - 2.0 * focal * (y * cos_pitch + level * sin_pitch) / away)
    left, right = max(0, int(min(columns)) - 1), min(shape[1], int(max(columns)) + 2)
    top, bottom = max(0, int(min(rows)) - 1), min(shape[0], int(max(rows)) + 2)
    return (slice(top, bottom), slice(left, right)) if left < right and top < bottom else None


def _draw(buffers: _Buffers, room: Room, rays: ndarray, solid: Solid, index: int) -> None:
    window = _window_of(solid, room, rays.shape[1:])
    if window is None:
        return
    view = rays[:, *window]
    distance = solid.hit(room.camera.place, view)
    nearer = distance < buffers.distance[window]
    if not nearer.any():
        return
    reach, ray = distance[nearer], view[:, nearer]
    points = spread(room.camera.place, ray) + reach * ray
    normals = solid.normal(points)
    for target, values in ((buffers.distance, reach), (buffers.code, index), (buffers.glow, solid.glow)):
        target[window][nearer] = values
    buffers.shine[window][nearer] = highlight(room, points, normals, ray) * solid.gloss if solid.gloss else 0.0
    buffers.paint[:, *window][:, nearer] = paint_solid(solid, points)
    buffers.normal[:, *window][:, nearer] = normals


def _develop(buffers: _Buffers, room: Room, light: ndarray, rng: Rng) -> ndarray:
    """Colours times light, averaged over each pixel, with noise, as uint8."""
    height, width = light.shape[0] // 2, light.shape[1] // 2
    noise = rng.bits.integers(-2, 3, (height, width, 4)) + rng.bits.integers(-2, 3, (height, width, 4))
    channels = []
    for channel, tint in enumerate(room.tint):
        bright = buffers.paint[channel] * (light * (tint * room.exposure) + buffers.glow) + buffers.shine
        bright = np.minimum(bright, 1.0)
        mean = ((bright[::2, ::2] + bright[::2, 1::2]) + (bright[1::2, ::2] + bright[1::2, 1::2])) * 0.25
        channels.append(mean * 255.0 + (noise[..., channel] + noise[..., 3]))
    return np.floor(np.minimum(np.maximum(np.stack(channels, axis=-1), 0.0), 255.0) + 0.5).astype(np.uint8)


def _vote(code: ndarray, *values: ndarray) -> list[ndarray]:
    """Each pixel's values of one of its four rays: the first of those with the most frequent code."""
    four = _quarters(code)
    chosen = np.argmax((four[:, None] == four[None]).sum(axis=1), axis=0)
    return [np.take_along_axis(_quarters(one), chosen[None], axis=0)[0] for one in (code, *values)]


def _quarters(values: ndarray) -> ndarray:
    return np.stack((values[::2, ::2], values[::2, 1::2], values[1::2, ::2], values[1::2, 1::2]))
