"""From refcoco.zip, refcoco+.zip, refcocog.zip and COCO's train2014.zip to the tree that vpd.datasets reads as RefCOCO."""

import re
from pathlib import Path

from vpd.datasets.refcoco import IMAGES, SPLIT_BY, VARIANTS, contents
from vpd.download.archives import choose, errors_naming, extract, places, staged
from vpd.utils.errors import UserError

REFS = tuple(f"refs({author}).p" for author in SPLIT_BY)
MEMBER = re.compile(rf"(?:.*/)?({'|'.join(map(re.escape, VARIANTS))})/(instances\.json|refs\(\w+\)\.p)")
IMAGE = re.compile(r"(?:.*/)?train2014/(COCO_train2014_\d{12}\.jpg)")


def prepare_references(files: dict[str, Path], out: Path) -> list[str]:
    """Unpack the references and annotations of a variant, with the splits that VPD is measured on (R9)."""
    archive = files["archive"]
    chosen = choose(archive, MEMBER, r"\1/\2", f"{VARIANTS[0]}/instances.json or another of {', '.join(VARIANTS)}")
    paths = set(chosen.values())
    variants = sorted({path.split("/")[0] for path in paths})
    for variant in variants:
        if f"{variant}/instances.json" not in paths or not paths & {f"{variant}/{name}" for name in REFS}:
            expected = f"{variant}/instances.json and one of {', '.join(REFS)}"
            raise UserError(f"{archive} should hold {expected}; {places(paths)}; fetch it again")
    with staged(out, "refcoco", variants) as stage:
        # The other authors' splits stay out, so that no reader takes them by mistake.
        extract(
            archive, stage, {name: path for name, path in chosen.items() if path.endswith(("instances.json", *REFS))}
        )
        with errors_naming(archive, stage):
            contents(stage)
    return variants


def prepare_images(files: dict[str, Path], out: Path) -> list[str]:
    """Unpack COCO's training images of 2014; UserError if the archive holds others."""
    archive = files["archive"]
    chosen = choose(archive, IMAGE, rf"{IMAGES}/\1", "train2014/COCO_train2014_*.jpg")
    with staged(out, "coco", [IMAGES]) as stage:
        extract(archive, stage, chosen)
    return [IMAGES]
