"""ADE20K SceneParse150 on disk: image and label pairs, and the class names of objectInfo150.txt."""

from __future__ import annotations

from pathlib import Path

from vpd.datasets.images import check_pair, read_image, read_labels
from vpd.utils.errors import UserError

FOLDER = "ADEChallengeData2016"
TOPS = (FOLDER,)
SPLITS = ("training", "validation")
CLASS_FILE = f"{FOLDER}/objectInfo150.txt"


def pairs(root: Path, split: str) -> list[tuple[Path, Path]]:
    """Image and label paths of a split, by name; UserError for an image without label or a label without image."""
    images, labels = root / FOLDER / "images" / split, root / FOLDER / "annotations" / split
    for folder in (images, labels):
        if not folder.is_dir():
            raise UserError(
                f"{folder} does not exist; an ADE20K dataset has {FOLDER}/images and annotations, each with {SPLITS}"
            )
    names = {path.stem for path in images.glob("*.jpg")}
    labelled = {path.stem for path in labels.glob("*.png")}
    for stem in sorted(names ^ labelled):
        lacking = labels / f"{stem}.png" if stem in names else images / f"{stem}.jpg"
        raise UserError(f"{lacking} is missing, but its counterpart exists; fetch it, or remove the counterpart")
    return [(images / f"{stem}.jpg", labels / f"{stem}.png") for stem in sorted(names)]


def class_names(root: Path) -> list[tuple[str, ...]]:
    """All names of each class, in label order; the first is the one used."""
    path = root / CLASS_FILE
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; it names the classes and comes with ADE20K") from None
    names: list[tuple[str, ...]] = []
    for line in filter(str.strip, lines[1:]):
        cells = [cell.strip() for cell in line.split("\t")]
        if not cells[0].isdigit() or int(cells[0]) != len(names) + 1 or not cells[-1]:
            raise UserError(
                f"{path}: cannot read the line '{line}'; expected tab-separated Idx {len(names) + 1}, ..., Name"
            )
        names.append(tuple(name.strip() for name in cells[-1].split(",")))
    if not names:
        raise UserError(f"{path} names no classes; fetch it again")
    return names


def members(root: Path) -> list[str]:
    """All files that are read, relative to ``root``."""
    found = [path for split in SPLITS for pair in pairs(root, split) for path in pair]
    return [CLASS_FILE, *(path.relative_to(root).as_posix() for path in found)]


def counts(root: Path) -> dict[str, int]:
    """Images per split."""
    return {split: len(pairs(root, split)) for split in SPLITS}


def checks(root: Path) -> list[tuple]:
    """Arguments of ``check`` for everything there is to check."""
    classes = len(class_names(root))
    return [(image, labels, classes) for split in SPLITS for image, labels in pairs(root, split)]


def check(image: Path, labels: Path, classes: int) -> None:
    """UserError if the pair is unreadable, of two sizes, or has a label that does not exist."""
    check_pair(read_image(image), image, read_labels(labels, classes), labels)
