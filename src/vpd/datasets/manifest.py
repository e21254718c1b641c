"""manifest.json: what a dataset folder holds, and whether it still holds exactly that."""

from __future__ import annotations

import hashlib
from pathlib import Path

from vpd.config.schema import DatasetSpec
from vpd.datasets.layouts import LAYOUTS
from vpd.utils.digests import sha256
from vpd.utils.errors import UserError
from vpd.utils.files import read_json
from vpd.utils.progress import track
from vpd.world import VERSION

MANIFEST = "manifest.json"
PREVIEW = "preview.png"
PLACE = "place"
"""Key of the folder, relative to the manifest's, in which the files of a dataset lie that was not drawn here."""
AGAIN = "remove the folder and prepare the dataset again"


def origin(spec: DatasetSpec) -> dict:
    """What decides the dataset's bytes: its spec and, if drawn, the version of the drawn world."""
    return {"layout": spec.layout, "spec": spec.digest(), "world": VERSION if spec.source == "drawn" else None}


def located(root: Path) -> Path:
    """The folder that holds the files of the dataset prepared in ``root``.

    Gigabytes that lie elsewhere are neither copied nor linked, so that no orchestrator hashes or stores them again.
    """
    manifest = read_json(root / MANIFEST) if (root / MANIFEST).is_file() else {}
    return root / manifest[PLACE] if PLACE in manifest else root


def describe(root: Path, spec: DatasetSpec, name: str) -> dict:
    """The manifest of what lies in ``root`` now, every file read and checked."""
    check_contents(root, spec, name)
    counts = LAYOUTS[spec.layout].counts(root)
    check_counts(root, spec, counts)
    members = sorted(LAYOUTS[spec.layout].members(root))
    checksums = {file: sha256(root / file) for file in track(members, len(members), f"hashing {name}", "files")}
    return {
        **origin(spec),
        "counts": counts,
        "files": len(checksums),
        "digest": _digest(checksums),
        "checksums": checksums,
    }


def _digest(checksums: dict[str, str]) -> str:
    """One SHA-256 over all (path, SHA-256) lines, in the order and format of ``sha256sum``."""
    lines = "".join(f"{checksums[name]}  {name}\n" for name in sorted(checksums))
    return hashlib.sha256(lines.encode()).hexdigest()


def check_contents(root: Path, spec: DatasetSpec, name: str) -> None:
    """UserError naming the first file that is unreadable or does not fit its counterpart."""
    layout = LAYOUTS[spec.layout]
    checks = layout.checks(root)
    for arguments in track(checks, len(checks), f"checking {name}", "samples"):
        layout.check(*arguments)


def check_counts(root: Path, spec: DatasetSpec, counts: dict[str, int]) -> None:
    """UserError naming the first count that is not the expected one."""
    for key, expected in spec.expect.items():
        if counts.get(key) != expected:
            known = ", ".join(f"{name} {count}" for name, count in counts.items())
            found = counts.get(key, "no")
            raise UserError(
                f"{root} has {found} {key}, expected {expected} (counted: {known}); fetch the whole dataset"
            )


def verify(root: Path, spec: DatasetSpec) -> None:
    """UserError unless the dataset prepared in ``root`` was made from ``spec``, is what its manifest says, and is sound."""
    manifest = read_json(root / MANIFEST)
    if {key: manifest.get(key) for key in origin(spec)} != origin(spec):
        raise UserError(f"{root / MANIFEST} was made from other settings than the ones given; {AGAIN}")
    checksums, files = manifest["checksums"], located(root)
    for name in track(sorted(checksums), len(checksums), f"verifying {root.name}", "files"):
        if not (files / name).is_file():
            raise UserError(f"{files / name} is missing, but {MANIFEST} lists it; {AGAIN}")
        if sha256(files / name) != checksums[name]:
            raise UserError(f"{files / name} was changed after {MANIFEST} was written; {AGAIN}")
    for name in sorted(LAYOUTS[spec.layout].members(files)):
        if name not in checksums:
            raise UserError(f"{files / name} is extra: {MANIFEST} does not list it; remove it, or {AGAIN}")
    if (manifest["files"], manifest["digest"]) != (len(checksums), _digest(checksums)):
        raise UserError(f"{root / MANIFEST} contradicts itself; {AGAIN}")
    counts = LAYOUTS[spec.layout].counts(files)
    if counts != manifest["counts"]:
        raise UserError(f"{root / MANIFEST} gives the counts {manifest['counts']}, found {counts}; {AGAIN}")
    check_counts(files, spec, counts)
    check_contents(files, spec, root.name)


def is_current(root: Path, spec: DatasetSpec) -> bool:
    """Whether ``root`` was completed from this very spec and still has all its files (existence only)."""
    try:
        manifest = read_json(root / MANIFEST)
        if not (root / PREVIEW).is_file() or {key: manifest.get(key) for key in origin(spec)} != origin(spec):
            return False
        files = located(root)
        members = set(LAYOUTS[spec.layout].members(files))
        return members == set(manifest["checksums"]) and all((files / name).is_file() for name in members)
    except (UserError, AttributeError, KeyError, TypeError):
        return False
