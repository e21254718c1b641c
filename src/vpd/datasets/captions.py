"""Captioned images, which the diffusion models are pre-trained on: captions.json lists a file and its caption each."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from typing_extensions import TypedDict

from vpd.datasets.dataset import Contents, Preview, read_entries
from vpd.datasets.images import read_image
from vpd.utils.errors import UserError

TOPS: tuple[str, ...] = ("images", "captions.json")
NEEDED: tuple[str, ...] = ("train",)
INDEX = "captions.json"


class Entry(TypedDict):
    """One captioned image."""

    file: str
    caption: str


def entries(root: Path) -> list[Entry]:
    """Read captions.json."""
    return read_entries(root / INDEX, Entry, "file and caption")


def contents(root: Path) -> Contents:
    """List the dataset in ``root``; the count is that of captioned images."""
    listed = entries(root)
    checks = [partial(_check, root / entry["file"], entry["caption"]) for entry in listed]
    return Contents([INDEX, *(entry["file"] for entry in listed)], {"train": len(listed)}, {"train": checks})


def _check(path: Path, caption: str) -> bool:
    read_image(path)
    if not caption.strip():
        raise UserError(f"{path} has an empty caption in {INDEX}; give it one")
    return True


def preview(root: Path) -> Iterator[Preview]:
    """Image and caption."""
    for entry in entries(root):
        yield [read_image(root / entry["file"])], [entry["caption"]]
