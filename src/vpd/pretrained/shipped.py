"""Weights in git: written in half precision from a finished pre-training or training, and taken after a check of every byte."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vpd.utils.digests import changed, digests, tree
from vpd.utils.errors import UserError
from vpd.utils.files import atomic_folder, read_json, write_json
from vpd.utils.fingerprint import FINGERPRINT, MANIFEST, SCHEMA, read_manifest

NOT_SHIPPED = (MANIFEST, FINGERPRINT, "origin.json")


def ship(source: Path, out: Path, recipe: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Copy the folder ``source`` to ``out``, weights in half precision, with a manifest of its files.

    Args:
        source: a checkpoint, backbone or run that is finished.
        out: replaced as a whole.
        recipe: the settings that made it, as plain data; ``check_shipped`` compares them.
        facts: what else the manifest says, such as the images seen.
    """
    from vpd.pretrained.tensors import write_half

    with atomic_folder(out) as folder:
        for name in tree(source):
            if name in NOT_SHIPPED:
                continue
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            if name.endswith(".safetensors"):
                write_half(source / name, folder / name)
            else:
                shutil.copyfile(source / name, folder / name)
        files = digests(folder, tree(folder))
        write_json(folder / MANIFEST, {"schema": SCHEMA, "recipe": dict(recipe), **facts, "files": files})


def check_shipped(folder: Path, recipe: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the manifest of shipped weights; UserError if they are missing, damaged, or not of the ``recipe`` given."""
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist; restore it with git, or make it with `make pretrain`")
    manifest = read_manifest(folder, "recipe")
    if differing := changed(folder, manifest["files"]):
        raise UserError(f"{folder / differing[0]} differs from its manifest; restore it with `git checkout {folder}`")
    if extra := [name for name in tree(folder) if name not in (*manifest["files"], MANIFEST)]:
        raise UserError(f"{folder / extra[0]} is not in its manifest; remove it, or restore the folder with git")
    for key, made, wanted in _differences(manifest["recipe"], manifest["recipe"] if recipe is None else recipe):
        raise UserError(
            f"{folder} was made with {key} {made}, but params.yaml says {wanted}; make the weights anew with "
            "`make pretrain` (hours), or undo the change"
        )
    return manifest


def _differences(made: Any, wanted: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Every value that differs between two nested mappings: its key, and both values."""
    if isinstance(made, Mapping) and isinstance(wanted, Mapping):
        for name in {**made, **wanted}:
            yield from _differences(made.get(name), wanted.get(name), f"{key}.{name}".lstrip("."))
    elif made != wanted:
        yield key, made, wanted


def shipped_facts(folder: Path) -> dict[str, Any]:
    """What the manifest of shipped weights says of them besides its files and recipe."""
    return {
        key: value for key, value in read_json(folder / MANIFEST).items() if key not in ("schema", "recipe", "files")
    }
