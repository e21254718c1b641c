"""Solids that rays can hit: blocks, ellipsoids and frustums, upright and in metres (x right, y up, z away).

Only + - * / and sqrt touch the numbers, so that every machine finds the same hits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy import ndarray

from vpd.world.classes import Colour

Point = tuple[float, float, float]
Rays = tuple[ndarray, ndarray, ndarray]
NEAR = 1e-4
TINY = 1e-9


def nonzero(values: ndarray) -> ndarray:
    """``values`` with zeros replaced by a tiny number, so that they can divide."""
    return np.where(np.abs(values) < TINY, TINY, values)


def nearest_root(a: ndarray, b: ndarray, c: ndarray | float) -> tuple[ndarray, ndarray, ndarray]:
    """Both roots of a t^2 + 2 b t + c, smaller first, and where they exist."""
    square = b * b - a * c
    exists = square > 0.0
    root = np.sqrt(np.where(exists, square, 0.0))
    a = nonzero(a)
    first, second = (-b - root) / a, (-b + root) / a
    return np.minimum(first, second), np.maximum(first, second), exists


@dataclass(frozen=True)
class Solid:
    """Position by its bounds, paint and finish; subclasses know their surface."""

    low: Point
    high: Point
    colour: Colour
    pattern: str = "plain"
    accent: Colour = (0.95, 0.95, 0.93)
    gloss: float = 0.0
    glow: float = 0.0

    @property
    def centre(self) -> Point:
        """Middle of the bounds."""
        return tuple((low + high) * 0.5 for low, high in zip(self.low, self.high, strict=True))

    @property
    def half(self) -> Point:
        """Half extents."""
        return tuple((high - low) * 0.5 for low, high in zip(self.low, self.high, strict=True))

    def placed(self, x: float, y: float, z: float, quarter: int) -> Solid:
        """The solid turned by ``quarter`` right angles about the vertical axis, then moved."""
        (x0, y0, z0), (x1, y1, z1) = self.low, self.high
        for _ in range(quarter % 4):
            x0, x1, z0, z1 = z0, z1, -x1, -x0
        return replace(self, low=(x0 + x, y0 + y, z0 + z), high=(x1 + x, y1 + y, z1 + z))

    def hit(self, origin: Point, rays: Rays) -> ndarray:
        """Ray parameter of the first hit, infinite where there is none."""
        raise NotImplementedError

    def normal(self, point: Rays) -> Rays:
        """Outward normal at surface points."""
        raise NotImplementedError


class Block(Solid):
    """Axis-parallel box."""

    def hit(self, origin: Point, rays: Rays) -> ndarray:
        """Slab test."""
        enter, leave = NEAR, np.inf
        for start, ray, low, high in zip(origin, rays, self.low, self.high, strict=True):
            inverse = 1.0 / nonzero(ray)
            first, second = (low - start) * inverse, (high - start) * inverse
            enter = np.maximum(enter, np.minimum(first, second))
            leave = np.minimum(leave, np.maximum(first, second))
        return np.where(enter < leave, enter, np.inf)

    def normal(self, point: Rays) -> Rays:
        """The axis along which the point lies farthest out."""
        local = [(p - c) / h for p, c, h in zip(point, self.centre, self.half, strict=True)]
        size = [np.abs(part) for part in local]
        on_y = (size[1] >= size[0]) & (size[1] >= size[2])
        on_x = ~on_y & (size[0] >= size[2])
        faces = (on_x, on_y, ~(on_x | on_y))
        return tuple(np.where(face, np.sign(part), 0.0) for face, part in zip(faces, local, strict=True))


class Ellipsoid(Solid):
    """Axis-parallel ellipsoid filling its bounds."""

    def hit(self, origin: Point, rays: Rays) -> ndarray:
        """Quadratic in the space where the ellipsoid is the unit sphere."""
        a = b = c = 0.0
        for start, ray, middle, half in zip(origin, rays, self.centre, self.half, strict=True):
            d, o = ray / half, (start - middle) / half
            a, b, c = a + d * d, b + o * d, c + o * o
        first, _, exists = nearest_root(a, b, c - 1.0)
        return np.where(exists & (first > NEAR), first, np.inf)

    def normal(self, point: Rays) -> Rays:
        """Gradient of the quadratic form."""
        return unit(*((p - c) / (h * h) for p, c, h in zip(point, self.centre, self.half, strict=True)))


@dataclass(frozen=True)
class Frustum(Solid):
    """Upright cone whose radius is ``taper`` times smaller (or larger) at the top; 1 is a cylinder, 0 a full cone."""

    taper: float = 1.0

    def _radius(self) -> tuple[float, float]:
        """Radius at height zero (extrapolated) and its growth per metre."""
        bottom = self.half[0] if self.taper <= 1.0 else self.half[0] / self.taper
        slope = bottom * (self.taper - 1.0) / (self.high[1] - self.low[1])
        return bottom - slope * self.low[1], slope

    def hit(self, origin: Point, rays: Rays) -> ndarray:
        """Quadratic for the side, plane for the top."""
        base, slope = self._radius()
        x, _, z = self.centre
        ox, oy, oz = origin[0] - x, origin[1], origin[2] - z
        dx, dy, dz = rays
        radius, grow = base + slope * oy, slope * dy
        a = dx * dx + dz * dz - grow * grow
        b = ox * dx + oz * dz - radius * grow
        first, second, exists = nearest_root(a, b, ox * ox + oz * oz - radius * radius)
        best = np.full(dx.shape, np.inf)
        for root in (second, first):
            height = oy + root * dy
            fits = exists & (root > NEAR) & (height >= self.low[1]) & (height <= self.high[1])
            best = np.where(fits, root, best)
        top = (self.high[1] - oy) / nonzero(dy)
        px, pz, rim = ox + top * dx, oz + top * dz, base + slope * self.high[1]
        on_top = (top > NEAR) & (px * px + pz * pz <= rim * rim)
        return np.minimum(best, np.where(on_top, top, np.inf))

    def normal(self, point: Rays) -> Rays:
        """Up on the top, sloping outwards on the side."""
        base, slope = self._radius()
        x, _, z = self.centre
        px, py, pz = point
        nx, ny, nz = unit(px - x, -slope * (base + slope * py), pz - z)
        top = py > self.high[1] - 1e-6
        return np.where(top, 0.0, nx), np.where(top, 1.0, ny), np.where(top, 0.0, nz)


def unit(x: ndarray, y: ndarray, z: ndarray) -> Rays:
    """The vector scaled to length one."""
    length = nonzero(np.sqrt(x * x + y * y + z * z))
    return x / length, y / length, z / length
