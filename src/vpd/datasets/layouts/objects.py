"""Images with their classes and instance masks on disk: objects.json lists them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy import ndarray

from vpd.datasets.images import check_pair, read_image, read_labels
from vpd.utils.errors import UserError
from vpd.utils.files import read_json

SPLITS = ("train",)
TOPS = ("images", "masks", "objects.json")
INDEX = "objects.json"
NOTHING = 0
"""Mask value of what is no thing."""
MOST_INSTANCES = 255
KEYS = {"file", "mask", "classes", "instances"}


def entries(root: Path) -> list[dict]:
    """The list of {"file", "mask", "classes": names, "instances": [{"id", "class"}]}."""
    found = read_json(root / INDEX)
    if not isinstance(found, list) or not all(_sound(entry) for entry in found):
        raise UserError(
            f"{root / INDEX} must be a list of objects with the keys file, mask, classes (names) and instances (each "
            "with an id and a class)"
        )
    return found


def _sound(entry: object) -> bool:
    if not isinstance(entry, dict) or not entry.keys() >= KEYS:
        return False
    lists = isinstance(entry["classes"], list) and isinstance(entry["instances"], list)
    return lists and all(isinstance(one, dict) and {"id", "class"} <= one.keys() for one in entry["instances"])


def read_mask(path: Path) -> ndarray:
    """(H, W) uint8 instance ids; 0 is nothing or stuff."""
    return read_labels(path, MOST_INSTANCES)


def members(root: Path) -> list[str]:
    """All files that are read, relative to ``root``."""
    return [INDEX, *(entry[kind] for entry in entries(root) for kind in ("file", "mask"))]


def counts(root: Path) -> dict[str, int]:
    """Images, and the instances in them."""
    found = entries(root)
    return {"train": len(found), "instances": sum(len(entry["instances"]) for entry in found)}


def checks(root: Path) -> list[tuple]:
    """Arguments of ``check``."""
    return [(root / entry["file"], root / entry["mask"], entry) for entry in entries(root)]


def check(image_path: Path, mask_path: Path, entry: dict) -> None:
    """UserError if a file is unreadable, sizes differ, or the listed instances are not those of the mask."""
    mask = read_mask(mask_path)
    check_pair(read_image(image_path), image_path, mask, mask_path)
    listed = sorted(one["id"] for one in entry["instances"])
    shown = [value for value in np.unique(mask).tolist() if value != NOTHING]
    if shown != listed:
        raise UserError(f"{mask_path} shows the instances {shown}, but {INDEX} lists {listed}; draw the dataset again")
    for one in entry["instances"]:
        if one["class"] not in entry["classes"]:
            raise UserError(
                f"{INDEX}: instance {one['id']} of {entry['mask']} is a {one['class']}, which classes lacks"
            )
