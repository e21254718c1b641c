"""Archives in the published formats become trees that the readers read, value for value; bad ones end in one sentence."""

import os
import pickle
import shutil
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from real_archives import (
    Attack,
    ade_files,
    coco_files,
    labeled_mat,
    refcoco_files,
    references,
    smooth,
    splits_mat,
    sync_files,
    write_zip,
)
from vpd.config.schema import DatasetSpec
from vpd.datasets import build_dataset, nyuv2, refcoco
from vpd.datasets.manifest import check_unchanged
from vpd.download import _preparation
from vpd.download.archives import RECEIPTS
from vpd.stages.data import prepare_dataset
from vpd.utils.errors import UserError

SCENES = ["kitchen", "office_kitchen", "excercise_room", "living_room", "kitchen"]
TEST_FRAMES = [5, 2, 1]
"""Numbers from 1, as in splits.mat."""
SYNC = {"kitchen_0028b": [45, 46], "nyu_office_0": [0], "study_room_0005b": [7]}
LABELS = {
    "training/ADE_train_00000001": np.arange(64 * 88, dtype=np.uint32).reshape(64, 88) % 5,
    "training/ADE_train_00000002": np.full((88, 64), 3),
    "validation/ADE_val_00000001": np.tri(64, 88) * 4,
}
LABELS = {name: values.astype(np.uint8) for name, values in LABELS.items()}
SPLITS = {581857: "train", 581858: "train", 9: "val", 10: "testA", 11: "testB"}


def frames_of_mat() -> tuple[np.ndarray, np.ndarray]:
    """(N, 480, 640, 3) images with a white border; (N, 480, 640) metres, unmeasured above and out of range below."""
    images = np.stack([smooth(number, 480, 640) for number in range(len(SCENES))])
    images[:, :7], images[:, 474:], images[:, :, :7], images[:, :, 632:] = 255, 255, 255, 255
    rows, columns = np.mgrid[:480, :640]
    depths = np.stack([0.7131 + rows * 0.0137 + columns * 0.0031 + number / 10 for number in range(len(SCENES))])
    depths[:, :20], depths[:, 470:] = 0, 11
    return images, depths.astype(np.float32)


@pytest.fixture(scope="module")
def mat(tmp_path_factory) -> Path:
    return labeled_mat(tmp_path_factory.mktemp("mat") / "nyu_depth_v2_labeled.mat", *frames_of_mat(), SCENES)


def make(kind: str, out: Path, **files: Path) -> None:
    _preparation(kind, files, "test").run(files, out)


def make_nyuv2(mat: Path, tmp_path: Path, out: Path) -> None:
    splits = splits_mat(tmp_path / "splits.mat", TEST_FRAMES, [3, 4])
    make("nyuv2-labeled", out, labeled=mat, splits=splits)
    make_sync(tmp_path, out, sync_files(SYNC))


def make_sync(tmp_path: Path, out: Path, files: dict[str, bytes], frames: dict[str, list[int]] = SYNC) -> None:
    """Make the training set of the listed ``frames``; VPD's own lists have no newline at their end."""
    lines = [f"/{scene}/rgb_{n:05d}.jpg /{scene}/sync_depth_{n:05d}.png" for scene, ns in frames.items() for n in ns]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    make("nyuv2-sync", out, archive=write_zip(tmp_path / "sync.zip", files), list=tmp_path / "list.txt")


def prepared(layout: str, tree: Path, tmp_path: Path, **expect: int) -> Path:
    """The dataset as experiments see it, checked image by image."""
    spec = DatasetSpec(format=layout, source="folder", path=str(tree), expect=expect)
    out = tmp_path / "data" / layout
    prepare_dataset(layout, spec, out)
    check_unchanged(out)
    return out


def everything_in(root: Path) -> dict[str, bytes]:
    files = {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    return {name: content for name, content in files.items() if not name.startswith(f"{RECEIPTS}/")}


def tops_of(root: Path) -> list[str]:
    """Names in a tree, without the receipts."""
    return sorted(path.name for path in root.iterdir() if path.name != RECEIPTS)


# ---------------------------------------------------------------------------------------------------------------- NYUv2
def test_labelled_frames_are_those_of_the_released_extraction(mat, tmp_path):
    make_nyuv2(mat, tmp_path, tmp_path / "nyuv2")
    images, depths = frames_of_mat()
    for number in TEST_FRAMES:
        index = number - 1
        folder = tmp_path / "nyuv2/official_splits/test" / SCENES[index]
        # The released script: BGR with a black border by OpenCV's own defaults, millimetres cut to 16 bits.
        bordered = np.zeros((480, 640, 3), np.uint8)
        bordered[7:474, 7:632] = images[index][7:474, 7:632, ::-1]
        cv2.imwrite(str(tmp_path / "expected.jpg"), bordered)
        assert (folder / f"rgb_{index:05d}.jpg").read_bytes() == (tmp_path / "expected.jpg").read_bytes()
        millimetres = cv2.imread(str(folder / f"sync_depth_{index:05d}.png"), cv2.IMREAD_UNCHANGED)
        assert millimetres.dtype == np.uint16
        assert (millimetres == (depths[index] * 1000.0).astype(np.uint16)).all()
    written = sorted(path.name for path in (tmp_path / "nyuv2/official_splits").rglob("*.jpg"))
    assert written == ["rgb_00000.jpg", "rgb_00001.jpg", "rgb_00004.jpg"]


def test_nyuv2_samples_are_the_arrays_put_in(mat, specs, tmp_path):
    make_nyuv2(mat, tmp_path, tmp_path / "nyuv2")
    root = prepared("nyuv2", tmp_path / "nyuv2", tmp_path, train=4, test=3)
    images, depths = frames_of_mat()
    dataset = build_dataset(specs["depth"], root, "val")
    ids = ["kitchen/rgb_00000.jpg", "kitchen/rgb_00004.jpg", "office_kitchen/rgb_00001.jpg"]
    assert [dataset.sample(number)["id"] for number in range(3)] == ids
    for number, index in enumerate((0, 4, 1)):
        sample = dataset.sample(number)
        assert sample["image"].shape == (3, 480, 640)
        pixels = (sample["image"].permute(1, 2, 0).numpy() + 1) * 127.5
        assert np.abs(pixels[10:470, 10:628] - images[index][10:470, 10:628]).mean() < 1.0
        assert pixels[:5].max() < 20  # black, but for what JPEG makes of the edge
        assert pixels[:, 635:].max() < 20
        error = np.where(depths[index] < 10, depths[index], 0) - sample["depth"].numpy()
        assert -1e-6 < error.min() <= error.max() < 0.001001  # cut, not rounded, to millimetres
        assert dataset.classes[sample["class_id"]] == "kitchen"  # D4: office_kitchen, too

    train = build_dataset(specs["depth"], root, "train")
    for index, (name, metres) in enumerate([("kitchen", 1.045), ("kitchen", 1.046), ("office", 2.0), ("study", 3.007)]):
        sample = train.sample(index)
        assert train.classes[sample["class_id"]] == name
        assert torch.isclose(sample["depth"][sample["depth"] > 0], torch.tensor(metres)).all()
    Image.fromarray(np.full((48, 64), 9, np.uint16)).save(tmp_path / "nyuv2/sync/nyu_office_0/sync_depth_00000.png")
    with pytest.raises(
        UserError, match=r"sync_depth_00000\.png looks like metres: its largest value is 9; write milli"
    ):
        prepared("nyuv2", tmp_path / "nyuv2", tmp_path / "again")


@pytest.mark.parametrize("top", ["sync", "nyu_depth_v2/sync", "nyu_depth_v2/train", ""])
def test_training_frames_are_found_under_any_folder(top, tmp_path):
    files = sync_files(SYNC, top=top) | sync_files({"kitchen": [3]}, top="nyu_depth_v2/official_splits/test")
    make_sync(tmp_path, tmp_path / "out", files)
    assert tops_of(tmp_path / "out") == ["sync", "train_list.txt"]
    assert sorted(path.name for path in (tmp_path / "out/sync").iterdir()) == sorted(SYNC)
    assert len(nyuv2.frames(tmp_path / "out", "train")) == 4


def test_the_released_list_chooses_among_more_frames_and_keeps_its_order(tmp_path):
    make_sync(tmp_path, tmp_path / "out", sync_files(SYNC), {"study_room_0005b": [7], "kitchen_0028b": [46]})
    assert (tmp_path / "out/train_list.txt").read_bytes() == (tmp_path / "list.txt").read_bytes()
    listed = nyuv2.frames(tmp_path / "out", "train")
    assert [(frame.scene, frame.focal) for frame in listed] == [("study_room_0005b", None), ("kitchen_0028b", None)]
    present = set((tmp_path / "out/sync").rglob("*.*"))
    assert present == {path for frame in listed for path in (frame.image, frame.depth)}


def test_a_failure_leaves_the_old_tree_alone_and_a_list_replaces_its_own_frames(mat, tmp_path):
    out = tmp_path / "nyuv2"
    make_nyuv2(mat, tmp_path, out)
    before = everything_in(out)
    with pytest.raises(UserError):
        make("nyuv2-labeled", out, labeled=mat, splits=splits_mat(tmp_path / "bad.mat", [1, 99]))
    for missing in ("sync/nyu_office_0/rgb_00000.jpg", "sync/kitchen_0028b/sync_depth_00046.png"):
        broken = sync_files(SYNC)
        del broken[missing]
        with pytest.raises(UserError, match=rf"sync\.zip lacks {missing}, which .*list\.txt lists"):
            make_sync(tmp_path, out, broken)
    assert everything_in(out) == before
    assert not [name for name in tops_of(out) if name.startswith(".")]
    (out / "notes.txt").write_text("mine")
    make_sync(tmp_path, out, sync_files({"cafe_0001a": [1]}), {"cafe_0001a": [1]})
    after = everything_in(out)
    frame = {f"sync/cafe_0001a/{kind}" for kind in ("rgb_00001.jpg", "sync_depth_00001.png")}
    assert {name for name in after if name.startswith("sync/")} == frame
    others = {name for name in before if not name.startswith(("sync/", "train_list"))} | {"notes.txt"}
    assert others == {name for name in after if not name.startswith(("sync/", "train_list"))}
    assert all(after[name] == before.get(name, b"mine") for name in others)


class Killed(BaseException):
    """Stands for kill -9."""


@pytest.mark.parametrize("renames", range(4))
def test_a_kill_between_the_renames_never_leaves_a_list_without_its_frames(renames, mat, tmp_path, monkeypatch):
    out, splits = tmp_path / "nyuv2", splits_mat(tmp_path / "splits.mat", TEST_FRAMES)
    make("nyuv2-labeled", out, labeled=mat, splits=splits)
    expected = everything_in(out)
    replace, done = os.replace, []

    def limited(source, target):
        if any(".nyuv2-labeled.new" in Path(path).parent.parts for path in (source, target)):
            if len(done) == renames:
                raise Killed
            done.append(target)
        replace(source, target)

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(os, "replace", limited)
        make("nyuv2-labeled", out, labeled=mat, splits=splits_mat(tmp_path / "other.mat", [3]))
    if (out / "test_list.txt").exists():
        assert all(frame.image.is_file() and frame.depth.is_file() for frame in nyuv2.frames(out, "test"))
    make("nyuv2-labeled", out, labeled=mat, splits=splits)
    assert everything_in(out) == expected


# --------------------------------------------------------------------------------------------------------- NYUv2, broken
@pytest.mark.parametrize(
    ("scene", "without", "complaint"),
    [
        ("kitchen", "images", r"cannot be read \(.*images.*\); fetch it again"),
        ("kitchen", "sceneTypes", r"cannot be read \(.*sceneTypes.*\); fetch it again"),
        ("../../../kitchen", "depths", r"names the type of scene '\.\./\.\./\.\./kitchen' in frame 1; fetch"),
    ],
)
def test_a_labelled_file_without_a_variable_or_with_a_hostile_scene_is_named(scene, without, complaint, tmp_path):
    path, splits = tmp_path / "labeled.mat", splits_mat(tmp_path / "splits.mat", [1])
    labeled_mat(path, np.zeros((1, 480, 640, 3), np.uint8), np.ones((1, 480, 640), np.float32), [scene])
    with h5py.File(path, "r+") as file:
        del file[without]
    with pytest.raises(UserError, match=rf"labeled\.mat {complaint}"):
        make("nyuv2-labeled", tmp_path / "out", labeled=path, splits=splits)
    assert not list((tmp_path / "out").glob("*"))


def test_matlab_files_of_another_kind_or_cut_short_are_named(mat, tmp_path):
    splits, cut, page = splits_mat(tmp_path / "splits.mat", [1]), tmp_path / "cut.mat", tmp_path / "page.mat"
    cut.write_bytes(mat.read_bytes()[: mat.stat().st_size // 2])
    page.write_bytes(b"<html>not found</html>" * 20)
    for labeled, listed, wrong in ((splits, splits, "splits"), (cut, splits, "cut"), (mat, page, "page")):
        with pytest.raises(UserError, match=rf"{wrong}\.mat cannot be read \("):
            make("nyuv2-labeled", tmp_path / "out", labeled=labeled, splits=listed)


def test_a_list_that_does_not_fit_is_named(tmp_path):
    with pytest.raises(
        UserError, match=r"sync\.zip lacks sync/cafe_0001a/rgb_00000\.jpg and 1 more, which .*list\.txt"
    ):
        make_sync(tmp_path, tmp_path / "out", sync_files(SYNC), {"cafe_0001a": [0]})
    page = tmp_path / "page.txt"
    page.write_text("<html>not found</html>\n")
    with pytest.raises(UserError, match=r"page\.txt: train_list\.txt, line 1: expected"):
        make("nyuv2-sync", tmp_path / "out", archive=tmp_path / "sync.zip", list=page)


# --------------------------------------------------------------------------------------------------------------- ADE20K
def test_ade20k_samples_are_the_arrays_put_in(specs, tmp_path):
    out = tmp_path / "ade20k"
    make("ade20k", out, archive=write_zip(tmp_path / "a.zip", {f"copy/{k}": v for k, v in ade_files(LABELS).items()}))
    assert not [name for name in everything_in(out) if "MACOSX" in name or "DS_Store" in name or "Categories" in name]
    root = prepared("ade20k", out, tmp_path, training=2, validation=1)
    train, val = (build_dataset(specs["segmentation"], root, split) for split in ("train", "val"))
    assert train.classes == ["wall", "building", "bed", "windowpane"]
    assert train.synonyms[3] == ("windowpane", "window")
    sample = val.sample(0)
    labels = LABELS["validation/ADE_val_00000001"].astype(int)
    assert (sample["label"].numpy() == np.where(labels == 0, 255, labels - 1)).all()
    assert np.abs(sample["image"].permute(1, 2, 0).numpy().astype(int) - smooth(2, 64, 88)).mean() < 2
    assert set(train.sample(1)["label"].unique().tolist()) <= {2, 255}


@pytest.mark.parametrize(
    ("lacking", "complaint"),
    [
        ("annotations/training/ADE_train_00000002.png", r"zip: ADEChallengeData2016/annotations/.*2\.png is missing"),
        ("images/validation/ADE_val_00000001.jpg", r"zip: ADEChallengeData2016/images/validation does not exist"),
        ("objectInfo150.txt", r"zip: ADEChallengeData2016/objectInfo150\.txt does not exist"),
    ],
)
def test_an_incomplete_ade20k_names_archive_and_file(lacking, complaint, tmp_path):
    files = ade_files(LABELS)
    del files[f"ADEChallengeData2016/{lacking}"]
    with pytest.raises(UserError, match=complaint):
        make("ade20k", tmp_path / "out", archive=write_zip(tmp_path / "ADEChallengeData2016.zip", files))
    assert not list((tmp_path / "out").glob("*"))


# -------------------------------------------------------------------------------------------------------------- RefCOCO
def make_refcoco(tmp_path: Path, out: Path, images: list[int] | None = None) -> None:
    by_umd = {number: split.replace("testA", "test").replace("testB", "test") for number, split in SPLITS.items()}
    coco = coco_files(list(SPLITS) if images is None else images)
    for kind, name, files in (
        ("refcoco", "refcoco", refcoco_files("refcoco", SPLITS)),
        ("refcoco", "refcocog", refcoco_files("refcocog", by_umd, ("umd", "google"))),
        ("coco", "train2014", coco | {"val2014/COCO_val2014_000000000042.jpg": b"x", "train2014/readme.txt": b"y"}),
    ):
        make(kind, out, archive=write_zip(tmp_path / f"{name}.zip", files))


def test_refcoco_samples_are_the_arrays_put_in(specs, tmp_path):
    make_refcoco(tmp_path, tmp_path / "refcoco")
    expect = {"refcoco/val": 4, "refcoco/testA": 4, "refcocog/val": 4, "refcocog/test": 8, "refcoco/train/objects": 4}
    root = prepared("refcoco", tmp_path / "refcoco", tmp_path, **expect)
    dataset = build_dataset(specs["referring"], root, "val")
    polygon, crowd = dataset.native_label(0).numpy(), dataset.native_label(2).numpy()
    expected = np.zeros((60, 80), int)
    expected[20:40, 10:30] = 1
    assert (polygon == expected).all()
    expected = np.zeros((60, 80), int)
    expected[:, 10:12] = 1
    assert (crowd == expected).all()
    assert [dataset.sample(number)["text"] for number in (0, 1)] == ["thing 9, the left", "thing 9, the right"]
    assert dataset.sample(0)["id"] == "18-36"
    assert dataset.sample(0)["image_id"] == "9"
    names = {
        name for name in everything_in(tmp_path / "refcoco") if not name.startswith(f"{refcoco.IMAGES}/COCO_train")
    }
    variants = {"refcoco": "unc", "refcocog": "umd"}.items()
    assert names == {f"{v}/{file}" for v, author in variants for file in ("instances.json", f"refs({author}).p")}


def test_references_with_code_in_them_are_refused_before_they_reach_the_tree(tmp_path):
    files = refcoco_files("refcoco", SPLITS)
    files["refcoco/refs(unc).p"] = pickle.dumps([Attack(tmp_path / "trap")])
    with pytest.raises(UserError, match=r"refcoco\.zip: refcoco/refs\(unc\)\.p was refused: it wants to load pathlib"):
        make("refcoco", tmp_path / "out", archive=write_zip(tmp_path / "refcoco.zip", files))
    assert not (tmp_path / "trap").exists()
    assert not list((tmp_path / "out").glob("*"))
    pickle.loads(files["refcoco/refs(unc).p"])
    assert (tmp_path / "trap").exists()


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("refs(unc).p", b"", r"refcoco\.zip: refcoco/refs\(unc\)\.p does not hold references"),
        ("refs(unc).p", None, r"hold refcoco/instances\.json and one of refs\(unc\)\.p, .*; found refcoco/instances"),
        ("instances.json", None, r"should hold refcoco/instances\.json and .*; found refcoco/refs\(google\)\.p"),
        ("instances.json", b"{", r"refcoco/instances\.json is not valid JSON"),
        (
            "instances.json",
            b"[]",
            r"refcoco/instances\.json: input should be a valid dictionary, found \[\]; fetch it again",
        ),
        ("refs(unc).p", pickle.dumps(references({77: "val"})), "lacks id 77, which reference 154 needs"),
    ],
)
def test_damaged_references_end_in_one_sentence(name, content, complaint, tmp_path):
    files = refcoco_files("refcoco", SPLITS)
    del files[f"refcoco/{name}"]
    if content is not None:
        files[f"refcoco/{name}"] = content
    with pytest.raises(UserError, match=complaint):
        make("refcoco", tmp_path / "out", archive=write_zip(tmp_path / "refcoco.zip", files))


def test_an_image_that_is_referred_to_but_missing_is_named(tmp_path):
    make_refcoco(tmp_path, tmp_path / "refcoco", images=[number for number in SPLITS if number != 10])
    with pytest.raises(
        UserError, match=r"000000000010\.jpg does not exist, but reference 20 is in it; fetch all of COCO"
    ):
        prepared("refcoco", tmp_path / "refcoco", tmp_path)


# ------------------------------------------------------------------------------------------------------- every archive
WANTED = {
    "ade20k": "ADEChallengeData2016/images and ADEChallengeData2016/annotations",
    "nyuv2-sync": r"<scene>/rgb_\*\.jpg and sync_depth_\*\.png",
    "refcoco": r"refcoco/instances\.json or another of refcoco, refcoco\+, refcocog",
    "coco": r"train2014/COCO_train2014_\*\.jpg",
}


@pytest.mark.parametrize("kind", WANTED)
def test_an_archive_of_something_else_says_what_it_holds_and_a_cut_one_is_named(kind, tmp_path):
    (tmp_path / "list.txt").write_text("/cafe_0001a/rgb_00000.jpg /cafe_0001a/sync_depth_00000.png")
    more = {"list": tmp_path / "list.txt"} if kind == "nyuv2-sync" else {}
    archive = write_zip(tmp_path / "photos.zip", {"holiday/rome/1.jpg": b"x", "holiday/oslo/2.jpg": b"y"})
    with pytest.raises(UserError, match=rf"photos\.zip holds no {WANTED[kind]}; found holiday/oslo, holiday/rome; get"):
        make(kind, tmp_path / "out", archive=archive, **more)
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
    with pytest.raises(UserError, match=r"photos\.zip is truncated"):
        make(kind, tmp_path / "out", archive=archive, **more)
    assert not list((tmp_path / "out").glob("*"))


def test_preparing_again_gives_the_same_tree(tmp_path):
    out = tmp_path / "refcoco"
    make_refcoco(tmp_path, out)
    before = everything_in(out)
    shutil.rmtree(out / "refcoco")
    (out / ".coco.new/left").mkdir(parents=True)  # by a run that was killed
    make_refcoco(tmp_path, out)
    assert everything_in(out) == before
    assert tops_of(out) == ["images", "refcoco", "refcocog"]
