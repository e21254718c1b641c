"""refcoco.zip, refcoco+.zip, refcocog.zip and COCO's train2014.zip to the tree of vpd.datasets.refcoco."""

from __future__ import annotations

import re
from pathlib import Path

from vpd.datasets.refcoco import IMAGES, SPLIT_BY, VARIANTS, contents
from vpd.download.archives import extract
from vpd.download.staging import choose, file_of, found, naming, staged
from vpd.utils.errors import UserError

INDEX = "instances.json"
REFS = tuple(f"refs({author}).p" for author in SPLIT_BY)
REFERENCES = re.compile(rf"(?:.*/)?((?:{'|'.join(map(re.escape, VARIANTS))})/(?:instances\.json|refs\(\w+\)\.p))")
IMAGE = re.compile(r"(?:.*/)?train2014/(COCO_train2014_\d{12}\.jpg)")


def prepare_references(files: dict[str, Path], out: Path) -> None:
    """Unpack the references and annotations of a variant, with the splits that VPD is measured on (R9).

    UserError if the pickle holds more than containers, text and numbers, or names an image or object that
    instances.json lacks.
    """
    archive = file_of(files, "archive", "refcoco")
    chosen = choose(archive, _references_target, f"{VARIANTS[0]}/{INDEX} or another of {', '.join(VARIANTS)}")
    variants = sorted({target.split("/")[0] for target in chosen.values()})
    for variant in variants:
        _require_whole(archive, variant, list(chosen.values()))
    wanted = {name: target for name, target in chosen.items() if target.split("/")[1] in (INDEX, *REFS)}
    with staged(out, "refcoco", variants) as stage:
        extract(archive, stage, members=wanted.get)
        with naming(archive, stage):
            contents(stage)


def _references_target(name: str) -> str | None:
    match = REFERENCES.fullmatch(name)
    return match and match[1]


def _require_whole(archive: Path, variant: str, targets: list[str]) -> None:
    if f"{variant}/{INDEX}" not in targets:
        raise UserError(f"{archive} has no {variant}/{INDEX}; {found(targets)}; fetch it again")
    if not any(f"{variant}/{name}" in targets for name in REFS):
        raise UserError(f"{archive} has neither {' nor '.join(REFS)} of {variant}; {found(targets)}; fetch it again")


def prepare_images(files: dict[str, Path], out: Path) -> None:
    """Unpack COCO's training images of 2014; UserError if the archive holds others."""
    archive = file_of(files, "archive", "coco")
    chosen = choose(archive, _image_target, "train2014/COCO_train2014_*.jpg")
    with staged(out, "coco", [IMAGES]) as stage:
        extract(archive, stage, members=chosen.get)


def _image_target(name: str) -> str | None:
    match = IMAGE.fullmatch(name)
    return match and f"{IMAGES}/{match[1]}"
