"""Captioned images, which the diffusion models are pre-trained on: captions.json lists a file and its caption each."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from vpd.datasets.dataset import Contents, Preview
from vpd.datasets.images import read_image
from vpd.utils.errors import UserError
from vpd.utils.files import read_json

TOPS = ("images", "captions.json")
NEEDED = ("train",)
INDEX = "captions.json"


def entries(root: Path) -> list[dict[str, str]]:
    """Read the list of {"file", "caption"}."""
    listed: object = read_json(root / INDEX)
    if not isinstance(listed, list) or not all(
        isinstance(one, dict) and {"file", "caption"} <= set(one) for one in listed
    ):
        raise UserError(f"{root / INDEX} must be a list of objects with the keys file and caption")
    return listed


def contents(root: Path) -> Contents:
    """List the dataset in ``root``; the count is that of captioned images."""
    listed = entries(root)
    checks = [partial(check, root / entry["file"], entry["caption"]) for entry in listed]
    return Contents([INDEX, *(entry["file"] for entry in listed)], {"train": len(listed)}, {"train": checks})


def check(path: Path, caption: str) -> bool:
    """UserError if the image is unreadable or the caption empty."""
    read_image(path)
    if not caption.strip():
        raise UserError(f"{path} has an empty caption in {INDEX}; give it one")
    return True


def preview(root: Path) -> Iterator[Preview]:
    """Image and caption."""
    for entry in entries(root):
        yield [read_image(root / entry["file"])], [entry["caption"]]
