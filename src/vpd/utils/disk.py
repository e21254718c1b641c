"""Disk space and byte counts: readable sizes, progress of a stream, and a check of the free space."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from vpd.utils.errors import UserError
from vpd.utils.progress import Progress

MEGABYTE = 1_000_000


def amount(size: float) -> str:
    """``13510573713`` -> ``13.5 GB``."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{int(size)} bytes"


class Meter:
    """Show the progress of a stream of bytes in megabytes, with rate and remaining time."""

    def __init__(self, total: int, label: str, done: int = 0) -> None:
        self.bytes = done
        self.progress = Progress(total // MEGABYTE, label, "MB", done // MEGABYTE)

    def add(self, count: int) -> None:
        """Report ``count`` more bytes."""
        before = self.bytes // MEGABYTE
        self.bytes += count
        if self.bytes // MEGABYTE > before:
            self.progress.advance(self.bytes // MEGABYTE - before)

    def __enter__(self) -> Meter:
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.close()


def existing(path: Path) -> Path:
    """Return the nearest existing folder at or above ``path``; it lies on the disk that ``path`` will be written to."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def require_space(needs: Iterable[tuple[Path, int, str]]) -> None:
    """Raise UserError unless every disk has room for all writes to it, each given as folder, bytes and purpose."""
    disks: dict[int, list[tuple[Path, int, str]]] = {}
    for folder, size, what in needs:
        disks.setdefault(existing(folder).stat().st_dev, []).append((folder, size, what))
    for on_disk in disks.values():
        folder, total = on_disk[0][0], sum(size for _, size, _ in on_disk)
        free = shutil.disk_usage(existing(folder)).free
        if total > free:
            parts = ", ".join(f"{amount(size)} for {what}" for _, size, what in on_disk if size)
            raise UserError(
                f"{folder}: {amount(total)} of disk space are needed ({parts}) and {amount(free)} are free; "
                "free some space or name a folder on another disk"
            )
