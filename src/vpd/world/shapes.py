"""Solids that rays can hit: blocks, ellipsoids and frustums, upright and axis-parallel.

Points and rays are (3, ...) float64 arrays of x, y and z in metres.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy import ndarray

from vpd.world.classes import Colour

Point = tuple[float, float, float]
NEAR = 1e-4
TINY = 1e-9


def spread(point: Point, rays: ndarray) -> ndarray:
    """``point`` as a (3, 1, ...) array that broadcasts against ``rays``."""
    return np.array(point).reshape(3, *[1] * (rays.ndim - 1))


def dot(one: ndarray, two: ndarray) -> ndarray:
    """Scalar products, written out because the order of numpy's sums depends on the machine."""
    return one[0] * two[0] + one[1] * two[1] + one[2] * two[2]


def nonzero(values: ndarray) -> ndarray:
    """``values`` with zeros replaced by a tiny number, so that they can divide."""
    return np.where(np.abs(values) < TINY, TINY, values)


def _unit(vectors: ndarray) -> ndarray:
    return vectors / nonzero(np.sqrt(dot(vectors, vectors)))


def _roots(a: ndarray, b: ndarray, c: ndarray | float) -> tuple[ndarray, ndarray, ndarray]:
    """Both roots of a t^2 + 2 b t + c, smaller first, and where they exist."""
    square = b * b - a * c
    exists = square > 0.0
    root = np.sqrt(np.where(exists, square, 0.0))
    a = nonzero(a)
    first, second = (-b - root) / a, (-b + root) / a
    return np.minimum(first, second), np.maximum(first, second), exists


@dataclass(frozen=True)
class Solid:
    """Bounds, paint and finish; subclasses know their surface."""

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
        (x0, y0, z0), (x1, y1, z1) = self.low, self.high
        return (x0 + x1) * 0.5, (y0 + y1) * 0.5, (z0 + z1) * 0.5

    @property
    def half(self) -> Point:
        """Half extents."""
        (x0, y0, z0), (x1, y1, z1) = self.low, self.high
        return (x1 - x0) * 0.5, (y1 - y0) * 0.5, (z1 - z0) * 0.5

    def placed(self, x: float, y: float, z: float, quarter: int) -> Solid:
        """The solid turned by ``quarter`` right angles about the vertical axis, then moved."""
        (x0, y0, z0), (x1, y1, z1) = self.low, self.high
        for _ in range(quarter % 4):
            x0, x1, z0, z1 = z0, z1, -x1, -x0
        return replace(self, low=(x0 + x, y0 + y, z0 + z), high=(x1 + x, y1 + y, z1 + z))

    def hit(self, origin: Point, rays: ndarray) -> ndarray:
        """Ray parameter of the first hit, infinite where there is none."""
        raise NotImplementedError

    def normal(self, points: ndarray) -> ndarray:
        """Outward normals at surface points."""
        raise NotImplementedError


class Block(Solid):
    """Box."""

    def hit(self, origin: Point, rays: ndarray) -> ndarray:
        """Slab test: a ray is inside between its last entry and its first exit of the three pairs of planes."""
        inverse, start = 1.0 / nonzero(rays), spread(origin, rays)
        first, second = (spread(self.low, rays) - start) * inverse, (spread(self.high, rays) - start) * inverse
        enter = np.maximum(NEAR, np.minimum(first, second).max(axis=0))
        return np.where(enter < np.maximum(first, second).min(axis=0), enter, np.inf)

    def normal(self, points: ndarray) -> ndarray:
        """The axis along which the point lies farthest out."""
        local = (points - spread(self.centre, points)) / spread(self.half, points)
        x, y, z = np.abs(local)
        on_y = (y >= x) & (y >= z)
        on_x = ~on_y & (x >= z)
        return np.where(np.stack((on_x, on_y, ~(on_x | on_y))), np.sign(local), 0.0)


class Ellipsoid(Solid):
    """Ellipsoid filling its bounds."""

    def hit(self, origin: Point, rays: ndarray) -> ndarray:
        """Quadratic in the space where the ellipsoid is the unit sphere."""
        half = spread(self.half, rays)
        ray, start = rays / half, (spread(origin, rays) - spread(self.centre, rays)) / half
        first, _, exists = _roots(dot(ray, ray), dot(start, ray), dot(start, start) - 1.0)
        return np.where(exists & (first > NEAR), first, np.inf)

    def normal(self, points: ndarray) -> ndarray:
        """Gradient of the quadratic form."""
        half = spread(self.half, points)
        return _unit((points - spread(self.centre, points)) / (half * half))


@dataclass(frozen=True)
class Frustum(Solid):
    """Upright cone whose radius is ``taper`` times smaller (or larger) at the top; 1 is a cylinder, 0 a full cone."""

    taper: float = 1.0

    def _radius(self) -> tuple[float, float]:
        """Radius at height zero (extrapolated) and its growth per metre."""
        bottom = self.half[0] if self.taper <= 1.0 else self.half[0] / self.taper
        slope = bottom * (self.taper - 1.0) / (self.high[1] - self.low[1])
        return bottom - slope * self.low[1], slope

    def hit(self, origin: Point, rays: ndarray) -> ndarray:
        """Quadratic for the side, plane for the top; nobody sees the bottom."""
        (base, slope), (x, _, z), (dx, dy, dz) = self._radius(), self.centre, rays
        ox, oy, oz = origin[0] - x, origin[1], origin[2] - z
        radius, grow = base + slope * oy, slope * dy
        a = dx * dx + dz * dz - grow * grow
        b = ox * dx + oz * dz - radius * grow
        first, second, exists = _roots(a, b, ox * ox + oz * oz - radius * radius)
        best = np.full(dx.shape, np.inf)
        for root in (second, first):
            height = oy + root * dy
            fits = exists & (root > NEAR) & (height >= self.low[1]) & (height <= self.high[1])
            best = np.where(fits, root, best)
        top = (self.high[1] - oy) / nonzero(dy)
        px, pz, rim = ox + top * dx, oz + top * dz, base + slope * self.high[1]
        on_top = (top > NEAR) & (px * px + pz * pz <= rim * rim)
        return np.minimum(best, np.where(on_top, top, np.inf))

    def normal(self, points: ndarray) -> ndarray:
        """Up on the top, sloping outwards on the side."""
        (base, slope), (x, _, z), (px, py, pz) = self._radius(), self.centre, points
        side = _unit(np.stack((px - x, -slope * (base + slope * py), pz - z)))
        return np.where(py > self.high[1] - 1e-6, spread((0.0, 1.0, 0.0), points), side)
