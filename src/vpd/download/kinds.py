"""Kinds of preparation: what is made of the files of an entry."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from vpd.download.archives import extract
from vpd.download.collecting import place
from vpd.utils.errors import pick

Preparation = Callable[[dict[str, Path], Path], None]


def preparation(kind: str, where: str) -> Preparation:
    """The function (files by role, tree) -> None of this ``kind``; UserError for an unknown one."""
    if kind in SIMPLE:
        return SIMPLE[kind]
    from vpd.download.layouts import PREPARE

    return pick(kind, {**SIMPLE, **PREPARE}, "kind of preparation", where)


def _extract(files: dict[str, Path], out: Path) -> None:
    for archive in files.values():
        extract(archive, out)


def _keep(files: dict[str, Path], out: Path) -> None:
    for path in files.values():
        place(path, out / path.name)


SIMPLE: dict[str, Preparation] = {"extract": _extract, "keep": _keep}
"""``extract``: unpack every archive. ``keep``: the files themselves."""
