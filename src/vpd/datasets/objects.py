"""Images with classes and instance masks, which backbones are pre-trained on: objects.json lists them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray

from vpd.datasets.dataset import Contents, Preview
from vpd.datasets.images import check_pair, read_image, read_labels
from vpd.datasets.preview import palette
from vpd.utils.errors import UserError
from vpd.utils.files import read_json

TOPS = ("images", "masks", "objects.json")
NEEDED = ("train",)
INDEX = "objects.json"
NOTHING = 0
"""Mask value of pixels that belong to no instance."""
MOST_INSTANCES = 255
KEYS = {"file", "mask", "classes", "instances"}


def entries(root: Path) -> list[dict[str, Any]]:
    """Read the list of {"file", "mask", "classes": names, "instances": [{"id", "class"}]}."""
    listed: object = read_json(root / INDEX)
    if not isinstance(listed, list) or not all(_is_sound(entry) for entry in listed):
        raise UserError(
            f"{root / INDEX} must be a list of objects with the keys file, mask, classes (names) and instances (each "
            "with an id and a class)"
        )
    return listed


def _is_sound(entry: object) -> bool:
    if not isinstance(entry, dict) or not entry.keys() >= KEYS:
        return False
    lists = isinstance(entry["classes"], list) and isinstance(entry["instances"], list)
    return lists and all(isinstance(one, dict) and {"id", "class"} <= one.keys() for one in entry["instances"])


def read_mask(path: Path) -> ndarray:
    """Read (H, W) uint8 instance ids; 0 is nothing or stuff."""
    return read_labels(path, MOST_INSTANCES)


def contents(root: Path) -> Contents:
    """List the dataset in ``root``; counts are images, and the instances in them."""
    listed = entries(root)
    files = [INDEX, *(entry[kind] for entry in listed for kind in ("file", "mask"))]
    counts = {"train": len(listed), "instances": sum(len(entry["instances"]) for entry in listed)}
    checks = [partial(check, root / entry["file"], root / entry["mask"], entry) for entry in listed]
    return Contents(files, counts, {"train": checks})


def check(image_path: Path, mask_path: Path, entry: dict[str, Any]) -> bool:
    """UserError if a file is unreadable, sizes differ, or the listed instances are not those of the mask."""
    mask = read_mask(mask_path)
    check_pair(read_image(image_path), image_path, mask, mask_path)
    listed = sorted(one["id"] for one in entry["instances"])
    visible = [value for value in np.unique(mask).tolist() if value != NOTHING]
    if visible != listed:
        raise UserError(
            f"{mask_path} shows the instances {visible}, but {INDEX} lists {listed}; draw the dataset again"
        )
    for one in entry["instances"]:
        if one["class"] not in entry["classes"]:
            raise UserError(
                f"{INDEX}: instance {one['id']} of {entry['mask']} is a {one['class']}, which classes lacks"
            )
    return True


def preview(root: Path) -> Iterator[Preview]:
    """Image and coloured instances; the names of the classes below."""
    colours = palette(MOST_INSTANCES)
    for entry in entries(root):
        yield (
            [read_image(root / entry["file"]), colours[read_mask(root / entry["mask"])]],
            [", ".join(entry["classes"])],
        )
