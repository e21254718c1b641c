"""Masks to COCO polygons that rasterise to exactly the same mask."""

from __future__ import annotations

import numpy as np
from numpy import ndarray

Run = tuple[int, int]


def polygons(mask: ndarray) -> list[list[float]]:
    """Outlines along pixel edges, [x0, y0, x1, y1, ...] each, whose union is the (H, W) mask.

    A stack of rows, one run of pixels each, becomes one polygon; where runs part or meet a new one begins, so that
    holes need no special case.
    """
    finished: list[list[tuple[int, Run]]] = []
    stacks: list[list[tuple[int, Run]]] = []
    for y, row in enumerate(mask):
        runs = _runs(row)
        links = [[run for run in runs if _touch(stack[-1][1], run)] for stack in stacks]
        parents = {run: sum(run in link for link in links) for run in runs}
        kept = []
        for stack, link in zip(stacks, links, strict=True):
            if len(link) == 1 and parents[link[0]] == 1:
                stack.append((y, link[0]))
                kept.append(stack)
            else:
                finished.append(stack)
        continued = {stack[-1][1] for stack in kept}
        stacks = kept + [[(y, run)] for run in runs if run not in continued]
    return [_outline(stack) for stack in finished + stacks]


def _runs(row: ndarray) -> list[Run]:
    """Half-open column ranges of the row's set pixels."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], row.astype(np.int8), [0]))))
    return [(int(start), int(end)) for start, end in edges.reshape(-1, 2)]


def _touch(one: Run, two: Run) -> bool:
    return one[0] < two[1] and two[0] < one[1]


def _outline(stack: list[tuple[int, Run]]) -> list[float]:
    """Down the left side, up the right side, without repeated or collinear points."""
    left = [(run[0], y + step) for y, run in stack for step in (0, 1)]
    right = [(run[1], y + step) for y, run in stack for step in (0, 1)]
    points = left + right[::-1]
    corners = []
    for before, point, after in zip(points[-1:] + points[:-1], points, points[1:] + points[:1], strict=True):
        straight = before[0] == point[0] == after[0] or before[1] == point[1] == after[1]
        if not straight:
            corners.append(point)
    return [float(value) for point in corners for value in point]
