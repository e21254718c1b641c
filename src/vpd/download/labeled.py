"""nyu_depth_v2_labeled.mat, a MATLAB 7.3 file and thus HDF5 with the axes of every array reversed; and its splits.mat."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Self

import h5py
import numpy as np
import scipy.io
from numpy import ndarray

from vpd.utils.errors import UserError

WIDTH, HEIGHT = 640, 480
ARRAYS = {"images": (np.uint8, (3, WIDTH, HEIGHT)), "rawDepths": (np.float32, (WIDTH, HEIGHT))}
"""Type of the arrays' values and shape of one frame's, as HDF5 has it."""
SCENES = "sceneTypes"
"""A cell array of strings; not ``scenes``, whose strings are numbered."""
TEST = "testNdxs"
FARTHEST = 65.0
"""Metres that still fit into 16 bits of millimetres."""
CHUNK_CACHE = 64 << 20


class Labeled:
    """The labelled frames, each read when asked for; the whole file would fill the memory of a small machine.

    UserError for whatever is not as in the published file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise UserError(f"{path} does not exist; fetch it first")
        if not h5py.is_hdf5(path):
            raise UserError(f"{path} is not HDF5, which MATLAB 7.3 files are; fetch nyu_depth_v2_labeled.mat again")
        try:
            self.file = h5py.File(path, "r", rdcc_nbytes=CHUNK_CACHE)
        except OSError as error:
            raise UserError(f"{path} is truncated or damaged ({error}); fetch it again") from None
        try:
            self.count = self._checked_count()
        except BaseException:
            self.file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def __len__(self) -> int:
        return self.count

    def _checked_count(self) -> int:
        """Number of frames; UserError if a variable is missing or their shapes disagree."""
        for name in (*ARRAYS, SCENES):
            if not isinstance(self.file.get(name), h5py.Dataset):
                known = ", ".join(sorted(key for key in self.file if not key.startswith("#")))
                raise UserError(f"{self.path} has no variable '{name}'; it has {known or 'none'}; fetch it again")
        for name, (kind, shape) in ARRAYS.items():
            data = self.file[name]
            if data.dtype != kind or data.shape[1:] != shape:
                expected = f"{np.dtype(kind)} (frames, {', '.join(map(str, shape))})"
                raise UserError(
                    f"{self.path}: {name} is {data.dtype} {data.shape}, expected {expected}; fetch it again"
                )
        counts = {name: len(self.file[name]) for name in ARRAYS} | {SCENES: self.file[SCENES].size}
        if len(set(counts.values())) > 1:
            described = ", ".join(f"{name} {count}" for name, count in counts.items())
            raise UserError(
                f"{self.path} disagrees with itself about the number of frames ({described}); fetch it again"
            )
        return counts[SCENES]

    def image(self, index: int) -> ndarray:
        """RGB image, (H, W, 3) uint8."""
        return self._read("images", index).T

    def depth(self, index: int) -> ndarray:
        """Depth as the sensor measured it, (H, W) float32 metres, 0 where it did not."""
        depth = self._read("rawDepths", index).T
        if not (np.isfinite(depth).all() and depth.min() >= 0 and depth.max() <= FARTHEST):
            span = f"{depth.min()} to {depth.max()}"
            raise UserError(
                f"{self.path}: rawDepths of frame {index + 1} go from {span}, which are no metres in a room"
            )
        return depth

    def scene(self, index: int) -> str:
        """Type of scene, such as ``living_room``."""
        try:
            letters = self.file[self.file[SCENES][...].ravel()[index]][...].ravel()
            name = "".join(map(chr, letters))
        except (OSError, RuntimeError, ValueError, TypeError, OverflowError, AttributeError) as error:
            raise self._unreadable(SCENES, index, error) from None
        if not re.fullmatch(r"[a-z]+(_[a-z]+)*", name):
            raise UserError(f"{self.path}: {SCENES} of frame {index + 1} is {name!r}, which is no type of scene")
        return name

    def _read(self, name: str, index: int) -> ndarray:
        try:
            return self.file[name][index]
        except (OSError, RuntimeError) as error:
            raise self._unreadable(name, index, error) from None

    def _unreadable(self, name: str, index: int, error: Exception) -> UserError:
        return UserError(f"{self.path}: {name} of frame {index + 1} cannot be read ({error}); fetch it again")


def official_test_frames(path: Path, count: int) -> list[int]:
    """Indices from 0 of the test frames in splits.mat, in order; UserError unless they are among ``count`` frames."""
    try:
        values = scipy.io.loadmat(path, variable_names=[TEST]).get(TEST)
        known = ", ".join(name for name, *_ in scipy.io.whosmat(path))
    except Exception as error:  # a damaged file can raise anything
        raise UserError(f"{path} cannot be read as a MATLAB 5 file ({error}); fetch splits.mat again") from None
    if values is None:
        raise UserError(f"{path} has no variable '{TEST}'; it has {known or 'none'}; fetch splits.mat again")
    numeric = values.dtype.kind in "uif" and values.size and not np.mod(values, 1).any()
    if not numeric or len(np.unique(values)) < values.size:
        raise UserError(f"{path}: {TEST} is not a list of different frame numbers; fetch splits.mat again")
    numbers = sorted(map(int, values.ravel()))
    for number in (numbers[0], numbers[-1]):
        if not 1 <= number <= count:
            raise UserError(f"{path}: {TEST} names frame {number}, but there are frames 1 to {count}; fetch both again")
    return [number - 1 for number in numbers]
