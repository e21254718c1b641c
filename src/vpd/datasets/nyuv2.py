"""NYU Depth v2 for depth estimation: VPD's list files, image and depth pairs, and the scene class in a folder's name."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vpd.config.schema import DepthSpec, VPDModel
from vpd.datasets.dataset import Contents, Dataset, Preview, image_tensor
from vpd.datasets.images import MILLIMETRES, check_pair, read_depth, read_image
from vpd.datasets.preview import colour_depth
from vpd.datasets.transforms import augment_depth, normalise
from vpd.utils.errors import UserError
from vpd.utils.files import read_text
from vpd.utils.progress import track

SPLITS = ("train", "test")
NEEDED: tuple[str, ...] = SPLITS
FOLDERS = {"train": "sync", "test": "official_splits/test"}
TOPS: tuple[str, ...] = ("sync", "official_splits", "train_list.txt", "test_list.txt")
NO_ROOM = 10
"""Millimetres. A room is deeper, while depth written in metres by mistake is never larger: the sensor sees 10 m."""
SCENES: tuple[str, ...] = (
    "basement", "bathroom", "bedroom", "bookstore", "cafe", "classroom", "computer_lab", "conference_room", "dinette",
    "dining_room", "excercise_room", "foyer", "furniture_store", "home_office", "home_storage", "indoor_balcony",
    "kitchen", "laundry_room", "living_room", "office", "office_kitchen", "playroom", "printer_room", "reception_room",
    "student_lounge", "study", "study_room",
)  # fmt: skip
"""Scene classes in the order of their ids; the second spelling of exercise is the dataset's own."""


# --------------------------------------------------------------------------------------------------------------- format
@dataclass(frozen=True)
class Frame:
    """One line of a list file."""

    image: Path
    depth: Path
    scene: str  # name of its folder
    focal: float | None = None  # in pixels; VPD's own lists leave it out, those of BTS give it


def frames(root: Path, split: str) -> list[Frame]:
    """Read the list file of a split (``train`` or ``test``); its order is that of the samples."""
    path = root / f"{split}_list.txt"
    expected = "it lists the frames, 'image depth [focal]' on each line"
    lines = read_text(path, expected, expected).splitlines()
    return [_frame(root / FOLDERS[split], line, path, number) for number, line in enumerate(lines, 1) if line.strip()]


def _frame(folder: Path, line: str, path: Path, number: int) -> Frame:
    try:
        image, depth, *focal = line.split()
        # The released lists start their paths with a slash, which must not lead out of the folder.
        inside = [Path(part.lstrip("/")) for part in (image, depth)]
        if len(focal) > 1 or any(".." in part.parts or len(part.parts) < 2 for part in inside):
            raise ValueError
        return Frame(folder / inside[0], folder / inside[1], inside[0].parts[-2], *map(float, focal))
    except ValueError:
        expected = "'<scene>/<image> <scene>/<depth> [<focal>]'"
        raise UserError(f"{path}, line {number}: expected {expected}, found '{line}'; correct it") from None


def scene_class(folder: str, source: str) -> int:
    """Find the scene class in a folder's name such as ``office_kitchen_0001`` (D4); UserError if it names none.

    ``first-match`` takes the first of ``SCENES`` that occurs in it (here kitchen), ``exact`` the longest one
    (office_kitchen), ``mean`` none: -1, which stands for the mean of all classes.
    """
    if source == "mean":
        return -1
    matches = [name for name in SCENES if name in folder]
    if not matches:
        raise UserError(
            f"folder '{folder}' names none of the {len(SCENES)} scene classes; rename it, e.g. kitchen_0001"
        )
    return SCENES.index(matches[0] if source == "first-match" else max(matches, key=len))


def contents(root: Path) -> Contents:
    """List the dataset in ``root``; counts are frames per split."""
    by_split = {split: frames(root, split) for split in SPLITS}
    paths = [path for split in SPLITS for frame in by_split[split] for path in (frame.image, frame.depth)]
    files = [*(f"{split}_list.txt" for split in SPLITS), *(path.relative_to(root).as_posix() for path in paths)]
    checks = {split: [partial(_check, frame) for frame in by_split[split]] for split in SPLITS}
    return Contents(files, {split: len(by_split[split]) for split in SPLITS}, checks)


def _check(frame: Frame) -> bool:
    scene_class(frame.scene, "first-match")
    depth = read_depth(frame.depth)
    check_pair(read_image(frame.image), frame.image, depth, frame.depth)
    largest = round(float(depth.max(initial=0)) * MILLIMETRES)
    if 0 < largest <= NO_ROOM:
        raise UserError(f"{frame.depth} looks like metres: its largest value is {largest}; write millimetres")
    return largest > 0


def check_scored(root: Path, spec: DepthSpec) -> None:
    """UserError naming the first test frame without a depth that is scored: in the crop and the ranges of ``spec`` (D12)."""
    top, bottom, left, right = spec.evaluation.crop
    low, high = spec.evaluation.min_depth, spec.evaluation.max_depth
    listed = frames(root, "test")
    for frame in track(listed, len(listed), "checking depths", "frames"):
        depth = read_depth(frame.depth)[top:bottom, left:right]
        kept = (depth >= spec.data.min_depth) & (depth <= spec.data.max_depth)
        if not (kept & (depth > low) & (depth < high)).any():
            where = f"between {low} and {high} m in evaluation.crop {[top, bottom, left, right]}"
            raise UserError(
                f"{frame.depth} has no depth {where}, so it cannot be scored; correct the frame or the crop"
            )


def preview(root: Path) -> Iterator[Preview]:
    """Image and coloured depth; the scene and its depth range below."""
    for frame in (frame for split in SPLITS for frame in frames(root, split)):
        depth = read_depth(frame.depth)
        near, far = (float(edge(depth[depth > 0])) for edge in (np.min, np.max)) if depth.any() else (0.0, 1.0)
        yield [read_image(frame.image), colour_depth(depth, near, far)], [f"{frame.scene}: {near:.1f} to {far:.1f} m"]


# --------------------------------------------------------------------------------------------------------------- reader
class NYUv2(Dataset):
    """Training: augmented crops. Validation: whole images. Depth in metres, 0 where invalid or out of range."""

    splits = {"train": "train", "val": "test"}

    def __init__(self, spec: DepthSpec, root: Path, split: str, seed: int = 0) -> None:
        super().__init__(split, seed)
        self.settings = spec.data
        self.classes = list(SCENES)
        self.frames, self.folder = frames(root, self.split), root / FOLDERS[self.split]
        source = spec.model.prompt.class_source if isinstance(spec.model, VPDModel) else "first-match"
        self.class_ids = [scene_class(frame.scene, source) for frame in self.frames]

    def __len__(self) -> int:
        return len(self.frames)

    def sample(self, index: int, epoch: int = 0) -> dict[str, Any]:
        """image, depth, class_id, id."""
        import torch

        frame = self.frames[index]
        image, depth = read_image(frame.image), read_depth(frame.depth)
        check_pair(image, frame.image, depth, frame.depth)
        if self.training:
            if min(image.shape[:2]) < self.settings.crop:
                size, crop = f"{image.shape[1]}x{image.shape[0]}", self.settings.crop
                raise UserError(f"{frame.image} is {size}, too small for data.crop {crop}; lower data.crop")
            image, depth = augment_depth(image, depth, self.settings, self.rng(index, epoch))
        else:
            image = normalise(image)
        valid = (depth >= self.settings.min_depth) & (depth <= self.settings.max_depth)
        return {
            "image": image_tensor(image),
            "depth": torch.from_numpy(np.where(valid, depth, np.float32(0.0))),
            "class_id": torch.tensor(self.class_ids[index]),
            "id": frame.image.relative_to(self.folder).as_posix(),
        }
