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
    """List the dataset in ``root``; the count is that of images, each of which may have several captions."""
    captions = _by_image(root)
    checks = [partial(_check, root / file, texts) for file, texts in captions.items()]
    return Contents([INDEX, *captions], {"train": len(captions)}, {"train": checks})


def _by_image(root: Path) -> dict[str, list[str]]:
    captions: dict[str, list[str]] = {}
    for entry in entries(root):
        captions.setdefault(entry["file"], []).append(entry["caption"])
    return captions


def _check(path: Path, captions: list[str]) -> bool:
    read_image(path)
    if not all(caption.strip() for caption in captions):
        raise UserError(f"{path} has an empty caption in {INDEX}; give it one")
    return True


def preview(root: Path) -> Iterator[Preview]:
    """Image and its captions."""
    for file, captions in _by_image(root).items():
        yield [read_image(root / file)], captions
