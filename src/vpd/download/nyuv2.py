"""From NYU Depth v2's labelled .mat file and BTS' synchronised training frames to the tree that vpd.datasets reads."""

import contextlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import cv2
import h5py
import numpy as np
import scipy.io
from numpy import ndarray

from vpd.datasets.images import MILLIMETRES, save_png
from vpd.datasets.nyuv2 import FOLDERS, frames
from vpd.download.archives import choose, errors_naming, extract, staged
from vpd.utils.errors import UserError
from vpd.utils.files import write_text
from vpd.utils.progress import track

TRAIN, TEST = ([FOLDERS[split], f"{split}_list.txt"] for split in ("train", "test"))
"""What an archive puts into the tree."""
FOCAL = 518.8579  # pixels; the released lists of BTS give it to every frame
HEIGHT, WIDTH = 480, 640
INSIDE = (slice(7, 474), slice(7, 632))
"""Rows and columns within the white border of the labelled images; the released extraction makes the rest black."""
CHUNK_CACHE = 64 << 20
"""Bytes; more than HDF5 takes by default, so that frames which share a chunk decompress it once."""
MEMBER = re.compile(r"(?!(?:.*/)?(?:official_splits|test)/)(?:.*/)?(\w[\w-]*)/(rgb_\d+\.jpg|sync_depth_\d+\.png)")
"""A training frame: some archives add the test frames in folders of their own."""


def prepare_labeled(files: dict[str, Path], out: Path) -> list[str]:
    """Write the official test frames of nyu_depth_v2_labeled.mat (role ``labeled``) that splits.mat (``splits``) names.

    As the released extraction does: frame i (from 0) of scene type s becomes s/rgb_%05d.jpg, quality 95 with halved
    colour resolution, and s/sync_depth_%05d.png, the raw depth in millimetres, truncated to whole numbers.
    """
    with staged(out, "nyuv2-labeled", TEST) as stage, contextlib.ExitStack() as stack:
        with _readable(files["splits"]):
            numbers = scipy.io.loadmat(files["splits"], variable_names=["testNdxs"])["testNdxs"].ravel()
        with _readable(files["labeled"]):
            labeled = stack.enter_context(h5py.File(files["labeled"], "r", rdcc_nbytes=CHUNK_CACHE))
        names = []
        for number in track(sorted(map(int, numbers)), len(numbers), "writing NYUv2 test frames", "frames"):
            index = number - 1  # MATLAB counts from 1
            with _readable(files["labeled"]):
                scene, image, depth = _frame(labeled, index)
            names.append(f"{scene}/rgb_{index:05d}.jpg")
            _save(stage / FOLDERS["test"] / names[-1], image, depth)
        lines = [f"/{name} /{_depth_name(name)} {FOCAL}\n" for name in sorted(names)]
        write_text(stage / "test_list.txt", "".join(lines))
    return TEST


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn what a reader raises for a damaged file, which can be anything, into a UserError that names the file."""
    try:
        yield
    except Exception as error:
        reason = str(error) if isinstance(error, UserError) else f"cannot be read ({error})"
        raise UserError(f"{path} {reason}; fetch it again") from None


def _frame(labeled: h5py.File, index: int) -> tuple[str, ndarray, ndarray]:
    """Read type of scene, RGB image and raw depth in metres (0: none); MATLAB's HDF5 has reversed the axes of arrays."""
    references = labeled["sceneTypes"][...].ravel()  # not "scenes", whose strings are numbered
    letters = labeled[references[index]][...].ravel()
    scene = "".join(map(chr, letters))
    if not re.fullmatch(r"[a-z_]+", scene):  # it becomes a folder
        raise UserError(f"names the type of scene {scene!r} in frame {index + 1}")
    return scene, labeled["images"][index].T, labeled["rawDepths"][index].T


def _save(path: Path, image: ndarray, depth: ndarray) -> None:
    """Write an RGB image, its border black, and its depth in metres."""
    bordered = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    bordered[INSIDE] = image[INSIDE][..., ::-1]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".jpg", bordered)[1].tobytes())
    save_png(path.with_name(_depth_name(path.name)), (depth * MILLIMETRES).astype(np.uint16))


def _depth_name(image: str) -> str:
    """``kitchen/rgb_00001.jpg`` -> ``kitchen/sync_depth_00001.png``."""
    return re.sub(r"rgb_(\d+)\.jpg$", r"sync_depth_\1.png", image)


def prepare_sync(files: dict[str, Path], out: Path) -> list[str]:
    """Unpack the training frames that the released train_list.txt names (D2); BTS' archive holds half as many again."""
    archive, list_file = files["archive"], files["list"]
    with staged(out, "nyuv2-sync", TRAIN) as stage:
        shutil.copyfile(list_file, stage / "train_list.txt")
        with errors_naming(list_file, stage):
            listed = [path for frame in frames(stage, "train") for path in (frame.image, frame.depth)]
        wanted = {path.relative_to(stage).as_posix() for path in listed}
        chosen = choose(archive, MEMBER, rf"{FOLDERS['train']}/\1/\2", "<scene>/rgb_*.jpg and sync_depth_*.png")
        if missing := sorted(wanted - set(chosen.values())):
            more = f" and {len(missing) - 1} more" * (len(missing) > 1)
            raise UserError(f"{archive} lacks {missing[0]}{more}, which {list_file} lists; get the whole archive")
        extract(archive, stage, {name: path for name, path in chosen.items() if path in wanted})
    return TRAIN
