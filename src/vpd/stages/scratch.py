"""Copy prepared data to a machine's own disk, for shared storage that is slow at many small files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vpd.datasets.manifest import MANIFEST, PLACE, located
from vpd.utils.digests import sha256
from vpd.utils.disk import Meter, require_space
from vpd.utils.errors import UserError
from vpd.utils.files import atomic_path, exclusive, read_json

VARIABLE = "VPD_SCRATCH"
READERS = 16
"""Files read at once, since the wait for each of them is what is slow."""


def staged(data: Path, environment: Mapping[str, str] = os.environ) -> Path:
    """Return the folder to read a prepared dataset from, and copy it there first if VPD_SCRATCH names a folder.

    The first job on a machine copies and the others wait for it. A copy is named after the manifest's digest and has the
    same manifest, so that fingerprints and results do not depend on where the data were read.

    Args:
        data: folder that ``vpd data`` made.
        environment: with or without VPD_SCRATCH.

    Returns:
        ``data``, or the folder of its copy.

    Raises:
        UserError: the folder does not exist or is too small, or a file is not the one that the manifest lists.
    """
    folder = environment.get(VARIABLE)
    if not folder:
        return data
    if not Path(folder).is_dir():
        raise UserError(f"{VARIABLE}={folder} is not a folder; name one on this machine's own disk, or unset it")
    base = Path(folder).resolve() / f"vpd-{sha256(data / MANIFEST)[:16]}"
    # The manifest may say "../../datasets/x": the copy lies so deep that this leads to the copied files.
    ups = Path(read_json(data / MANIFEST).get(PLACE, "")).parts.count("..")
    copy = base.joinpath(*["data"] * (1 + ups))
    with exclusive(base, f"the copy of {data} on this machine"):
        if not (copy / MANIFEST).is_file():
            _copy(data, copy)
    return copy


def _copy(data: Path, copy: Path) -> None:
    """Copy the files that the manifest lists and, last, the manifest; a file that is there already is complete."""
    manifest = read_json(data / MANIFEST)
    # normpath, not resolve(): the folders in between need not exist.
    source, target = located(data), Path(os.path.normpath(copy / manifest.get(PLACE, "")))
    missing = {name: digest for name, digest in manifest["files"].items() if not (target / name).is_file()}
    sizes = {name: _size(source / name) for name in missing}
    require_space([(copy, sum(sizes.values()), f"the copy of {data}")])
    with Meter(sum(sizes.values()), f"copying {data} to {VARIABLE}") as meter, ThreadPoolExecutor(READERS) as pool:
        copies = {name: pool.submit(_copy_file, source / name, target / name, missing[name]) for name in missing}
        try:
            for name, copied in copies.items():
                copied.result()
                meter.add(sizes[name])
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    copy.mkdir(parents=True, exist_ok=True)
    with atomic_path(copy / MANIFEST) as temporary:
        temporary.write_bytes((data / MANIFEST).read_bytes())


def _size(path: Path) -> int:
    if not path.is_file():
        raise UserError(f"{path} is missing, but {MANIFEST} lists it; run `vpd data` again")
    return path.stat().st_size


def _copy_file(source: Path, target: Path, digest: str) -> None:
    content = source.read_bytes()
    if hashlib.sha256(content).hexdigest() != digest:
        raise UserError(f"{source} was changed after {MANIFEST} was written; run `vpd data` again")
    with atomic_path(target) as temporary:
        temporary.write_bytes(content)
