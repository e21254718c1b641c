"""The RefCOCO family on disk: pickled references, COCO annotations and shared images."""

from __future__ import annotations

import io
import pickle
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy import ndarray
from pycocotools import mask as coco_mask

from vpd.datasets.images import read_image
from vpd.utils.errors import UserError, nearest, pick
from vpd.utils.files import read_json

IMAGES = "images/mscoco/images/train2014"
VARIANTS = ("refcoco", "refcoco+", "refcocog")
SPLIT_BY = ("unc", "umd")
"""Authors of the splits, in order of preference; RefCOCO and RefCOCO+ have the first, RefCOCOg the second (R9)."""
TOPS = ("images", *VARIANTS)


class Refused(Exception):
    """The pickle wants more than containers, text and numbers."""


class ContainersOnly(pickle.Unpickler):
    """Loads dicts, lists, tuples, strings and numbers, and refuses every class or function."""

    def find_class(self, module: str, name: str):
        """Refuse whatever a pickle wants to import."""
        raise Refused(f"{module}.{name}")


@dataclass(frozen=True)
class Reference:
    """One referred-to object and its sentences."""

    ref_id: int
    image_id: int
    image: Path
    size: tuple[int, int]
    """Height and width."""
    segmentation: list | dict
    sentences: tuple[tuple[int, str], ...]
    """Sentence id and text."""


def refs_path(root: Path, variant: str) -> Path:
    """The variant's pickle; UserError if the variant is not there."""
    for author in SPLIT_BY:
        path = root / variant / f"refs({author}).p"
        if variant in VARIANTS and path.is_file():
            return path
    raise UserError(f"{root} has no RefCOCO variant '{variant}'; {nearest(variant, present_variants(root))}")


def load_refs(path: Path) -> list[dict]:
    """Unpickle references without running anything they contain."""
    try:
        refs = ContainersOnly(io.BytesIO(path.read_bytes()), encoding="utf-8").load()
        for ref in refs:
            _check_ref(ref)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; prepare the dataset again") from None
    except Refused as error:
        raise UserError(
            f"{path} was refused: it wants to load {error}, but references are only lists and text"
        ) from None
    except Exception as error:  # a damaged pickle can raise anything
        raise UserError(f"{path} does not hold references ({type(error).__name__}: {error}); fetch it again") from None
    return refs


def _check_ref(ref: dict) -> None:
    """ValueError, KeyError or TypeError unless the reference has what the readers use."""
    if not all(isinstance(ref[key], int) for key in ("ref_id", "ann_id", "image_id")) or not isinstance(
        ref["split"], str
    ):
        raise ValueError(f"reference {ref['ref_id']} has an id that is no number, or no split")
    if not all(isinstance(one["sent_id"], int) and isinstance(one["sent"], str) for one in ref["sentences"]):
        raise ValueError(f"reference {ref['ref_id']} has a bad sentence")
    if not ref["sentences"]:
        raise ValueError(f"reference {ref['ref_id']} has no sentence")


def references(root: Path, variant: str, split: str) -> list[Reference]:
    """The references of a split by id; UserError naming the splits that exist if it does not."""
    path = refs_path(root, variant)
    by_split: dict[str, list[dict]] = {}
    for ref in load_refs(path):
        by_split.setdefault(ref["split"], []).append(ref)
    return _resolve(root, path, pick(split, by_split, "split", str(path)))


def _resolve(root: Path, path: Path, refs: list[dict]) -> list[Reference]:
    """Join references with images and annotations, by reference id."""
    index = path.parent / "instances.json"
    images, annotations = _tables(index)
    for ref in refs:
        for table, key in ((images, ref["image_id"]), (annotations, ref["ann_id"])):
            if key not in table:
                raise UserError(
                    f"{index} lacks id {key}, which reference {ref['ref_id']} needs; fetch both files again"
                )
    ordered = sorted(refs, key=lambda ref: ref["ref_id"])
    return [_reference(root, ref, images[ref["image_id"]], annotations[ref["ann_id"]]) for ref in ordered]


def _tables(index: Path) -> tuple[dict[int, dict], dict[int, dict]]:
    """Images and annotations by id; UserError if an entry lacks what the readers use."""
    needed = {"images": {"id", "file_name", "height", "width"}, "annotations": {"id", "segmentation"}}
    coco = read_json(index)
    for name, keys in needed.items():
        entries = coco.get(name) if isinstance(coco, dict) else None
        if not isinstance(entries, list) or not all(
            isinstance(entry, dict) and keys <= entry.keys() for entry in entries
        ):
            raise UserError(
                f"{index} needs a list '{name}' of objects with the keys {', '.join(sorted(keys))}; fetch it again"
            )
    return tuple({entry["id"]: entry for entry in coco[name]} for name in needed)


def _reference(root: Path, ref: dict, image: dict, annotation: dict) -> Reference:
    sentences = tuple((int(sentence["sent_id"]), str(sentence["sent"])) for sentence in ref["sentences"])
    path = root / IMAGES / Path(image["file_name"]).name
    size = (int(image["height"]), int(image["width"]))
    return Reference(ref["ref_id"], ref["image_id"], path, size, annotation["segmentation"], sentences)


def object_mask(reference: Reference) -> ndarray:
    """(H, W) uint8 mask from COCO polygons or run lengths; where polygons of one object overlap it is 0 (R13)."""
    segmentation, (height, width) = reference.segmentation, reference.size
    try:
        if isinstance(segmentation, dict):
            counts = segmentation["counts"]
            codes = coco_mask.frPyObjects(segmentation, height, width) if isinstance(counts, list) else segmentation
            mask = coco_mask.decode(codes)
        else:
            mask = coco_mask.decode(coco_mask.frPyObjects(segmentation, height, width)).sum(axis=2) == 1
    except Exception as error:  # pycocotools raises bare Exception
        raise UserError(
            f"reference {reference.ref_id} ({reference.image.name}) has a bad segmentation: {error}"
        ) from None
    return np.ascontiguousarray(mask, dtype=np.uint8)


def present_variants(root: Path) -> list[str]:
    """Variants whose references are there."""
    return [name for name in VARIANTS if any((root / name / f"refs({author}).p").is_file() for author in SPLIT_BY)]


def members(root: Path) -> list[str]:
    """All files that are read, relative to ``root``."""
    found: set[str] = set()
    for variant in present_variants(root):
        path = refs_path(root, variant)
        ids = {ref["image_id"] for ref in load_refs(path)}
        images, _ = _tables(path.parent / "instances.json")
        found |= {f"{IMAGES}/{Path(images[number]['file_name']).name}" for number in ids if number in images}
        found |= {path.relative_to(root).as_posix(), f"{variant}/instances.json"}
    if not found:
        raise UserError(
            f"{root} holds none of {', '.join(VARIANTS)}; each needs refs(unc).p or refs(umd).p and instances.json"
        )
    return sorted(found)


def counts(root: Path) -> dict[str, int]:
    """Sentences per variant and split (``refcoco/val``), and referred-to objects (``refcoco/val/objects``)."""
    result: dict[str, int] = {}
    for variant in present_variants(root):
        refs = load_refs(refs_path(root, variant))
        objects = Counter(ref["split"] for ref in refs)
        for split in sorted(objects):
            result[f"{variant}/{split}"] = sum(len(ref["sentences"]) for ref in refs if ref["split"] == split)
            result[f"{variant}/{split}/objects"] = objects[split]
    return result


def checks(root: Path) -> list[tuple]:
    """Arguments of ``check``: each image once, with all its references."""
    grouped: dict[Path, list[Reference]] = {}
    for variant in present_variants(root):
        path = refs_path(root, variant)
        for reference in _resolve(root, path, load_refs(path)):
            grouped.setdefault(reference.image, []).append(reference)
    return [(path, tuple(grouped[path])) for path in sorted(grouped)]


def check(path: Path, found: tuple[Reference, ...]) -> None:
    """UserError if the image is missing, unreadable or not of the annotated size, or a mask is empty."""
    if not path.is_file():
        raise UserError(
            f"{path} does not exist, but reference {found[0].ref_id} is in it; fetch all of COCO's train2014 images"
        )
    size = read_image(path).shape[:2]
    for reference in found:
        if reference.size != size:
            raise UserError(
                f"{path} is {size[1]}x{size[0]}, but its masks are {reference.size[1]}x{reference.size[0]}; fetch it again"
            )
        if not object_mask(reference).any():
            raise UserError(f"reference {reference.ref_id} ({path.name}) has an empty mask; fetch instances.json again")
