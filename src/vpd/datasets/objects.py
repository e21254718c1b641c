"""Images with classes and instance masks, which backbones are pre-trained on: objects.json lists them."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from numpy import ndarray
from typing_extensions import TypedDict

from vpd.datasets.dataset import Contents, Preview, read_entries
from vpd.datasets.images import check_pair, read_image, read_labels
from vpd.datasets.preview import palette
from vpd.utils.errors import UserError

TOPS: tuple[str, ...] = ("images", "masks", "objects.json")
NEEDED: tuple[str, ...] = ("train",)
INDEX = "objects.json"
NOTHING = 0  # mask value of pixels that belong to no instance
MOST_INSTANCES = 255
Instance = TypedDict("Instance", {"id": int, "class": str})


class Entry(TypedDict):
    """One annotated image."""

    file: str
    mask: str
    classes: list[str]
    instances: list[Instance]


def entries(root: Path) -> list[Entry]:
    """Read objects.json."""
    return read_entries(root / INDEX, Entry, "file, mask, classes (names) and instances (each with an id and a class)")


def read_mask(path: Path) -> ndarray:
    """Read (H, W) uint8 instance ids; 0 is nothing or stuff."""
    return read_labels(path, MOST_INSTANCES)


def contents(root: Path) -> Contents:
    """List the dataset in ``root``; counts are images, and the instances in them."""
    listed = entries(root)
    files = [INDEX, *(path for entry in listed for path in (entry["file"], entry["mask"]))]
    counts = {"train": len(listed), "instances": sum(len(entry["instances"]) for entry in listed)}
    checks = [partial(_check, root / entry["file"], root / entry["mask"], entry) for entry in listed]
    return Contents(files, counts, {"train": checks})


def _check(image_path: Path, mask_path: Path, entry: Entry) -> bool:
    mask = read_mask(mask_path)
    check_pair(read_image(image_path), image_path, mask, mask_path)
    listed = sorted(one["id"] for one in entry["instances"])
    visible = [value for value in np.unique(mask).tolist() if value != NOTHING]
    if visible != listed:
        raise UserError(f"{mask_path} shows instances {visible}, but {INDEX} lists {listed}; draw the dataset again")
    for number, name in ((one["id"], one["class"]) for one in entry["instances"]):
        if name not in entry["classes"]:
            raise UserError(f"{INDEX}: instance {number} of {entry['mask']} is a {name}, which classes lacks; add it")
    return True


def preview(root: Path) -> Iterator[Preview]:
    """Image and coloured instances; the names of the classes below."""
    colours = palette(MOST_INSTANCES)
    for entry in entries(root):
        images = [read_image(root / entry["file"]), colours[read_mask(root / entry["mask"])]]
        yield images, [", ".join(entry["classes"])]
