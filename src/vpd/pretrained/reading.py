"""Tensor files from elsewhere, read without running anything that they contain."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from vpd.utils.errors import UserError

BOOKKEEPING = (
    "argparse.Namespace",
    "lightning.",
    "lightning_fabric.",
    "mmcv.",
    "mmengine.",
    "mmseg.",
    "numpy.",
    "omegaconf.",
    "pathlib.",
    "pytorch_lightning.",
)
"""What training programs store beside the weights: classes (or packages) that an inert object may stand for."""
LONGEST_REASON = 150


class Inert:
    """Stands for an object of a class that is not loaded: takes anything, keeps and does nothing."""

    def __new__(cls, *args: Any, **named: Any) -> Inert:  # noqa: D102
        return super().__new__(cls)

    def __init__(self, *args: Any, **named: Any) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def read_tensors(path: Path) -> dict[str, Any]:
    """Contents of a .safetensors file, or of a torch file as plain data with the tensors mapped from the disk.

    UserError if it is missing, damaged, or a pickle that asks for more than tensors and known bookkeeping.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist; download the file, or correct its path")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    value = _read_pickle(path)
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a {type(value).__name__}, not weights by name; give a checkpoint file")
    return value


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from None


def _read_pickle(path: Path) -> Any:
    try:
        archive = zipfile.is_zipfile(path)
        asked = get_unsafe_globals_in_checkpoint(path) if archive else []
        _refuse_code(path, asked)
        with safe_globals([(Inert, name) for name in asked]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=archive)
    except UnpicklingError as error:
        reason = " ".join(str(error).split())[:LONGEST_REASON]
        raise UserError(
            f"{path} is no file of plain tensors ({reason}); it was not loaded, because a pickle can run code: "
            "get it as safetensors, or save its state dict alone"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError) as error:
        raise _damaged(path, error) from None


def _refuse_code(path: Path, asked: Iterable[str]) -> None:
    others = sorted(name for name in asked if not name.startswith(BOOKKEEPING))
    if others:
        raise UserError(
            f"{path} asks to call {', '.join(others[:3])}, which weights do not need; it was not loaded, because that can "
            "run code: get the file from its authors' page, or as safetensors"
        )


def _damaged(path: Path, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:LONGEST_REASON]
    return UserError(f"{path} is damaged or cut off ({reason}); download it again")


def tensors_of(path: Path, value: dict[str, Any], containers: tuple[str, ...]) -> dict[str, Tensor]:
    """The state dict in a file's contents: under the first of ``containers`` that is there, or the contents themselves.

    UserError if there are no tensors.
    """
    state = next((value[name] for name in containers if isinstance(value.get(name), dict)), value)
    tensors = {name: tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}
    if not tensors:
        keys = ", ".join(map(str, list(value)[:5])) or "nothing"
        raise UserError(
            f"{path} has no tensors under {' or '.join(containers)} (it holds {keys}); give a checkpoint file"
        )
    return tensors
