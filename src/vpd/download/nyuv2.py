"""NYU Depth v2's labelled .mat file and synchronised training frames to the tree of vpd.datasets.nyuv2."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

import cv2
import numpy as np
from numpy import ndarray

from vpd.datasets.images import MILLIMETRES, save_png
from vpd.datasets.nyuv2 import FOLDERS, frames
from vpd.download.archives import extract
from vpd.download.labeled import HEIGHT, WIDTH, Labeled, official_test_frames
from vpd.download.staging import choose, file_of, naming, staged
from vpd.utils.errors import UserError
from vpd.utils.files import write_text
from vpd.utils.progress import track

FOCAL = 518.8579
"""Pixels; the released lists of BTS give it to every frame."""
INSIDE = (slice(7, 474), slice(7, 632))
"""Rows and columns that the white border of the labelled images leaves; all else is made black."""
TRAIN_PAIRS = 24231
"""Of the released training list (D2)."""
MEMBER = re.compile(r"(?:.*/)?(\w[\w-]*)/(rgb_\d+\.jpg|sync_depth_\d+\.png)")
NOT_TRAINING = {"official_splits", "test"}
"""Folders in which some archives add the test frames."""


def prepare_labeled(files: dict[str, Path], out: Path) -> None:
    """Write the official test frames of nyu_depth_v2_labeled.mat (role ``labeled``) that splits.mat (``splits``) names.

    As the released extraction does: frame i (from 0) of scene type s becomes s/rgb_%05d.jpg, quality 95 with halved
    colour resolution, and s/sync_depth_%05d.png, the raw depth in millimetres cut to whole numbers.
    """
    source = file_of(files, "labeled", "nyuv2-labeled")
    splits = file_of(files, "splits", "nyuv2-labeled")
    with staged(out, "nyuv2-labeled", [FOLDERS["test"], "test_list.txt"]) as stage, Labeled(source) as labeled:
        chosen = official_test_frames(splits, len(labeled))
        names = []
        for index in track(chosen, len(chosen), "writing NYUv2 test frames", "frames"):
            name = f"{labeled.scene(index)}/rgb_{index:05d}.jpg"
            _save(stage / FOLDERS["test"] / name, labeled.image(index), labeled.depth(index))
            names.append(name)
        _write_list(stage / "test_list.txt", names)


def _save(path: Path, image: ndarray, depth: ndarray) -> None:
    """Write an RGB image, its border black, and its depth in metres."""
    bordered = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    bordered[INSIDE] = image[INSIDE][..., ::-1]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".jpg", bordered)[1].tobytes())
    save_png(Path(_depth_of(str(path))), (depth * MILLIMETRES).astype(np.uint16))


def _depth_of(image: str) -> str:
    """``kitchen/rgb_00001.jpg`` -> ``kitchen/sync_depth_00001.png``."""
    return re.sub(r"rgb_(\d+)\.jpg$", r"sync_depth_\1.png", image)


def _image_of(depth: str) -> str:
    """``kitchen/sync_depth_00001.png`` -> ``kitchen/rgb_00001.jpg``."""
    return re.sub(r"sync_depth_(\d+)\.png$", r"rgb_\1.jpg", depth)


def _write_list(path: Path, images: list[str]) -> None:
    """One '/scene/image /scene/depth focal' a line, by scene and number."""
    write_text(path, "".join(f"/{image} /{_depth_of(image)} {FOCAL}\n" for image in sorted(images)))


def prepare_sync(files: dict[str, Path], out: Path) -> None:
    """Unpack the training frames that BTS synchronised (role ``archive``), those in train_list.txt (``list``) if given.

    Without the list every pair of the archive is used; UserError if those are more than VPD trains on, for the archive
    of BTS holds half as many again.
    """
    archive = file_of(files, "archive", "nyuv2-sync")
    chosen = choose(archive, _target, "<scene>/rgb_*.jpg and sync_depth_*.png")
    with staged(out, "nyuv2-sync", [FOLDERS["train"], "train_list.txt"]) as stage:
        if "list" in files:
            wanted = _listed(files["list"], stage)
            chosen = {name: target for name, target in chosen.items() if target in wanted}
            _require_all(archive, wanted, set(chosen.values()), f"{files['list']} lists it")
        else:
            _write_list(stage / "train_list.txt", _paired(archive, set(chosen.values())))
        extract(archive, stage, members=chosen.get)


def _target(name: str) -> str | None:
    match = MEMBER.fullmatch(name)
    if match is None or NOT_TRAINING & set(PurePosixPath(name).parts):
        return None
    return f"{FOLDERS['train']}/{match[1]}/{match[2]}"


def _listed(source: Path, stage: Path) -> set[str]:
    """Copy the list; all files that it lists, relative to ``stage``."""
    try:
        text = source.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{source} cannot be read as a list of frames ({error}); fetch it again") from None
    write_text(stage / "train_list.txt", text)
    with naming(source, stage):
        listed = frames(stage, "train")
    if not listed:
        raise UserError(f"{source} lists no frames; fetch it again")
    return {path.relative_to(stage).as_posix() for frame in listed for path in (frame.image, frame.depth)}


def _paired(archive: Path, targets: set[str]) -> list[str]:
    """Images relative to their folder; UserError for a frame that is not whole, or if there are too many."""
    _require_all(archive, {*map(_depth_of, targets), *map(_image_of, targets)}, targets, "its counterpart is there")
    images = [target.removeprefix(f"{FOLDERS['train']}/") for target in targets if target.endswith(".jpg")]
    if len(images) > TRAIN_PAIRS:
        scenes = len({PurePosixPath(name).parent for name in images})
        raise UserError(
            f"{archive} holds {len(images)} frames of {scenes} scenes, but VPD trains on {TRAIN_PAIRS} of them; "
            "give the released train_list.txt as the file with the role 'list'"
        )
    return images


def _require_all(archive: Path, needed: set[str], present: set[str], reason: str) -> None:
    """UserError naming the first file that is needed but not there, and how many there are."""
    lacking = sorted(needed - present)
    if lacking:
        more = f" ({len(lacking) - 1} more are missing)" * (len(lacking) > 1)
        raise UserError(f"{archive} lacks {lacking[0]}, but {reason}{more}; get the whole archive")
