"""NYU Depth v2 on disk: VPD's list files, image and depth pairs, and the scene class in a folder's name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vpd.datasets.images import MILLIMETRES, check_pair, read_depth, read_image
from vpd.utils.errors import UserError

SPLITS = ("train", "test")
FOLDERS = {"train": "sync", "test": "official_splits/test"}
TOPS = ("sync", "official_splits", "train_list.txt", "test_list.txt")
NO_ROOM = 10
"""Millimetres; a room is deeper, but ten metres, the sensor's range, written as they are would be no larger than this."""
SCENES: tuple[str, ...] = (
    "basement", "bathroom", "bedroom", "bookstore", "cafe", "classroom", "computer_lab", "conference_room", "dinette",
    "dining_room", "excercise_room", "foyer", "furniture_store", "home_office", "home_storage", "indoor_balcony",
    "kitchen", "laundry_room", "living_room", "office", "office_kitchen", "playroom", "printer_room", "reception_room",
    "student_lounge", "study", "study_room",
)  # fmt: skip
"""Scene classes in the order of their ids; the second spelling of exercise is the dataset's own."""


@dataclass(frozen=True)
class Frame:
    """One line of a list file."""

    image: Path
    depth: Path
    scene: str
    """Name of the scene's folder."""
    focal: float | None = None
    """Focal length in pixels; VPD's own lists leave it out, those of BTS give it."""


def frames(root: Path, split: str) -> list[Frame]:
    """The frames of a split, in the list file's order."""
    path = root / f"{split}_list.txt"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise UserError(
            f"{path} does not exist; it lists the {split} frames, one 'image depth [focal]' a line"
        ) from None
    return [_frame(root / FOLDERS[split], line, path, number) for number, line in enumerate(lines, 1) if line.strip()]


def _frame(folder: Path, line: str, path: Path, number: int) -> Frame:
    """Parse one line; the released lists start their paths with a slash."""
    try:
        image, depth, *focal = line.split()
        inside = [Path(part.lstrip("/")) for part in (image, depth)]
        if len(focal) > 1 or any(".." in part.parts or len(part.parts) < 2 for part in inside):
            raise ValueError
        return Frame(folder / inside[0], folder / inside[1], inside[0].parts[-2], *map(float, focal))
    except ValueError:
        raise UserError(
            f"{path}, line {number}: expected '<scene>/<image> <scene>/<depth> [<focal>]', found '{line}'"
        ) from None


def scene_class(folder: str, source: str) -> int:
    """Id of the scene class named by a folder such as ``office_kitchen_0001`` (D4); -1 stands for the mean class.

    ``first-match`` takes the first class whose name occurs in the folder's (kitchen), ``exact`` the longest one
    (office_kitchen).
    """
    if source == "mean":
        return -1
    found = [name for name in SCENES if name in folder]
    if not found:
        raise UserError(
            f"scene folder '{folder}' names none of the {len(SCENES)} scene classes; rename it, e.g. kitchen_0001"
        )
    return SCENES.index(found[0] if source == "first-match" else max(found, key=len))


def members(root: Path) -> list[str]:
    """All files that are read, relative to ``root``."""
    listed = [frame for split in SPLITS for frame in frames(root, split)]
    found = [path for frame in listed for path in (frame.image, frame.depth)]
    return [*(f"{split}_list.txt" for split in SPLITS), *(path.relative_to(root).as_posix() for path in found)]


def counts(root: Path) -> dict[str, int]:
    """Frames per split."""
    return {split: len(frames(root, split)) for split in SPLITS}


def checks(root: Path) -> list[tuple]:
    """Arguments of ``check`` for everything there is to check."""
    return [(frame,) for split in SPLITS for frame in frames(root, split)]


def check(frame: Frame) -> None:
    """UserError if the pair is unreadable or of two sizes, its folder names no scene class, or its depth is in metres."""
    scene_class(frame.scene, "first-match")
    depth = read_depth(frame.depth)
    check_pair(read_image(frame.image), frame.image, depth, frame.depth)
    largest = round(float(depth.max(initial=0)) * MILLIMETRES)
    if 0 < largest <= NO_ROOM:
        raise UserError(f"{frame.depth} looks like metres: its largest value is {largest}; write millimetres")
