"""The objects dataset: the very images of captions, annotated with what the scenes hold."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vpd.config.schema import DatasetSpec
from vpd.datasets import objects
from vpd.datasets.manifest import check_unchanged
from vpd.stages.data import prepare_dataset
from vpd.utils.errors import UserError
from vpd.utils.files import read_json
from vpd.world.classes import CLASSES
from vpd.world.scene import draw_scene
from vpd.world.seeds import list_jobs

COUNT, SIZE = 12, (48, 40)
NAMES = [names.split(",")[0] for names, _ in CLASSES]


def drawn(format: str, **changes) -> DatasetSpec:
    values = {"format": format, "source": "synthetic", "seed": 3, "images": {"train": COUNT}, "size": SIZE} | changes
    return DatasetSpec.model_validate(values)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world")
    for layout in ("captions", "objects"):
        prepare_dataset(layout, drawn(layout), root / layout)
    return root


@pytest.fixture
def copied(world: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(world / "objects", tmp_path / "objects"))


def test_images_are_those_of_the_captions_byte_for_byte(world):
    names = sorted(path.name for path in (world / "captions/images").iterdir())
    assert names == sorted(path.name for path in (world / "objects/images").iterdir())
    assert len(names) == COUNT
    for name in names:
        assert (world / "objects/images" / name).read_bytes() == (world / "captions/images" / name).read_bytes()


def test_masks_and_classes_are_those_of_the_scenes(world):
    root = world / "objects"
    shown = 0
    for job, entry in zip(list_jobs(drawn("objects"), root), objects.entries(root), strict=True):
        scene = draw_scene(job.seed, *SIZE)
        mask = np.array(Image.open(root / entry["mask"]))
        assert mask.dtype == np.uint8
        labels = scene.picture.labels
        assert entry["classes"] == [NAMES[label - 1] for label in sorted(set(labels[labels > 0].tolist()))]
        assert [one["class"] for one in entry["instances"]] == [instance.name for instance in scene.instances]
        for one, instance in zip(entry["instances"], scene.instances, strict=True):
            np.testing.assert_array_equal(mask == one["id"], scene.picture.instances == instance.index)
            assert set(labels[mask == one["id"]].tolist()) == {NAMES.index(one["class"]) + 1}
        stuff = [label for label, (_, is_stuff) in enumerate(CLASSES, start=1) if is_stuff]
        assert not mask[np.isin(labels, stuff)].any()
        shown += len(scene.instances)
    assert shown > COUNT


def test_manifest_counts_and_a_contact_sheet_are_written(world):
    root = world / "objects"
    manifest = read_json(root / "manifest.json")
    instances = sum(len(entry["instances"]) for entry in objects.entries(root))
    assert manifest["counts"] == {"train": COUNT, "instances": instances}
    assert len(manifest["files"]) == 2 * COUNT + 1
    check_unchanged(root)
    colours = {tuple(pixel) for pixel in np.array(Image.open(root / "preview.png").convert("RGB")).reshape(-1, 3)}
    assert len(colours) > 100


def change(root: Path, alter) -> None:
    entries = json.loads((root / "objects.json").read_text())
    alter(entries)
    (root / "objects.json").write_text(json.dumps(entries))


ALTERATIONS = {
    "instance missing": (lambda entries: entries[0]["instances"].pop(), r"000000\.png shows the instances"),
    "instance extra": (
        lambda entries: entries[0]["instances"].append({"id": 77, "class": "ball"}),
        r"000000\.png shows the instances .* but objects\.json lists",
    ),
    "class missing": (lambda entries: entries[0].update(classes=["wall"]), r"instance 1 .* which classes lacks"),
    "key missing": (lambda entries: entries[0].pop("mask"), r"objects\.json must be a list of objects with the keys"),
    "instances no list": (lambda entries: entries[0].update(instances=3), r"objects\.json must be a list"),
    "mask absent": (lambda entries: entries[0].update(mask="masks/none.png"), r"none\.png does not exist"),
}


@pytest.mark.parametrize("name", ALTERATIONS)
def test_unsound_annotations_are_named(copied, name):
    alter, message = ALTERATIONS[name]
    change(copied, alter)
    spec = drawn("objects", source="folder", path=str(copied))
    with pytest.raises(UserError, match=message):
        prepare_dataset("objects", spec, copied.parent / "out")


def test_a_mask_of_another_size_is_named(copied):
    Image.new("L", (8, 8)).save(copied / "masks/000000.png")
    with pytest.raises(UserError, match=r"000000\.png and 000000\.jpg differ in size \(8x8 and 48x40\)"):
        prepare_dataset("objects", drawn("objects", source="folder", path=str(copied)), copied.parent / "out")
