"""The vocabulary of synthetic scenes: semantic classes in label order, and named colours."""

from __future__ import annotations

Colour = tuple[float, float, float]

CLASSES: tuple[tuple[str, bool], ...] = (
    ("wall", True), ("floor, flooring", True), ("ceiling", True), ("window, windowpane", True),
    ("door, double door", True), ("rug, carpet, carpeting", True), ("table", False), ("chair", False), ("bed", False),
    ("sofa, couch, lounge", False), ("cabinet", False), ("lamp", False), ("plant, flora, plant life", False),
    ("ball", False), ("box", False), ("cone", False),
)  # fmt: skip
"""Synonyms and whether the class is stuff; the entry's position plus one is its label, and label 0 is everything else."""

OTHER = 0
LABELS: dict[str, int] = {names.split(",")[0]: label for label, (names, _) in enumerate(CLASSES, start=1)}
THINGS: tuple[str, ...] = tuple(names.split(",")[0] for names, stuff in CLASSES if not stuff)
TOYS = ("ball", "box", "cone")

COLOURS: dict[str, Colour] = {
    "red": (0.84, 0.16, 0.15), "orange": (0.95, 0.52, 0.12), "yellow": (0.96, 0.83, 0.20), "green": (0.22, 0.62, 0.27),
    "blue": (0.16, 0.37, 0.80), "purple": (0.53, 0.27, 0.67), "pink": (0.95, 0.56, 0.69), "brown": (0.50, 0.32, 0.18),
    "white": (0.93, 0.93, 0.91), "gray": (0.55, 0.56, 0.58), "black": (0.15, 0.15, 0.17),
}  # fmt: skip
"""sRGB-like values in [0, 1]."""

WALL_COLOURS: dict[str, Colour] = {
    "white": (0.92, 0.91, 0.88), "beige": (0.87, 0.79, 0.66), "gray": (0.70, 0.72, 0.74), "blue": (0.60, 0.73, 0.84),
    "green": (0.68, 0.79, 0.66), "yellow": (0.93, 0.86, 0.62), "pink": (0.90, 0.76, 0.75),
}  # fmt: skip
"""Paler paints, so that no wall looks like a thing of the same name."""

FLOOR_COLOURS: dict[str, tuple[Colour, ...]] = {
    "wooden": ((0.66, 0.47, 0.30), (0.52, 0.36, 0.23), (0.77, 0.61, 0.43)),
    "tiled": ((0.80, 0.80, 0.78), (0.62, 0.66, 0.70), (0.78, 0.70, 0.60)),
    "carpeted": ((0.60, 0.58, 0.54), (0.46, 0.52, 0.60), (0.66, 0.56, 0.50)),
}
