"""From refcoco.zip, refcoco+.zip, refcocog.zip and COCO's train2014.zip to the tree that vpd.datasets reads as RefCOCO."""

from __future__ import annotations

import re
from pathlib import Path

from vpd.datasets.refcoco import IMAGES, SPLIT_BY, VARIANTS, contents
from vpd.download.archives import choose, errors_naming, extract, places, staged
from vpd.utils.errors import UserError

INDEX = "instances.json"
REFS = tuple(f"refs({author}).p" for author in SPLIT_BY)
REFERENCES = re.compile(rf"(?:.*/)?((?:{'|'.join(map(re.escape, VARIANTS))})/(?:instances\.json|refs\(\w+\)\.p))")
IMAGE = re.compile(r"(?:.*/)?train2014/(COCO_train2014_\d{12}\.jpg)")


def prepare_references(files: dict[str, Path], out: Path) -> None:
    """Unpack the references and annotations of a variant, with the splits that VPD is measured on (R9).

    UserError if the pickle holds more than containers, text and numbers, or refers to an image or object that
    instances.json lacks.
    """
    archive = files["archive"]
    chosen = choose(archive, _references_target, f"{VARIANTS[0]}/{INDEX} or another of {', '.join(VARIANTS)}")
    variants = sorted({path.split("/")[0] for path in chosen.values()})
    for variant in variants:
        _require_complete(archive, variant, list(chosen.values()))
    with staged(out, "refcoco", variants) as stage:
        extract(archive, stage, {name: path for name, path in chosen.items() if path.split("/")[1] in (INDEX, *REFS)})
        with errors_naming(archive, stage):
            contents(stage)


def _references_target(name: str) -> str | None:
    match = REFERENCES.fullmatch(name)
    return match and match[1]


def _require_complete(archive: Path, variant: str, paths: list[str]) -> None:
    if f"{variant}/{INDEX}" not in paths or not any(f"{variant}/{name}" in paths for name in REFS):
        needed = f"{variant}/{INDEX} and one of {', '.join(REFS)}"
        raise UserError(f"{archive} should hold {needed}; {places(paths)}; fetch it again")


def prepare_images(files: dict[str, Path], out: Path) -> None:
    """Unpack COCO's training images of 2014; UserError if the archive holds others."""
    archive = files["archive"]
    chosen = choose(archive, _image_target, "train2014/COCO_train2014_*.jpg")
    with staged(out, "coco", [IMAGES]) as stage:
        extract(archive, stage, chosen)


def _image_target(name: str) -> str | None:
    match = IMAGE.fullmatch(name)
    return match and f"{IMAGES}/{match[1]}"
