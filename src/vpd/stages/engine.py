"""What is checked before an engine plans: the options that a user gave, and what a killed engine left behind."""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from vpd.utils.errors import UserError, nearest

CHOICES = ("scale", "protocol")
LOCKS = Path(".snakemake/locks")  # names of files that a Snakemake makes or reads; they outlive one that was killed
_held: list[IO] = []  # open as long as this process lives


def chosen(config: Mapping[str, object]) -> dict[str, str]:
    """Return what `--config` and `--configfile` choose; UserError for anything else, which would not reach the jobs."""
    for name, value in config.items():
        if name not in CHOICES:
            others = "params.yaml is the one file of settings"
            raise UserError(f"--config and --configfile set no '{name}': {nearest(name, CHOICES)}; {others}, edit it")
        if not isinstance(value, str):
            raise UserError(f"--config {name} is {value!r}, which is no name; write for example {name}=NAME")
    return {name: str(value) for name, value in config.items()}


def release_locks_of_the_dead(living: Path, locks: Path = LOCKS) -> bool:
    """Remove the locks that a killed Snakemake left, unless another one is alive, and return whether there were any.

    Jobs that a killed Snakemake started elsewhere may still run; they lock the folder they write.

    Args:
        living: file that every Snakemake in this folder holds a shared lock on, until it ends in whatever way.
        locks: folder of Snakemake's own locks.
    """
    with contextlib.suppress(OSError):  # a file system without locks: Snakemake then asks the user
        living.parent.mkdir(parents=True, exist_ok=True)
        file = open(living, "a")  # noqa: SIM115
        _held.append(file)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            found = locks.is_dir() and bool(os.listdir(locks))
            shutil.rmtree(locks, ignore_errors=True)
        except BlockingIOError:
            found = False
        fcntl.flock(file, fcntl.LOCK_SH)
        return found
    return False


def set_aside_damaged(lock: Path) -> Path | None:
    """Rename a dvc.lock that DVC would refuse, such as one that it was writing when it was killed; return its new name.

    DVC then runs every stage, and those that are finished have nothing to do.
    """
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA
    from dvc.utils.serialize import YAMLFileCorruptedError, load_yaml
    from voluptuous import Invalid

    try:
        COMPILED_LOCKFILE_SCHEMA(load_yaml(lock))
    except FileNotFoundError:
        return None
    except (YAMLFileCorruptedError, Invalid, UnicodeDecodeError):
        return lock.rename(lock.with_name(f"{lock.name}.damaged"))
    return None
