"""Captioned images on disk: captions.json lists a file and its caption each."""

from __future__ import annotations

from pathlib import Path

from vpd.datasets.images import read_image
from vpd.utils.errors import UserError
from vpd.utils.files import read_json

SPLITS = ("train",)
TOPS = ("images", "captions.json")
INDEX = "captions.json"


def entries(root: Path) -> list[dict[str, str]]:
    """The list of {"file", "caption"}."""
    found = read_json(root / INDEX)
    if not isinstance(found, list) or not all({"file", "caption"} <= set(entry) for entry in found):
        raise UserError(f"{root / INDEX} must be a list of objects with the keys file and caption")
    return found


def members(root: Path) -> list[str]:
    """All files that are read, relative to ``root``."""
    return [INDEX, *(entry["file"] for entry in entries(root))]


def counts(root: Path) -> dict[str, int]:
    """Captioned images."""
    return {"train": len(entries(root))}


def checks(root: Path) -> list[tuple]:
    """Arguments of ``check``."""
    return [(root / entry["file"], entry["caption"]) for entry in entries(root)]


def check(path: Path, caption: str) -> None:
    """UserError if the image is unreadable or the caption empty."""
    read_image(path)
    if not caption.strip():
        raise UserError(f"{path} has an empty caption in {INDEX}; give it one")
