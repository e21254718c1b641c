"""Tiny archives in exactly the formats in which the real datasets are published."""

import io
import json
import pickle
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np
import scipy.io
from PIL import Image

MAT_HEADER = b"MATLAB 7.3 MAT-file, Platform: GLNXA64, Created on: Sat Aug 18 05:05:28 2012 HDF5 schema 1.00 ."
USERBLOCK = 512


# ----------------------------------------------------------------------------------------------------------------- files
def jpeg(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def png(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    return buffer.getvalue()


def smooth(seed: int, height: int, width: int) -> np.ndarray:
    """An RGB image that JPEG hardly changes and that no flip, transposition or change of channels leaves alone."""
    rows, columns = np.mgrid[:height, :width]
    channels = (rows * 200 // height + seed, columns * 150 // width + 40, (rows + columns) * 90 // (height + width) + 9)
    return np.stack(channels, axis=-1).astype(np.uint8)


def write_zip(path: Path, files: Mapping[str, bytes]) -> Path:
    """A zip with entries for its folders, as zip programs write them."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for folder in sorted({str(parent) for name in files for parent in Path(name).parents} - {"."}):
            archive.writestr(f"{folder}/", b"")
        for name, content in files.items():
            archive.writestr(name, content)
    return path


# --------------------------------------------------------------------------------------------------------------- NYUv2
def labeled_mat(path: Path, images: np.ndarray, depths: np.ndarray, scenes: Sequence[str]) -> Path:
    """nyu_depth_v2_labeled.mat: (N, H, W, 3) uint8 and (N, H, W) float32 with all axes reversed, strings by reference."""
    with h5py.File(path, "w", userblock_size=USERBLOCK) as file:
        _variable(file, "images", images.transpose(0, 3, 2, 1), "uint8")
        _variable(file, "rawDepths", depths.transpose(0, 2, 1).astype(np.float32), "single")
        _variable(file, "depths", depths.transpose(0, 2, 1).astype(np.float32) + 1, "single")
        _strings(file, "sceneTypes", scenes)
        _strings(file, "scenes", [f"{scene}_{number:04d}" for number, scene in enumerate(scenes, 1)])
    with path.open("r+b") as file:
        file.write(MAT_HEADER.ljust(116) + bytes(8) + b"\x00\x02IM")
    return path


def _variable(file: h5py.File, name: str, values: np.ndarray, kind: str) -> None:
    chunks = (1, *values.shape[1:-1], 60)
    data = file.create_dataset(name, data=values, chunks=chunks, compression="gzip", compression_opts=1)
    data.attrs["MATLAB_class"] = np.bytes_(kind)


def _strings(file: h5py.File, name: str, texts: Sequence[str]) -> None:
    """A column cell array of strings: (1, N) references to (length, 1) UTF-16 codes."""
    refs = file.require_group("#refs#")
    cells = file.create_dataset(name, (1, len(texts)), h5py.ref_dtype)
    cells.attrs["MATLAB_class"] = np.bytes_("cell")
    for number, text in enumerate(texts):
        codes = np.array([[ord(letter)] for letter in text], np.uint16)
        data = refs.create_dataset(f"{name}-{number}", data=codes)
        data.attrs["MATLAB_class"] = np.bytes_("char")
        data.attrs["MATLAB_int_decode"] = np.int32(2)
        cells[0, number] = data.ref


def splits_mat(path: Path, test: Sequence[int], train: Sequence[int] = ()) -> Path:
    """splits.mat: columns of frame numbers from 1."""
    columns = {"testNdxs": np.array(test, np.uint16)[:, None], "trainNdxs": np.array(train, np.uint16)[:, None]}
    scipy.io.savemat(path, columns)
    return path


def sync_files(frames: Mapping[str, Sequence[int]], height: int = 48, width: int = 64, top: str = "sync") -> dict:
    """Files of BTS' sync.zip; the depth of frame n of the s-th scene is 1000 (s + 1) + n millimetres, 0 at the border."""
    files: dict[str, bytes] = {}
    for scene_number, (scene, numbers) in enumerate(frames.items()):
        for number in numbers:
            depth = np.zeros((height, width), np.uint16)
            depth[2:-2, 3:-3] = 1000 * (scene_number + 1) + number
            place = f"{top}/{scene}" if top else scene
            files[f"{place}/rgb_{number:05d}.jpg"] = jpeg(smooth(number, height, width))
            files[f"{place}/sync_depth_{number:05d}.png"] = png(depth)
    return files


# --------------------------------------------------------------------------------------------------------------- ADE20K
CLASSES = ["wall", "building, edifice", "bed ", "windowpane, window "]
"""The real list has names with a blank at their end, too."""


def ade_files(labels: Mapping[str, np.ndarray]) -> dict[str, bytes]:
    """Files of ADEChallengeData2016.zip, as made on a Mac; ``labels`` by split and stem such as training/ADE_train_1."""
    top = "ADEChallengeData2016"
    rows = [f"{number}\t0.1576\t11664\t1172\t{name}" for number, name in enumerate(CLASSES, 1)]
    files = {
        f"{top}/objectInfo150.txt": "\n".join(["Idx\tRatio\tTrain\tVal\tName", *rows, ""]).encode(),
        f"{top}/sceneCategories.txt": b"ADE_train_00000001 airport_terminal\n",
        f"__MACOSX/{top}/images/training/._ADE_train_00000001.jpg": b"resource fork",
        f"{top}/.DS_Store": b"folder view",
    }
    for seed, (name, values) in enumerate(labels.items()):
        files[f"{top}/images/{name}.jpg"] = jpeg(smooth(seed, *values.shape))
        files[f"{top}/annotations/{name}.png"] = png(values)
    return files


# -------------------------------------------------------------------------------------------------------------- RefCOCO
SIZE = (60, 80)
"""Height and width of the images."""
SQUARE = [[10.0, 20.0, 30.0, 20.0, 30.0, 40.0, 10.0, 40.0]]
"""A polygon over columns 10 to 29 and rows 20 to 39."""
CROWD = {"size": list(SIZE), "counts": [600, 120, 4080]}
"""Uncompressed run lengths, columns first: 120 pixels from column 10 on, which are columns 10 and 11 whole."""


def image_name(number: int) -> str:
    return f"COCO_train2014_{number:012d}.jpg"


def coco_files(numbers: Sequence[int]) -> dict[str, bytes]:
    """Files of train2014.zip."""
    return {f"train2014/{image_name(number)}": jpeg(smooth(number, *SIZE)) for number in numbers}


def annotations(numbers: Sequence[int]) -> dict:
    """instances.json with a polygon (id 10 n) and a crowd (id 10 n + 1) in each image."""
    shared = {"license": 1, "coco_url": "http://mscoco.org/images/1", "date_captured": "2013-11-18"}
    images = [{"id": n, "file_name": image_name(n), "height": SIZE[0], "width": SIZE[1], **shared} for n in numbers]
    things = [
        {
            "id": 10 * n + crowd,
            "image_id": n,
            "category_id": 1 + crowd,
            "segmentation": CROWD if crowd else SQUARE,
            "area": 120 if crowd else 400.0,
            "bbox": [10.0, 20.0, 20.0, 20.0],
            "iscrowd": crowd,
        }
        for n in numbers
        for crowd in (0, 1)
    ]
    categories = [{"supercategory": "x", "id": number, "name": name} for number, name in ((1, "person"), (2, "cat"))]
    return {"info": {"year": 2014}, "licenses": [], "images": images, "annotations": things, "categories": categories}


def references(splits: Mapping[int, str]) -> list[dict]:
    """refs(...).p: two references to each image, with two sentences each; ``splits`` by image id."""
    refs = []
    for number, crowd in ((number, crowd) for number in splits for crowd in (0, 1)):
        ids = [4 * number + 2 * crowd, 4 * number + 2 * crowd + 1]
        texts = [f"Thing {number}, the {word}!" for word in ("left", "right")]
        sentences = [
            {"tokens": text.lower().split(), "raw": text, "sent_id": sent_id, "sent": text.lower().strip("!")}
            for sent_id, text in zip(ids, texts, strict=True)
        ]
        thing, split = 10 * number + crowd, splits[number]
        names = {"file_name": f"COCO_train2014_{number:012d}_{thing}.jpg", "split": split, "category_id": 1 + crowd}
        numbers = {"sent_ids": ids, "ann_id": thing, "ref_id": 2 * number + crowd, "image_id": number}
        refs.append({**numbers, **names, "sentences": sentences})
    return refs


def refcoco_files(variant: str, splits: Mapping[int, str], authors: Sequence[str] = ("unc", "google")) -> dict:
    """Files of refcoco.zip; each author's references of their own, the first one's being ``splits``."""
    files = {f"{variant}/instances.json": json.dumps(annotations(list(splits))).encode()}
    for number, author in enumerate(authors):
        refs = references(splits if number == 0 else {next(iter(splits)): "test"})
        files[f"{variant}/refs({author}).p"] = pickle.dumps(refs, protocol=0)
    files[f"__MACOSX/{variant}/._instances.json"] = b"resource fork"
    return files


class Attack:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)
