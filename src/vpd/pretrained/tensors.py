"""Tensor files of others: read without running any code in them, and compared with the network that they are meant for."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from vpd.utils.errors import UserError
from vpd.utils.files import readable
from vpd.utils.tensors import read_safetensors, reason, understood

# Classes (or packages) of what training programs store beside the weights; an inert object takes their place.
BOOKKEEPING = (
    "argparse.Namespace", "lightning.", "lightning_fabric.", "mmcv.", "mmengine.", "mmseg.", "numpy.", "omegaconf.", "pathlib.",
    "pytorch_lightning.",
)  # fmt: skip
AGAIN = "download it again"
# Regular expressions of names, and the new name: a template, or a function of the groups.
Rules = tuple[tuple[str, str | Callable[..., str]], ...]


class Inert:
    """Stands in for an object of a class that is not loaded: accepts anything, stores nothing, runs nothing."""

    def __new__(cls, *args: Any, **named: Any) -> Inert:  # noqa: D102
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        pass


def read_tensors(path: Path, containers: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """Read a .safetensors or torch file without running code: under the first of ``containers`` there, or its top level."""
    with readable(path, AGAIN, "download the file, or correct its path"), understood(path, AGAIN):
        content = _read(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not weights by name; give a checkpoint file")
    state = next((content[name] for name in containers if isinstance(content.get(name), dict)), content)
    tensors = {name: tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}
    if not tensors:
        keys, sought = ", ".join(map(str, list(content)[:5])) or "nothing", " or ".join(containers) or "its top level"
        raise UserError(f"{path} has no tensors under {sought} (it holds {keys}); give a checkpoint file")
    return tensors


def is_safetensors(path: Path) -> bool:
    """Tell by its first bytes, or else by its ending, whether a file is in safetensors; UserError for what stands in for one."""
    with path.open("rb") as file:
        head = file.read(256)
    if head.startswith(b"version https://git-lfs"):
        raise UserError(f"{path} is a Git LFS pointer, not the file that it points to; run `git lfs pull` beside it")
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise UserError(f"{path} is a web page, not weights; its link may need a login: open it in a browser")
    other = head.startswith((b"PK", b"\x80"))  # torch's zip archives and pickles
    return head[8:9] == b"{" or (path.suffix.lower() == ".safetensors" and not other)


def _read(path: Path) -> object:
    try:
        if is_safetensors(path):
            return read_safetensors(path, AGAIN)
        archive = zipfile.is_zipfile(path)
        # Torch lists the classes without importing them; each known one is replaced, any other is refused.
        classes = get_unsafe_globals_in_checkpoint(path) if archive else []
        unknown = sorted(name for name in classes if not name.startswith(BOOKKEEPING))
        if unknown:
            raise UserError(
                f"{path} asks to call {', '.join(unknown[:3])}, which weights do not need; it was not loaded, because that "
                "can run code: get the file from its authors' page, or as safetensors"
            )
        mapped = archive and path.suffix != ".safetensors"  # whose name torch would believe
        with safe_globals([(Inert, name) for name in classes]), path.open("rb") as file:
            return torch.load(path if mapped else file, map_location="cpu", weights_only=True, mmap=mapped)
    except UnpicklingError as error:
        raise UserError(
            f"{path} is no file of plain tensors ({reason(error)}); it was not loaded, because a pickle can run code: "
            "get it as safetensors, or save its state dict alone"
        ) from None


def write_half(source: Path, target: Path) -> None:
    """Copy a safetensors file with the single-precision tensors that half precision can hold in half precision.

    UserError if one is not finite.
    """
    with safe_open(source, "pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if broken := [name for name, x in tensors.items() if not x.isfinite().all()]:
        raise UserError(f"{source}: {broken[0]} has values that are not finite; train with a lower learning rate")
    save_file({name: _halved(x) for name, x in tensors.items()}, target, metadata)


def _halved(tensor: Tensor) -> Tensor:
    """Return a tensor in half precision, or as it is if it has large values, as variances of a batch norm may be."""
    half = tensor.half() if tensor.dtype == torch.float32 else tensor
    return half if half.isfinite().all() else tensor


def apply_rules(rules: Rules, name: str) -> str | None:
    """Return the new name by the first rule that matches the whole of ``name``; None if none does."""
    for pattern, target in rules:
        if match := re.fullmatch(pattern, name):
            return match.expand(target) if isinstance(target, str) else target(*match.groups())
    return None
