"""What a prepared dataset holds (its manifest.json), where its files lie, and whether they are still the same."""

import hashlib
from pathlib import Path
from typing import Any

from vpd.config.schema import DatasetSpec
from vpd.datasets import ade20k, captions, nyuv2, objects, refcoco
from vpd.datasets.dataset import Contents, Format
from vpd.utils.digests import digests
from vpd.utils.errors import UserError, pick
from vpd.utils.files import AGAIN, read_json
from vpd.utils.fingerprint import MANIFEST, check_intact, read_manifest
from vpd.utils.progress import track
from vpd.utils.validation import checked

FORMATS: dict[str, Format] = {
    "ade20k": ade20k,
    "nyuv2": nyuv2,
    "refcoco": refcoco,
    "captions": captions,
    "objects": objects,
}
"""``DatasetSpec.format`` -> the module that knows it."""
PLACE = "place"  # key of the folder, relative to the manifest's, in which the files lie if they were not made here


def located(root: Path) -> Path:
    """Return the folder with the files of the dataset prepared in ``root``; those of a user stay where they are."""
    path = root / MANIFEST
    place = read_json(path).get(PLACE, "") if path.exists() else ""
    return root / checked(str, place, f"{path}: {PLACE}", AGAIN)


def describe(root: Path, spec: DatasetSpec, name: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Read and check every file of the dataset in ``root``; return the manifest's facts, and the files' SHA-256."""
    contents = FORMATS[spec.format].contents(root)
    check_counts(root, spec, contents.counts)
    _check_samples(root, contents, name)
    files = digests(root, track(sorted(contents.files), len(contents.files), f"hashing {name}", "files"))
    # In the format of sha256sum, so that the digest can be computed without vpd.
    lines = "".join(f"{value}  {file}\n" for file, value in files.items())
    total = hashlib.sha256(lines.encode()).hexdigest()
    return {"format": spec.format, "counts": contents.counts, "digest": total}, files


def check_counts(root: Path, spec: DatasetSpec, counts: dict[str, int]) -> None:
    """UserError naming the first count that is not the expected one, or the split that is empty."""
    for key, expected in spec.expect.items():
        if counts.get(key) != expected:
            found = f"{root} has {counts.get(key, 'no')} {key}, expected {expected} (counted: {counts})"
            raise UserError(f"{found}; fetch the whole dataset")
    for key, count in counts.items():
        split = key.rsplit("/", 1)[-1]
        # A scale that never reads a synthetic dataset asks for none of it: images: {train: 0}.
        wanted = spec.source != "synthetic" or any(spec.images.values())
        if split in FORMATS[spec.format].NEEDED and not count and wanted:
            raise UserError(f"{root} has no samples of {key}, so nothing can be trained or scored; add some")


def _check_samples(root: Path, contents: Contents, name: str) -> None:
    """UserError naming the first sample that is unsound, or the split in which nothing can be scored."""
    checks = [(split, check) for split, checks in contents.checks.items() for check in checks]
    scored = {split: False for split, _ in checks}
    for split, check in track(checks, len(checks), f"checking {name}", "samples"):
        scored[split] |= check()
    for split, any_scored in scored.items():
        if not any_scored:
            raise UserError(f"{root}: no pixel of {split} has a label or a depth, so nothing can be scored; replace it")


def check_unchanged(data: Path) -> None:
    """UserError naming the first file of a prepared dataset that is missing, changed or extra since its manifest was written.

    Unchanged files are told by size, times and inode, without reading them.
    """
    check_intact(data, "data")
    manifest, root = read_manifest(data), located(data)
    module = pick(str(manifest.get("format")), FORMATS, "format", str(data / MANIFEST))
    for name in module.contents(root).files:
        if name not in manifest["files"]:
            command = f"vpd data {data.name} --scale {data.parent.name}"
            raise UserError(f"{root / name} was added after {MANIFEST} was written; run `{command}` again")
