"""ADE20K SceneParse150 for semantic segmentation: image and label pairs, and the class names of objectInfo150.txt."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vpd.config.schema import SegmentationSpec
from vpd.datasets.dataset import Contents, Dataset, Preview, image_tensor, label_tensor
from vpd.datasets.images import check_pair, read_image, read_labels, suffixes
from vpd.datasets.preview import palette
from vpd.datasets.transforms import augment_segmentation, reduce_zero_label
from vpd.utils.errors import UserError
from vpd.utils.files import files_in, read_text

FOLDER = "ADEChallengeData2016"
TOPS: tuple[str, ...] = (FOLDER,)
SPLITS = ("training", "validation")
NEEDED: tuple[str, ...] = SPLITS
CLASS_FILE = f"{FOLDER}/objectInfo150.txt"


# --------------------------------------------------------------------------------------------------------------- format
def pairs(root: Path, split: str) -> list[tuple[Path, Path]]:
    """Image and label paths of a split, by name; UserError for an image without label or a label without image."""
    images, labels = root / FOLDER / "images" / split, root / FOLDER / "annotations" / split
    for folder in (images, labels):
        if not folder.is_dir():
            raise UserError(f"{folder} does not exist; ADE20K has images and annotations, each with {SPLITS}")
    pictures, labelled = _by_stem(images), _by_stem(labels)
    for stem in sorted(pictures.keys() ^ labelled.keys()):
        missing = labels / f"{stem}.png" if stem in pictures else images / f"{stem}.jpg"
        raise UserError(f"{missing} is missing, but its counterpart exists; fetch it, or remove the counterpart")
    return [(pictures[stem], labelled[stem]) for stem in sorted(pictures)]


def _by_stem(folder: Path) -> dict[str, Path]:
    """The pictures in a folder by name without ending, which may be in capitals; UserError if two have one name."""
    found: dict[str, Path] = {}
    for path in (path for path in files_in(folder, "*") if path.suffix.lower() in suffixes()):
        if found.setdefault(path.stem, path) != path:
            raise UserError(f"{path} and {found[path.stem].name} differ only in their endings; remove one of them")
    return found


def class_names(root: Path) -> list[tuple[str, ...]]:
    """Read all names of each class, in label order; prompts and tables use the first."""
    path = root / CLASS_FILE
    lines = read_text(path, "take ADE20K's own", "it names the classes and comes with ADE20K").splitlines()
    names: list[tuple[str, ...]] = []
    for line in filter(str.strip, lines[1:]):
        cells = [cell.strip() for cell in line.split("\t")]
        if cells[0] != str(len(names) + 1) or not cells[-1]:
            raise UserError(f"{path}: found '{line}', expected tab-separated Idx {len(names) + 1}, ..., Name")
        names.append(tuple(name.strip() for name in cells[-1].split(",")))
    return names


def contents(root: Path) -> Contents:
    """List the dataset in ``root``; counts are images per split."""
    classes = len(class_names(root))
    by_split = {split: pairs(root, split) for split in SPLITS}
    files = [path.relative_to(root).as_posix() for split in SPLITS for pair in by_split[split] for path in pair]
    checks = {split: [partial(_check, *pair, classes) for pair in by_split[split]] for split in SPLITS}
    return Contents([CLASS_FILE, *files], {split: len(by_split[split]) for split in SPLITS}, checks)


def _check(image: Path, labels: Path, classes: int) -> bool:
    values = read_labels(labels, classes)
    check_pair(read_image(image), image, values, labels)
    return bool(values.any())


def preview(root: Path) -> Iterator[Preview]:
    """Image and coloured labels; the names of the classes below."""
    names = class_names(root)
    colours = palette(len(names))
    for image_path, label_path in (pair for split in SPLITS for pair in pairs(root, split)):
        labels = read_labels(label_path, len(names))
        present = [names[label - 1][0] for label in np.unique(labels) if label]
        yield [read_image(image_path), colours[labels]], [", ".join(present)]


# --------------------------------------------------------------------------------------------------------------- reader
class ADE20K(Dataset):
    """Training: augmented crops in [-1, 1]. Validation: whole uint8 images. Labels start at 0; 255 is ignored."""

    splits = {"train": "training", "val": "validation"}

    def __init__(self, spec: SegmentationSpec, root: Path, split: str, seed: int = 0) -> None:
        super().__init__(split, seed)
        self.settings = spec.data
        self.synonyms = class_names(root)
        self.classes = [names[0] for names in self.synonyms]
        self.pairs = pairs(root, self.split)

    def __len__(self) -> int:
        return len(self.pairs)

    def sample(self, index: int, epoch: int = 0) -> dict[str, Any]:
        """image, label, id."""
        image_path, label_path = self.pairs[index]
        image, labels = read_image(image_path), read_labels(label_path, len(self.classes))
        check_pair(image, image_path, labels, label_path)
        labels = reduce_zero_label(labels)
        if self.training:
            image, labels = augment_segmentation(image, labels, self.settings, self.rng(index, epoch))
        return {"image": image_tensor(image), "label": label_tensor(labels), "id": image_path.stem}
