"""RefCOCO, RefCOCO+ and RefCOCOg for referring segmentation: pickled references, COCO annotations, shared images."""

from __future__ import annotations

import io
import pickle
import pickletools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy import ndarray
from pycocotools import mask as coco_mask
from typing_extensions import TypedDict

from vpd.config.schema import ReferringSpec, Side
from vpd.datasets.dataset import Contents, Dataset, Preview, image_tensor, label_tensor
from vpd.datasets.images import MAX_PIXELS, check_pair, read_image
from vpd.datasets.preview import mark_object
from vpd.datasets.transforms import normalise, resize_square
from vpd.utils.digests import remembered
from vpd.utils.errors import UserError, nearest, pick
from vpd.utils.files import readable
from vpd.utils.validation import read_as

if TYPE_CHECKING:
    from torch import Tensor

IMAGES = "images/mscoco/images/train2014"
VARIANTS = ("refcoco", "refcoco+", "refcocog")
SPLIT_BY = ("unc", "umd")
"""Authors of the splits, in order of preference; RefCOCO and RefCOCO+ have the first, RefCOCOg the second (R9)."""
HASHED = ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "FROZENSET", "EMPTY_SET")
FARTHEST = 65536  # pixels from the corner at which a polygon can have a point; pycocotools walks from one to the next
TOPS: tuple[str, ...] = ("images", *VARIANTS)
NEEDED: tuple[str, ...] = ("train", "val")  # splits that every variant must have


# --------------------------------------------------------------------------------------------------------------- format
class _Refused(Exception):
    pass


class _ContainersOnly(pickle.Unpickler):
    """Refuses whatever a pickle wants to import, since importing is how a pickle runs code."""

    def find_class(self, module: str, name: str) -> Any:
        raise _Refused(f"{module}.{name}")


class Image(TypedDict):
    """An image of instances.json."""

    id: int
    file_name: str
    height: Side
    width: Side


class Annotation(TypedDict):
    """An object of instances.json."""

    id: int
    segmentation: list[Any] | dict[str, Any]


class Instances(TypedDict):
    """What is read of instances.json."""

    images: list[Image]
    annotations: list[Annotation]


@dataclass(frozen=True)
class Reference:
    """One referred-to object and its sentences."""

    ref_id: int
    image_id: int
    split: str
    image: Path
    size: tuple[int, int]  # height and width
    segmentation: list[Any] | dict[str, Any]  # COCO polygons, or run lengths
    sentences: tuple[tuple[int, str], ...]  # id and text


def _pickles(root: Path) -> dict[str, Path]:
    """The references of each variant that is there."""
    paths = [(name, root / name / f"refs({author}).p") for name in VARIANTS for author in reversed(SPLIT_BY)]
    return {name: path for name, path in paths if path.is_file()}


def refs_path(root: Path, variant: str) -> Path:
    """Find the variant's pickle; UserError if the variant is not there."""
    paths = _pickles(root)
    if variant not in paths:
        raise UserError(f"{root} has no RefCOCO variant '{variant}'; {nearest(variant, list(paths))}")
    return paths[variant]


def load_refs(path: Path) -> list[dict[str, Any]]:
    """Unpickle references without running anything they contain."""
    try:
        with readable(path, "fetch it again", "prepare the dataset again"):
            content = path.read_bytes()
        remembered(f"plain pickle {path.absolute()}", [path], lambda: _check_opcodes(content))
        refs = _ContainersOnly(io.BytesIO(content), encoding="utf-8").load()
        for ref in refs:
            _check_ref(ref)
    except UserError:
        raise
    except _Refused as error:
        raise UserError(
            f"{path} was refused: it wants to load {error}, but should hold only lists and text; fetch it again"
        ) from None
    except Exception as error:  # a damaged pickle can raise anything
        raise UserError(f"{path} does not hold references ({type(error).__name__}: {error}); fetch it again") from None
    return refs


def _check_opcodes(content: bytes) -> str:
    """Raise _Refused for keys whose hash takes for ever or overflows the stack, and for an index that fills the memory."""
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name in ("GLOBAL", "STACK_GLOBAL", "INST"):
            break  # where the unpickler stops
        if opcode.name in HASHED:
            raise _Refused("tuples or sets")
        if opcode.name.endswith("PUT") and (argument or 0) > len(content):
            raise _Refused(f"object {argument} of a short file")
    return "plain"


def _check_ref(ref: dict[str, Any]) -> None:
    numbers = all(isinstance(ref[key], int) for key in ("ref_id", "ann_id", "image_id"))
    if not numbers or not isinstance(ref["split"], str):
        raise ValueError(f"reference {ref['ref_id']} has an id that is no number, or no split")
    if not all(isinstance(one["sent_id"], int) and isinstance(one["sent"], str) for one in ref["sentences"]):
        raise ValueError(f"reference {ref['ref_id']} has a bad sentence")
    if not ref["sentences"]:
        raise ValueError(f"reference {ref['ref_id']} has no sentence")


def references(root: Path, variant: str, split: str | None = None) -> list[Reference]:
    """Read the references of a variant and split (or of all its splits); UserError if either or an id does not exist."""
    path = refs_path(root, variant)
    refs = load_refs(path)
    if split:
        pick(split, {ref["split"]: ref for ref in refs}, "split", str(path))
        refs = [ref for ref in refs if ref["split"] == split]
    index = path.parent / "instances.json"
    coco = read_as(Instances, index, "fetch it again")
    images = {row["id"]: row for row in coco["images"]}
    annotations = {row["id"]: row for row in coco["annotations"]}
    joined = []
    for ref in sorted(refs, key=lambda ref: ref["ref_id"]):
        for table, key in ((images, ref["image_id"]), (annotations, ref["ann_id"])):
            if key not in table:
                raise UserError(f"{index} lacks id {key}, which reference {ref['ref_id']} needs; fetch both again")
        image, segmentation = images[ref["image_id"]], annotations[ref["ann_id"]]["segmentation"]
        path, size = root / IMAGES / Path(image["file_name"]).name, (image["height"], image["width"])
        sentences = tuple((int(one["sent_id"]), str(one["sent"])) for one in ref["sentences"])
        joined.append(Reference(ref["ref_id"], ref["image_id"], ref["split"], path, size, segmentation, sentences))
    return joined


def object_mask(reference: Reference) -> ndarray:
    """(H, W) uint8 mask from COCO polygons or run lengths; where polygons of one object overlap it is 0 (R13)."""
    segmentation, (height, width) = reference.segmentation, reference.size
    try:
        if isinstance(segmentation, dict):
            mask = _from_runs(segmentation["counts"], height, width)
        else:
            _check_polygons(segmentation, height, width)
            mask = coco_mask.decode(coco_mask.frPyObjects(segmentation, height, width)).sum(axis=2) == 1
    except Exception as error:  # pycocotools raises bare Exception
        name = f"reference {reference.ref_id} ({reference.image.name})"
        raise UserError(f"{name} has a bad segmentation: {error}") from None
    return np.ascontiguousarray(mask, dtype=np.uint8)


def _from_runs(counts: list[int] | str, height: int, width: int) -> ndarray:
    """(H, W) mask from the lengths of runs of 0 and 1 in turn, down the columns; as text they are in COCO's short form."""
    counts = _decompressed(counts) if isinstance(counts, str) else counts
    lengths = np.asarray(counts)
    if lengths.ndim != 1 or lengths.dtype != np.int64 or lengths.min() < 0 or sum(counts) != height * width:
        raise ValueError(f"its counts are no lengths with a sum of {height}x{width}")
    return np.repeat(np.arange(len(lengths)) % 2, lengths).reshape(width, height).T


def _decompressed(text: str) -> list[int]:
    """Numbers in groups of five bits, lowest first, as differences to the last but one from the fourth on."""
    counts, value, shift = list[int](), 0, 0
    for code in (ord(character) - 48 for character in text):
        value, shift = value | (code & 31) << shift, shift + 5
        if not code & 32:
            value -= (code & 16) << shift - 4  # the highest bit is the sign
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    return counts


def _check_polygons(polygons: list[list[float]], height: int, width: int) -> None:
    """ValueError for what pycocotools would not survive, or read as boxes."""
    if not polygons or len(polygons) * height * width > 10 * MAX_PIXELS:
        raise ValueError(f"it has {len(polygons)} polygons on {width}x{height} pixels")
    for points in (np.asarray(polygon, dtype=float) for polygon in polygons):
        if points.ndim != 1 or len(points) < 6 or not (np.abs(points) <= FARTHEST).all():  # true for NaN as well
            raise ValueError(f"a polygon needs three points or more, at most {FARTHEST} pixels away")


def contents(root: Path) -> Contents:
    """List the variants in ``root``; counts are sentences (``refcoco/val``) and objects (``refcoco/val/objects``)."""
    files: set[str] = set()
    counts: dict[str, int] = {}
    by_image: dict[Path, list[Reference]] = {}
    for variant, path in _pickles(root).items():
        listed = references(root, variant)
        counts |= {f"{variant}/{split}": 0 for split in NEEDED}
        for split, objects in sorted(Counter(reference.split for reference in listed).items()):
            counts[f"{variant}/{split}"] = sum(len(one.sentences) for one in listed if one.split == split)
            counts[f"{variant}/{split}/objects"] = objects
        for reference in listed:
            by_image.setdefault(reference.image, []).append(reference)
        files |= {path.relative_to(root).as_posix(), f"{variant}/instances.json"}
    if not files:
        needed = f"{', '.join(VARIANTS)}; each needs refs(unc).p or refs(umd).p and instances.json"
        raise UserError(f"{root} holds none of {needed}")
    files |= {path.relative_to(root).as_posix() for path in by_image}
    checks = [partial(_check, path, by_image[path]) for path in sorted(by_image)]
    return Contents(sorted(files), counts, {"images": checks})  # which the variants and splits share


def _check(path: Path, references: list[Reference]) -> bool:
    if not path.is_file():
        found = f"{path} does not exist, but reference {references[0].ref_id} is in it"
        raise UserError(f"{found}; fetch all of COCO's train2014 images")
    height, width = read_image(path).shape[:2]
    for reference in references:
        if reference.size != (height, width):
            other = f"{reference.size[1]}x{reference.size[0]}"
            raise UserError(f"{path} is {width}x{height}, but its masks are {other}; fetch it again")
        if not object_mask(reference).any():
            raise UserError(f"reference {reference.ref_id} ({path.name}) has an empty mask; fetch instances.json again")
    return True


def preview(root: Path) -> Iterator[Preview]:
    """Image with one object marked; what each variant says of it below."""
    by_image: dict[int, list[tuple[Reference, list[str]]]] = {}
    texts: dict[tuple[int, str], list[str]] = {}
    for variant in _pickles(root):
        for reference in references(root, variant):
            lines = texts.setdefault((reference.image_id, str(reference.segmentation)), [])
            lines.append(f"{variant}: {reference.sentences[0][1]}")
            by_image.setdefault(reference.image_id, []).append((reference, lines))
    for number, group in enumerate(by_image.values()):
        reference, lines = group[number % len(group)]  # not always the first, which is the nearest wall's furniture
        image = read_image(reference.image)
        yield [image, mark_object(image, object_mask(reference))], lines


# --------------------------------------------------------------------------------------------------------------- reader
class RefCOCO(Dataset):
    """Training: one sample per object, with a random one of its sentences (R12). Otherwise every sentence is a sample."""

    splits = {split: split for split in ("train", "val", "test", "testA", "testB")}

    def __init__(self, spec: ReferringSpec, root: Path, split: str, seed: int = 0) -> None:
        super().__init__(split, seed)
        if spec.variant is None:
            raise UserError(f"experiment '{spec.name}' names no variant; choose one of {', '.join(VARIANTS)}")
        self.size = spec.data.size if self.training else spec.evaluation.size
        self.references = references(root, spec.variant, self.split)
        numbers = range(len(self.references))
        self.sentences = [(n, s) for n in numbers for s in range(len(self.references[n].sentences))]

    def __len__(self) -> int:
        return len(self.references) if self.training else len(self.sentences)

    def sample(self, index: int, epoch: int = 0) -> dict[str, Any]:
        """image, label (1 = the object), text, image_id, key, id."""
        if self.training:
            reference = self.references[index]
            chosen = int(self.rng(index, epoch).integers(len(reference.sentences)))
        else:
            number, chosen = self.sentences[index]
            reference = self.references[number]
        image, mask = read_image(reference.image), object_mask(reference)
        check_pair(image, reference.image, mask, Path(f"mask of reference {reference.ref_id}"))
        image, mask = resize_square(image, mask, self.size)
        sent_id, text = reference.sentences[chosen]
        return {
            "image": image_tensor(normalise(image)),
            "label": label_tensor(mask),
            "text": text,
            "image_id": str(reference.image_id),
            "key": str(reference.image_id),  # never augmented, so the frozen encoder need see each image only once
            "id": f"{reference.ref_id}-{sent_id}",
        }

    def native_label(self, index: int) -> Tensor:
        """Label of sample ``index`` at the image's own size, (H, W) int64."""
        number = index if self.training else self.sentences[index][0]
        return label_tensor(object_mask(self.references[number]))
