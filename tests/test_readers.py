"""Readers on the real layouts: what samples hold, what they depend on, and what bad files end in."""

import json
import pickle
import shutil
import struct
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from pycocotools import mask as coco_mask

import vpd.datasets.images
from vpd.config.schema import DatasetSpec, Spec
from vpd.datasets import ade20k, build_dataset, nyuv2, refcoco
from vpd.datasets.images import read_depth, read_image, read_labels
from vpd.datasets.manifest import check_unchanged, located
from vpd.datasets.pictures import as_array
from vpd.stages.data import dataset_fingerprint, prepare_dataset
from vpd.utils.errors import UserError
from vpd.utils.files import read_json

SPECS = {
    "captions": DatasetSpec(format="captions", source="synthetic", images={"train": 3}, size=(64, 64)),
    "ade20k": DatasetSpec(format="ade20k", source="synthetic", images={"training": 6, "validation": 3}, size=(88, 64)),
    "nyuv2": DatasetSpec(format="nyuv2", source="synthetic", images={"train": 6, "test": 3}, size=(96, 64)),
    "refcoco": DatasetSpec(
        format="refcoco", source="synthetic", images={"train": 6, "val": 3, "testA": 2, "testB": 2}, size=(80, 64)
    ),
}
DATASETS = {"segmentation": "ade20k", "referring": "refcoco", "depth": "nyuv2"}
TRAIN_IMAGE = "ADEChallengeData2016/images/training/ADE_train_00000002.jpg"
TRAIN_LABEL = "ADEChallengeData2016/annotations/training/ADE_train_00000002.png"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("drawn")
    for name, spec in SPECS.items():
        prepare_dataset(name, spec, root / name)
    return root


@pytest.fixture
def copy(drawn, tmp_path):

    return lambda name: shutil.copytree(drawn / name, tmp_path / name)


def with_data(spec: Spec, **changes) -> Spec:
    return spec.model_copy(update={"data": spec.data.model_copy(update=changes)})


def folder_spec(root: Path, **more) -> DatasetSpec:
    return DatasetSpec(format=root.name, source="folder", path=str(root), **more)


def edit(path: Path, old: str, new: str) -> None:
    path.write_text(path.read_text().replace(old, new, 1))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


# -------------------------------------------------------------------------------------------------------------- samples
def shapes(sample: dict) -> dict:
    return {name: (value.dtype, *value.shape) for name, value in sample.items() if torch.is_tensor(value)}


def test_segmentation_samples(drawn, specs):
    train = build_dataset(specs["segmentation"], drawn / "ade20k", "train")
    val = build_dataset(specs["segmentation"], drawn / "ade20k", "val")
    assert (len(train), len(val)) == (6, 3)
    assert train.classes[:2] == ["wall", "floor"]
    assert ("door", "double door") in train.synonyms
    side = specs["segmentation"].data.crop
    for sample in map(train.sample, range(6)):
        assert shapes(sample) == {"image": (torch.float32, 3, side, side), "label": (torch.int64, side, side)}
        assert sample["image"].abs().max() <= 1.0
    assert [tuple(val.sample(index)["image"].shape) for index in range(3)] == [(3, 64, 88), (3, 88, 64), (3, 64, 88)]
    sample = val.sample(0)
    folder = drawn / "ade20k/ADEChallengeData2016/annotations/validation"
    stored = np.array(Image.open(folder / f"{sample['id']}.png")).astype(int)
    assert sample["id"] == "ADE_val_00000001"
    assert sample["image"].dtype == torch.uint8
    assert (sample["label"].numpy() == np.where(stored == 0, 255, stored - 1)).all()


def test_depth_samples(drawn, specs):
    train = build_dataset(specs["depth"], drawn / "nyuv2", "train")
    val = build_dataset(specs["depth"], drawn / "nyuv2", "val")
    assert (len(train), len(val)) == (6, 3)
    assert train.classes == sorted(train.classes) == list(nyuv2.SCENES)
    assert len(train.classes) == 27
    side = specs["depth"].data.crop
    for sample, size in ((train.sample(1), (side, side)), (val.sample(0), (64, 96))):
        real = torch.float32
        assert shapes(sample) == {"image": (real, 3, *size), "depth": (real, *size), "class_id": (torch.int64,)}
    whole = val.sample(0)["depth"]
    assert 0.5 < whole.min() < whole.max() < 10.0
    narrow = with_data(specs["depth"], min_depth=2.5, max_depth=4.0)
    inside = (whole >= 2.5) & (whole <= 4.0)
    assert 0 < inside.sum() < inside.numel()
    cut = build_dataset(narrow, drawn / "nyuv2", "val").sample(0)["depth"]
    assert torch.equal(cut, torch.where(inside, whole, 0.0))


@pytest.mark.parametrize("variant", refcoco.VARIANTS)
def test_referring_samples(drawn, specs, variant):
    spec = specs["referring"].model_copy(update={"variant": variant})
    train, val = (build_dataset(spec, drawn / "refcoco", split) for split in ("train", "val"))
    counts = read_json(drawn / "refcoco/manifest.json")["counts"]
    assert len(train) == counts[f"{variant}/train/objects"]
    assert len(val) == counts[f"{variant}/val"] > counts[f"{variant}/val/objects"]
    assert train.classes == []
    side = spec.data.size
    for dataset in (train, val):
        for sample in map(dataset.sample, range(len(dataset))):
            assert shapes(sample) == {"image": (torch.float32, 3, side, side), "label": (torch.int64, side, side)}
            assert set(sample["label"].unique().tolist()) == {0, 1}
            assert sample["text"]
    assert len({val.sample(index)["id"] for index in range(len(val))}) == len(val)
    assert val.native_label(0).shape == (64, 80)
    share = [float(x.float().mean()) for x in (val.native_label(0), val.sample(0)["label"])]
    assert share[0] == pytest.approx(share[1], rel=0.1)


@pytest.mark.parametrize("task", DATASETS)
def test_augmentation_depends_on_seed_epoch_and_index_only(drawn, specs, task):
    root = drawn / DATASETS[task]
    one, two, other = (build_dataset(specs[task], root, "train", seed=seed) for seed in (3, 3, 4))
    np.random.seed(1)
    forward = [one.sample(index, 1) for index in range(4)]
    torch.manual_seed(9)
    backward = [two.sample(index, 1) for index in reversed(range(4))][::-1]
    for a, b in zip(forward, backward, strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[k], b[k]) if torch.is_tensor(a[k]) else a[k] == b[k] for k in a)
    assert not same(forward, [one.sample(index, 2) for index in range(4)])
    assert not same(forward, [other.sample(index, 1) for index in range(4)])


def same(one: list[dict], two: list[dict]) -> bool:
    return all(
        torch.equal(a["image"], b["image"]) and a.get("text") == b.get("text") for a, b in zip(one, two, strict=True)
    )


# --------------------------------------------------------------------------------------------------------- scene classes
def test_the_first_match_is_that_of_the_released_order():
    released = """
        printer_room bathroom living_room study conference_room study_room kitchen home_office bedroom dinette playroom
        indoor_balcony laundry_room basement excercise_room foyer home_storage cafe furniture_store office_kitchen
        student_lounge dining_room reception_room computer_lab classroom office bookstore"""
    order = released.split()
    assert sorted(order) == list(nyuv2.SCENES)
    for folder in [*(f"{name}_0001" for name in order), "nyu_office_1"]:
        expected = next(name for name in order if name in folder)
        assert nyuv2.SCENES[nyuv2.scene_class(folder, "first-match")] == expected


# ------------------------------------------------------------------------------------------------------------ references
NO_SENTENCE = {"ref_id": 1, "ann_id": 1, "image_id": 1, "split": "val", "sentences": []}


@pytest.mark.parametrize(
    ("refs", "complaint"),
    [
        (b"not a pickle", "does not hold references"),
        (pickle.dumps([{"ref_id": 1}]), "KeyError: 'ann_id'"),
        (pickle.dumps([NO_SENTENCE | {"image_id": "x"}]), "id that is no number"),
        (pickle.dumps([NO_SENTENCE]), "has no sentence"),
    ],
)
def test_damaged_references_end_in_one_sentence(copy, specs, refs, complaint):
    root = copy("refcoco")
    (root / "refcoco/refs(unc).p").write_bytes(refs)
    with pytest.raises(UserError, match=complaint):
        build_dataset(specs["referring"], root, "val")


def test_python_2_pickles_load(tmp_path):
    path = tmp_path / "refs(unc).p"
    # What cPickle of Python 2 wrote for [{'ref_id': 1, 'ann_id': 2, 'image_id': 3, 'split': 'val', 'sentences': [...]}].
    text = b"(lp1\n(dp2\nS'ref_id'\nI1\nsS'ann_id'\nI2\nsS'image_id'\nI3\nsS'split'\nS'val'\ns"
    text += b"S'sentences'\n(lp3\n(dp4\nS'sent_id'\nI7\nsS'sent'\nVred ball\nsasa."
    path.write_bytes(text)
    (ref,) = refcoco.load_refs(path)
    assert (ref["split"], ref["sentences"][0]["sent"]) == ("val", "red ball")


def test_missing_variants_and_splits_name_those_that_exist(copy, specs):
    root = copy("refcoco")
    shutil.rmtree(root / "refcoco+")
    with pytest.raises(UserError, match=r"no RefCOCO variant 'refcoco\+'; .*\(known: refcoco, refcocog\)"):
        build_dataset(specs["referring"].model_copy(update={"variant": "refcoco+"}), root, "val")
    with pytest.raises(UserError, match=r"unknown split 'testA'; .*\(known: test, train, val\)"):
        build_dataset(specs["referring"].model_copy(update={"variant": "refcocog"}), root, "testA")
    with pytest.raises(UserError, match=r"unknown split 'validation'; \(known: train, val\)"):
        build_dataset(specs["segmentation"], root, "validation")


def test_overlapping_polygons_of_one_object_leave_a_hole():
    """Two squares of 4 x 4 that share 2 x 2 pixels: the shared ones are background (R13)."""
    squares = [[0, 0, 4, 0, 4, 4, 0, 4], [2, 2, 6, 2, 6, 6, 2, 6]]
    reference = refcoco.Reference(1, 1, "val", Path("a.jpg"), (8, 8), squares, ((1, "a"),))
    expected = np.zeros((8, 8), np.uint8)
    expected[:4, :4] = expected[2:6, 2:6] = 1
    expected[2:4, 2:4] = 0
    mask = refcoco.object_mask(reference)
    assert mask.dtype == np.uint8
    assert np.array_equal(mask, expected)


def test_masks_from_run_lengths_equal_masks_from_polygons(copy, specs):
    root = copy("refcoco")
    index = root / "refcoco/instances.json"
    plain = build_dataset(specs["referring"], root, "val")
    expected = [plain.native_label(i) for i in range(len(plain))]
    for compressed in (True, False):
        coco = json.loads((root / "refcoco+/instances.json").read_text())
        for annotation in coco["annotations"]:
            codes = coco_mask.merge(coco_mask.frPyObjects(annotation["segmentation"], 64, 80))
            counts = codes["counts"].decode() if compressed else run_lengths(coco_mask.decode(codes))
            annotation["segmentation"] = {"size": [64, 80], "counts": counts}
        index.write_text(json.dumps(coco))
        dataset = build_dataset(specs["referring"], root, "val")
        assert all(torch.equal(dataset.native_label(i), expected[i]) for i in range(len(expected)))


def run_lengths(mask: np.ndarray) -> list[int]:
    values = mask.T.ravel()
    edges = np.flatnonzero(np.diff(values)) + 1
    lengths = np.diff(np.concatenate(([0], edges, [values.size]))).tolist()
    return [0, *lengths] if values[0] else lengths


# ------------------------------------------------------------------------------------------------------------- bad files
def new_label(*image):
    return lambda root: Image.new(*image).save(root / TRAIN_LABEL)


NAMED = r"ADE_train_00000002\.%s"
BAD_FILES = {
    "truncated image": (lambda root: truncate(root / TRAIN_IMAGE), NAMED % "jpg cannot be read .*truncated"),
    "missing label": (lambda root: (root / TRAIN_LABEL).unlink(), NAMED % "png is missing"),
    "class file": (lambda root: edit(root / ade20k.CLASS_FILE, "\n3\t", "\n5\t"), "expected tab-separated Idx 3"),
    "other size": (new_label("L", (12, 10)), NAMED % r"png and .*2\.jpg differ in size \(12x10 and 64x88\)"),
    "unknown class": (new_label("L", (64, 88), 151), NAMED % "png has label 151, but there are only 16 classes"),
    "colours": (new_label("RGB", (64, 88)), "is not a label map: found uint8"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_named_by_reader_and_data_stage(copy, specs, tmp_path, name):
    damage, complaint = BAD_FILES[name]
    root = copy("ade20k")
    damage(root)
    with pytest.raises(UserError, match=complaint):
        build_dataset(specs["segmentation"], root, "train").sample(1)
    with pytest.raises(UserError, match=complaint):
        prepare_dataset("ade20k", folder_spec(root), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda frame, _: truncate(frame.image), r"rgb_00001\.jpg cannot be read"),
        (lambda frame, _: truncate(frame.depth), r"sync_depth_00001\.png cannot be read"),
        (lambda frame, _: Image.new("RGB", (20, 64)).save(frame.image), "differ in size"),
        (lambda frame, line: edit(line, f"{frame.scene}/", "garage/"), "'garage' names none of the 27 scene classes"),
        *(
            (lambda _, lines, line=line: lines.write_text(line), r"train_list\.txt, line 1: expected")
            for line in ("a/r.jpg 518.8", "r.jpg d.png 518.8", "../a/r.jpg a/d.png 1", "a/r.jpg a/d.png x")
        ),
    ],
)
def test_bad_frames_and_lists_are_named(copy, specs, damage, complaint):
    root = copy("nyuv2")
    damage(nyuv2.frames(root, "train")[0], root / "train_list.txt")
    with pytest.raises(UserError, match=complaint):
        build_dataset(specs["depth"], root, "train").sample(0)


def test_images_too_small_or_too_large_are_refused(drawn, specs, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"rgb_00001\.jpg is 96x64, too small for data\.crop 80"):
        build_dataset(with_data(specs["depth"], crop=80), drawn / "nyuv2", "train").sample(0)
    Image.new("L", (30, 30)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(vpd.datasets.images, "MAX_PIXELS", 800)
    with pytest.raises(UserError, match=r"bomb\.png has 30x30 pixels, more than 800; make it smaller"):
        read_image(tmp_path / "bomb.png")


def test_a_missing_dataset_says_what_is_needed(tmp_path, specs):
    for path, complaint in (
        (str(tmp_path), "holds none of ADEChallengeData2016"),
        (str(tmp_path / "x"), "x holds none of ADEChallengeData2016"),
        (None, "dataset 'ade20k' has source folder but no path"),
    ):
        with pytest.raises(UserError, match=complaint):
            prepare_dataset("ade20k", DatasetSpec(format="ade20k", source="folder", path=path), tmp_path / "out")
    needs = {"segmentation": "objectInfo150", "depth": "test_list.txt", "referring": "no RefCOCO variant"}
    for task, needed in needs.items():
        with pytest.raises(UserError, match=needed):
            build_dataset(specs[task], tmp_path, "val")


# --------------------------------------------------------------------------------------------------- one rule for images
GREY = np.arange(0, 240, 10, dtype=np.uint8).reshape(4, 6)
COLOURS = np.stack([GREY, GREY + 5, 255 - GREY], -1)


def turned(orientation: int = 6) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def frames_of(*images: Image.Image) -> dict:
    return {"save_all": True, "append_images": list(images)}


PICTURES = {
    "8-bit grey": ("png", Image.fromarray(GREY), {}, GREY),
    "16-bit grey": ("png", Image.fromarray(GREY.astype(np.uint16) * 257), {}, GREY),
    "16-bit grey TIFF": ("tif", Image.fromarray(GREY.astype(np.uint16) * 257), {}, GREY),
    "32-bit grey": ("tif", Image.fromarray(GREY.astype(np.int32) * 257), {}, GREY),
    "floating-point grey": ("tif", Image.fromarray(GREY.astype(np.float32) / 255), {}, GREY),
    "1 bit": ("png", Image.fromarray(GREY > 100), {}, (GREY > 100) * np.uint8(255)),
    "colours": ("png", Image.fromarray(COLOURS), {}, COLOURS),
    "palette": ("png", Image.fromarray(GREY).convert("P"), {}, GREY),
    "alpha": ("png", Image.fromarray(np.dstack([COLOURS, GREY * 0])), {}, GREY * 0 + 255),
    "grey with alpha": ("png", Image.fromarray(np.dstack([GREY, GREY * 0 + 255])), {}, GREY),
    "transparent grey": ("png", Image.fromarray(GREY), {"transparency": 0}, np.where(GREY, GREY, 255)),
    "CMYK": ("tif", Image.fromarray(COLOURS).convert("CMYK"), {}, COLOURS),
    "animated GIF": ("gif", Image.fromarray(GREY), frames_of(Image.fromarray(GREY * 0)), GREY),
    "animated PNG": ("png", Image.fromarray(GREY), frames_of(Image.fromarray(GREY * 0)), GREY),
    "pages of a TIFF": ("tif", Image.fromarray(GREY), frames_of(Image.fromarray(GREY * 0)), GREY),
    "turned": ("png", Image.fromarray(np.rot90(COLOURS).copy()), {"exif": turned()}, COLOURS),
    "turned 16-bit": ("png", Image.fromarray(np.rot90(GREY.astype(np.uint16) * 257).copy()), {"exif": turned()}, GREY),
    "upside down": ("tif", Image.fromarray(np.rot90(GREY, 2).copy()), {"exif": turned(3)}, GREY),
    "mirrored": ("webp", Image.fromarray(COLOURS[:, ::-1].copy()), {"exif": turned(2), "lossless": True}, COLOURS),
}


@pytest.mark.parametrize("kind", PICTURES)
@pytest.mark.parametrize("ending", [str.lower, str.upper])
def test_datasets_read_pictures_as_predict_does(copy, specs, kind, ending):
    """Whatever its colour mode and the capitals of its name; the label is read by the same rule."""
    suffix, picture, options, expected = PICTURES[kind]
    root = copy("ade20k")
    (root / TRAIN_IMAGE).unlink()
    (root / TRAIN_LABEL).unlink()
    path = (root / TRAIN_IMAGE).with_suffix(f".{ending(suffix)}")
    picture.save(path, **options)
    exif = {"exif": options["exif"]} if "exif" in options else {}
    stored = np.array(picture.convert("L")) * 0 if not exif else np.eye(*picture.size[::-1], dtype=np.uint8)
    Image.fromarray(stored).save((root / TRAIN_LABEL).with_suffix(ending(".png")), **exif)
    image_path, label_path = build_dataset(specs["segmentation"], root, "train").pairs[1]
    assert image_path == path
    image, labels = read_image(image_path), read_labels(label_path, 16)
    assert np.array_equal(image, expected if expected.ndim == 3 else np.repeat(expected[..., None], 3, 2))
    assert labels.shape == image.shape[:2]
    assert not exif or np.array_equal(labels, np.array(ImageOps.exif_transpose(Image.open(label_path))))


@pytest.mark.parametrize("exif", [b"Exif\0\0no tags", b"Exif\0\0MM\0*\0\0"])
@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_a_picture_whose_exif_is_damaged_is_read_as_it_is_stored(tmp_path, suffix, exif):
    path, plain = tmp_path / f"damaged.{suffix}", tmp_path / f"plain.{suffix}"
    Image.fromarray(COLOURS).save(plain, lossless=True)
    Image.fromarray(COLOURS).save(path, lossless=True, exif=exif)
    with Image.open(path) as image, pytest.raises((SyntaxError, struct.error)):
        image.getexif()
    assert np.array_equal(read_image(path), read_image(plain))
    with Image.open(path) as image:
        assert np.array_equal(as_array(image, "image 0"), read_image(plain))


def test_a_pillow_image_of_a_truncated_file_is_a_mistake_of_the_user(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "x.png")
    (tmp_path / "x.png").write_bytes((tmp_path / "x.png").read_bytes()[:3000])
    with Image.open(tmp_path / "x.png") as image, pytest.raises(UserError, match="image 0 cannot be read as an image"):
        as_array(image, "image 0")


@pytest.mark.parametrize("kind", ["float16", "float32", "float64", "uint16", "bool"])
def test_grey_arrays_mean_what_their_type_says(kind):
    """A floating-point 1, a 16-bit 65535 and True are white."""
    ends = {"uint16": [0, 257 * 128, 65535], "bool": [0, 1, 1]}.get(kind, [0, 0.5, 1])
    expected = [0, 255, 255] if kind == "bool" else [0, 128, 255]
    assert as_array(np.array([ends], kind), "x")[0].tolist() == [[value] * 3 for value in expected]


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "JPEG2000"])
@pytest.mark.parametrize("reader", [lambda path: read_labels(path, 255), read_depth])
def test_labels_and_depths_in_a_format_that_alters_values_are_refused(tmp_path, kind, reader):
    Image.fromarray(GREY).save(tmp_path / "x.png", format=kind)
    with pytest.raises(UserError, match=f"x.png is a {kind} file, which need not keep every value; save it as PNG"):
        reader(tmp_path / "x.png")


def test_frames_of_equal_names_in_different_folders_are_told_apart(copy, specs):
    """Evaluation keeps latents by these ids."""
    root = copy("nyuv2")
    first, second = (frame.image for frame in nyuv2.frames(root, "test")[:2])
    lines = []
    for house, picture in (("home1", first), ("home2", second)):
        scene = root / nyuv2.FOLDERS["test"] / house / "kitchen_0001"
        scene.mkdir(parents=True)
        shutil.copy(picture, scene / "rgb_1.jpg")
        lines.append(f"/{house}/kitchen_0001/rgb_1.jpg /{house}/kitchen_0001/depth_1.png")
    depth = nyuv2.frames(root, "test")[0].depth
    for house in ("home1", "home2"):
        shutil.copy(depth, root / nyuv2.FOLDERS["test"] / house / "kitchen_0001/depth_1.png")
    (root / "test_list.txt").write_text("\n".join(lines))
    samples = build_dataset(specs["depth"], root, "val")
    assert [samples.sample(number)["id"] for number in range(2)] == [f"home{n}/kitchen_0001/rgb_1.jpg" for n in (1, 2)]


# ---------------------------------------------------------------------------------------------------------- verification
def test_verification_names_missing_extra_and_changed_files(copy):
    root = copy("ade20k")
    label, image = root / TRAIN_LABEL, root / TRAIN_IMAGE
    kept = image.read_bytes(), label.read_bytes()
    image.unlink()
    with pytest.raises(UserError, match=r"ADE_train_00000002\.jpg was removed after manifest\.json"):
        check_unchanged(root)
    image.write_bytes(kept[0])
    Image.fromarray(np.zeros((88, 64), np.uint8)).save(label)
    with pytest.raises(UserError, match=r"ADE_train_00000002\.png was changed .*; run `vpd data ade20k --scale"):
        check_unchanged(root)
    label.write_bytes(kept[1])
    check_unchanged(root)
    shutil.copy(image, image.with_name("extra.jpg"))
    shutil.copy(label, label.with_name("extra.png"))
    with pytest.raises(UserError, match=r"extra\.\w+ was added after"):
        check_unchanged(root)


# ------------------------------------------------------------------------------------------------------- folder datasets
@pytest.mark.parametrize("name", SPECS)
def test_a_folder_dataset_is_checked_and_read_where_it_lies(drawn, tmp_path, name):
    counts = read_json(drawn / name / "manifest.json")["counts"]
    spec = folder_spec(drawn / name, expect=counts)
    out = tmp_path / "data" / name
    prepare_dataset(name, spec, out)
    assert sorted(path.name for path in out.iterdir()) == ["fingerprint.json", "manifest.json", "preview.png"]
    assert located(out).samefile(drawn / name)
    check_unchanged(out)
    assert read_json(out / "manifest.json")["files"] == read_json(drawn / name / "manifest.json")["files"]
    before = (out / "manifest.json").stat().st_mtime_ns
    prepare_dataset(name, spec, out)
    assert (out / "manifest.json").stat().st_mtime_ns == before


def test_a_folder_dataset_that_is_changed_in_place_is_prepared_again(copy, tmp_path):
    root = copy("ade20k")
    out = tmp_path / "data/ade20k"
    prepare_dataset("ade20k", folder_spec(root), out)
    before = dataset_fingerprint("ade20k", folder_spec(root))
    assert dataset_fingerprint("ade20k", folder_spec(root)) == before
    labels = np.array(Image.open(root / TRAIN_LABEL))
    Image.fromarray(labels[::-1].copy()).save(root / TRAIN_LABEL)
    assert dataset_fingerprint("ade20k", folder_spec(root)).differences(asdict(before)) == ["files"]
    prepare_dataset("ade20k", folder_spec(root), out)
    check_unchanged(out)


def test_what_is_added_behind_a_link_is_seen(copy, tmp_path):
    root, spec = copy("ade20k"), folder_spec(tmp_path / "linked/ade20k")
    (tmp_path / "linked/ade20k").mkdir(parents=True)
    (tmp_path / "linked/ade20k/ADEChallengeData2016").symlink_to(root / "ADEChallengeData2016")
    (root / "ADEChallengeData2016/circle").symlink_to(root)
    prepare_dataset("ade20k", spec, tmp_path / "out")
    before = dataset_fingerprint("ade20k", spec)
    for path in (root / TRAIN_IMAGE, root / TRAIN_LABEL):
        shutil.copy(path, path.with_name(f"added{path.suffix}"))
    assert dataset_fingerprint("ade20k", spec).differences(asdict(before)) == ["files"]
    prepare_dataset("ade20k", spec, tmp_path / "out")
    assert read_json(tmp_path / "out/manifest.json")["counts"]["training"] == 7


def blank(folder: Path, pattern: str) -> None:
    for path in folder.rglob(pattern):
        Image.fromarray(np.zeros_like(np.array(Image.open(path)))).save(path)


def drop_validation(root: Path) -> None:
    path = root / "refcoco+/refs(unc).p"
    path.write_bytes(pickle.dumps([ref for ref in refcoco.load_refs(path) if ref["split"] != "val"]))


def hollow(root: Path) -> None:
    path = root / "refcoco/instances.json"
    coco = json.loads(path.read_text())
    for annotation in coco["annotations"]:
        annotation["segmentation"] = [[0, 0, 0, 0, 0, 0]]
    path.write_text(json.dumps(coco))


def rename(root: Path, pattern: str, suffix: str) -> None:
    for path in list(root.rglob(pattern)):
        path.rename(path.with_suffix(suffix))


def truncate_to(path: Path, lines: int) -> None:
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:lines]))


@pytest.mark.parametrize(
    ("name", "damage", "complaint"),
    [
        ("ade20k", lambda root: [path.unlink() for path in root.rglob("ADE_val*")], "has no samples of validation"),
        ("ade20k", lambda root: blank(root, "annotations/validation/*.png"), "no pixel of validation has a label"),
        ("nyuv2", lambda root: blank(root, "test/*/sync_depth*.png"), "no pixel of test has a label or a depth"),
        ("refcoco", drop_validation, r"has no samples of refcoco\+/val"),
        (
            "refcoco",
            lambda root: [path.unlink() for path in root.rglob("instances.json")],
            "instances.json does not exist",
        ),
        ("refcoco", hollow, r"reference \d+ .* has an empty mask"),
        ("ade20k", lambda root: rename(root, "*.jpg", ".txt"), r"\.jpg is missing, but its counterpart exists"),
        (
            "ade20k",
            lambda root: [rename(root, "*.jpg", ".txt"), rename(root, "*.png", ".lab")],
            "no samples of training",
        ),
        (
            "ade20k",
            lambda root: [shutil.copy(p, p.with_suffix(".JPG")) for p in root.rglob("*1.jpg")],
            "only in their endings",
        ),
        ("ade20k", lambda root: truncate_to(root / ade20k.CLASS_FILE, 1), "there are only 0 classes"),
        ("nyuv2", lambda root: (root / "test_list.txt").write_text("\n"), "has no samples of test"),
        ("captions", lambda root: (root / "captions.json").write_text("[]"), "has no samples of train"),
    ],
)
def test_a_dataset_that_cannot_be_scored_is_refused(copy, tmp_path, name, damage, complaint):
    root = copy(name)
    damage(root)
    with pytest.raises(UserError, match=complaint):
        prepare_dataset(name, folder_spec(root), tmp_path / "out")


def test_a_synthetic_dataset_that_cannot_be_scored_is_refused(tmp_path):
    for name, images in (("nyuv2", {"train": 1}), ("ade20k", {"validation": 1}), ("nyuv2", {"train": 0, "test": 2})):
        spec = SPECS[name].model_copy(update={"images": images})
        with pytest.raises(UserError, match="has no samples of"):
            prepare_dataset(name, spec, tmp_path / "out")


def set_depths(root: Path, change) -> None:
    """Change the millimetres of the second test frame."""
    path = nyuv2.frames(root, "test")[1].depth
    values = np.array(Image.open(path)).astype(np.uint16)
    change(values)
    Image.fromarray(values).save(path)


def outside(values: np.ndarray) -> None:
    values[6:40, 6:90] = 0


@pytest.mark.parametrize(
    ("crop", "change"),
    [
        ((6, 40, 6, 90), outside),
        ((6, 40, 6, 90), lambda values: values.fill(0)),
        ((6, 40, 6, 90), lambda values: values.fill(20_000)),
        ((6, 40, 6, 90), lambda values: values.fill(11)),
        ((70, 90, 6, 90), lambda values: None),
        ((0, 64, 200, 300), lambda values: None),
    ],
)
def test_every_depth_must_be_scorable_in_the_crop(copy, specs, tmp_path, crop, change):
    """As evaluation does it hours later; the first frame is sound, so the split has depths."""
    root, spec = copy("nyuv2"), specs["depth"]
    ranges = {"crop": crop, "min_depth": 0.5, "max_depth": 10.0}
    spec = spec.model_copy(update={"evaluation": spec.evaluation.model_copy(update=ranges)})
    whole = spec.model_copy(update={"evaluation": spec.evaluation.model_copy(update={"crop": (0, 64, 0, 96)})})
    prepare_dataset("nyuv2", folder_spec(root), tmp_path / "sound", experiments=[whole, whole])
    set_depths(root, change)
    with pytest.raises(UserError, match=r"\.png has no depth between 0\.5 and 10\.0 m in evaluation\.crop"):
        prepare_dataset("nyuv2", folder_spec(root), tmp_path / "out", experiments=[spec])
    assert not (tmp_path / "out").exists()
