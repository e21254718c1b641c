"""The synthetic scenes: same bytes everywhere, honest geometry, and words that mean exactly one thing."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from vpd.config.schema import DatasetSpec
from vpd.datasets import ade20k, nyuv2, objects, refcoco
from vpd.datasets.images import read_depth, read_image, read_labels
from vpd.datasets.manifest import check_unchanged
from vpd.stages.data import prepare_dataset
from vpd.utils.errors import UserError
from vpd.utils.files import read_json
from vpd.world.classes import CLASSES, COLOURS, LABELS, THINGS
from vpd.world.language import captions as say
from vpd.world.language import referable
from vpd.world.refcoco import polygons
from vpd.world.render import FOCAL, render
from vpd.world.rooms import KINDS
from vpd.world.scene import Scene, draw_scene
from vpd.world.seeds import UNSEEN, Rng, list_jobs, scene_seed, unseen_seed

SIZE = (80, 64)
DRAW = {
    "captions": {"train": 6},
    "objects": {"train": 6},
    "ade20k": {"training": 6, "validation": 3},
    "nyuv2": {"train": 7, "test": 3},
    "refcoco": {"train": 30, "val": 6, "testA": 4, "testB": 4},
}
# Of the generator; recorded numbers hold only for these.
PINNED_SCENES = "1635f09c7cc553fb"
PINNED_TEXTS = "6bfd8c6f5af21bf1"


def drawn(format: str, seed: int = 0, **changes) -> DatasetSpec:
    return DatasetSpec(format=format, source="synthetic", seed=seed, images=DRAW[format], size=SIZE, **changes)


@functools.cache
def shown(seed: int) -> Scene:
    return draw_scene(seed, *SIZE)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("world")
    for layout in DRAW:
        prepare_dataset(layout, drawn(layout), root / layout)
    return root


@pytest.fixture(scope="module")
def scenes() -> list:
    return [shown(seed) for seed in range(40)]


# ------------------------------------------------------------------------------------------------------------ same bytes
def test_scenes_equal_the_pinned_ones(scenes):
    digest = hashlib.sha256()
    for scene in scenes[:12]:
        picture = scene.picture
        for array in (picture.image, picture.labels, picture.instances, picture.depth):
            digest.update(array.tobytes())
    assert digest.hexdigest()[:16] == PINNED_SCENES


def test_scenes_do_not_depend_on_the_processor(scenes):
    code = "import hashlib\nfrom vpd.world.scene import draw_scene\nd = hashlib.sha256()\n"
    code += f"for seed in range(12):\n p = draw_scene(seed, *{SIZE}).picture\n"
    code += " for a in (p.image, p.labels, p.instances, p.depth): d.update(a.tobytes())\nprint(d.hexdigest()[:16])"
    vector_units = np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])
    plain = {**os.environ, "NPY_DISABLE_CPU_FEATURES": " ".join(vector_units)}
    output = subprocess.run([sys.executable, "-c", code], env=plain, check=True, capture_output=True, text=True).stdout
    assert output.strip() == PINNED_SCENES


def test_texts_equal_the_pinned_ones(world):
    texts = [(world / "captions/captions.json").read_text()]
    texts += [(world / "nyuv2/train_list.txt").read_text(), (world / "ade20k" / ade20k.CLASS_FILE).read_text()]
    texts += [json.dumps(refcoco.load_refs(refcoco.refs_path(world / "refcoco", name))) for name in refcoco.VARIANTS]
    assert hashlib.sha256("".join(texts).encode()).hexdigest()[:16] == PINNED_TEXTS


def test_no_two_images_of_any_datasets_share_a_scene_seed():
    seeds = []
    for layout, seed in itertools.product(DRAW.keys() - {"objects"}, (0, 1, 2)):
        draw = dict.fromkeys(DRAW[layout], 3000)
        spec = DatasetSpec(format=layout, source="synthetic", seed=seed, images=draw, size=SIZE)
        seeds += [job.seed for job in list_jobs(spec, Path())]
    assert len(seeds) == 3 * 9 * 3000 == len(set(seeds))
    unseen = [unseen_seed(seed, part, index) for seed in (0, 1, 2) for part in UNSEEN for index in range(3000)]
    assert len(unseen) == 3 * 3 * 3000 == len({*unseen} - {*seeds})


# -------------------------------------------------------------------------------------------------------------- geometry
def test_taking_a_thing_away_uncovers_only_what_is_behind_it(scenes):
    for scene in scenes[:10]:
        full = scene.picture
        for index in range(len(scene.things)):
            others = scene.things[:index] + scene.things[index + 1 :]
            rest = render(scene.room, others, *SIZE, Rng(scene.seed, 1))
            covered = full.instances == index
            # Pixels on an outline may change hands, since four rays vote.
            assert (rest.depth[covered] > full.depth[covered] - 0.05).mean() > 0.99
            outside = ~covered & (full.instances >= 0)
            same = rest.instances[outside] == full.instances[outside] - (full.instances[outside] > index)
            assert same.mean() > 0.97


def test_depth_puts_floor_pixels_on_the_floor(scenes):
    for scene in scenes:
        floor = np.isin(scene.picture.labels, (LABELS["floor"], LABELS["rug"]))
        rows, (cosine, sine) = np.nonzero(floor)[0], scene.room.camera.pitch
        for offset in (-0.26, 0.26):  # a pixel's depth is that of a ray a quarter pixel from its centre
            up = (SIZE[1] / 2 - (rows + 0.5 + offset)) / (FOCAL * max(SIZE))
            height = scene.room.camera.place[1] + scene.picture.depth[floor] * (up * cosine - sine)
            assert (height * offset <= 0).all()


def test_a_scene_has_learnable_contents(scenes):
    assert 3 <= np.median([len(scene.instances) for scene in scenes]) <= 6
    shown = np.unique(np.concatenate([np.unique(scene.picture.labels) for scene in scenes]))
    assert shown.tolist() == list(range(len(CLASSES) + 1))
    assert {scene.room.kind for scene in scenes} == set(KINDS)
    assert set(KINDS) <= set(nyuv2.SCENES)


# -------------------------------------------------------------------------------------------------------------- polygons
def test_polygons_rasterise_to_the_mask_with_holes_and_parts():
    rng = np.random.default_rng(0)
    masks = [rng.random((17, 23)) < share for share in (0.05, 0.3, 0.6, 0.95) for _ in range(10)]
    ring = np.zeros((17, 23), bool)
    ring[3:12, 4:15], ring[5:9, 6:11] = True, False
    for mask in [*masks, ring, np.ones((17, 23), bool)]:
        codes = coco_mask.merge(coco_mask.frPyObjects(polygons(mask), 17, 23))
        assert (coco_mask.decode(codes) == mask).all()


# ----------------------------------------------------------------------------------------------------------- on disk
def test_ade20k_files_show_the_scenes_and_alternate_in_shape(world):
    root = world / "ade20k"
    spec = drawn("ade20k")
    sizes = []
    for index, (image_path, label_path) in enumerate(ade20k.pairs(root, "training")):
        image, labels = read_image(image_path), read_labels(label_path, len(CLASSES))
        sizes.append(image.shape[:2])
        picture = draw_scene(scene_seed(spec, "training", index), labels.shape[1], labels.shape[0]).picture
        assert (labels == picture.labels).all()
        assert np.abs(image.astype(int) - picture.image).mean() < 4.0
    assert sizes == [(64, 80), (80, 64)] * 3
    assert image_path.name == "ADE_train_00000006.jpg"


def test_nyu_lists_lead_to_millimetres(world):
    root, spec = world / "nyuv2", drawn("nyuv2")
    train = nyuv2.frames(root, "train")
    line = (root / "train_list.txt").read_text().splitlines()[6]
    assert re.fullmatch(r"/(\w+_0002)/rgb_00002\.jpg /\1/sync_depth_00002\.png 64\.0000", line)
    assert not (root / "test_list.txt").read_text().startswith("/")
    assert [frame.scene for frame in train[:5]] == [train[0].scene] * 5
    for split, share in (("train", 0.85), ("test", 1.0)):
        for index, frame in enumerate(nyuv2.frames(root, split)):
            kind = frame.scene.rsplit("_", 1)[0] if split == "train" else frame.scene
            true = draw_scene(scene_seed(spec, split, index), *SIZE, kind=kind).picture.depth
            depth = read_depth(frame.depth)
            valid = depth > 0
            assert share <= valid.mean() <= (0.999 if split == "train" else 1.0)
            assert np.abs(depth - true)[valid].max() <= 0.000501


REF_KEYS = "ref_id ann_id category_id image_id file_name split sentences sent_ids"


def test_references_have_the_real_keys_and_point_at_their_pixels(world):
    root, spec = world / "refcoco", drawn("refcoco")
    jobs = list_jobs(spec, root)
    for variant in refcoco.VARIANTS:
        for ref in refcoco.load_refs(refcoco.refs_path(root, variant)):
            assert list(ref) == REF_KEYS.split()
            assert [list(one) for one in ref["sentences"]] == [["tokens", "raw", "sent_id", "sent"]] * len(
                ref["sent_ids"]
            )
        for reference in refcoco.references(root, variant):
            scene = shown(jobs[reference.image_id - 1].seed)
            masks = [scene.mask(instance) for instance in scene.instances]
            assert sum((refcoco.object_mask(reference) == mask).all() for mask in masks) == 1


# -------------------------------------------------------------------------------------------------------------- objects
def test_objects_annotate_the_captioned_images(world):
    root, names = world / "objects", [names.split(",")[0] for names, _ in CLASSES]
    captioned, annotated = (read_json(world / name / "manifest.json")["files"] for name in ("captions", "objects"))
    entries, shown = objects.entries(root), 0
    for job, entry in zip(list_jobs(drawn("objects"), root), entries, strict=True):
        assert captioned[entry["file"]] == annotated[entry["file"]]
        scene, mask = draw_scene(job.seed, *SIZE), np.array(Image.open(root / entry["mask"]))
        labels = scene.picture.labels
        assert mask.dtype == np.uint8
        assert entry["classes"] == [names[label - 1] for label in sorted(set(labels[labels > 0].tolist()))]
        for one, instance in zip(entry["instances"], scene.instances, strict=True):
            assert one["class"] == instance.name
            x, y, width, height = instance.box
            assert (mask == one["id"])[y : y + height, x : x + width].sum() == instance.area
            np.testing.assert_array_equal(mask == one["id"], scene.picture.instances == instance.index)
            assert set(labels[mask == one["id"]].tolist()) == {LABELS[one["class"]]}
        assert not mask[np.isin(labels, [label for label, (_, stuff) in enumerate(CLASSES, start=1) if stuff])].any()
        shown += len(scene.instances)
    assert shown > len(entries)
    assert read_json(root / "manifest.json")["counts"] == {"train": 6, "instances": shown}
    assert len(np.unique(np.array(Image.open(root / "preview.png").convert("RGB")).reshape(-1, 3), axis=0)) > 100


@pytest.mark.parametrize(
    ("alter", "message"),
    [
        (lambda entry: entry["instances"].pop(), r"000000\.png shows .* but objects\.json lists"),
        (lambda entry: entry.update(classes=["wall"]), r"instance 1 .* which classes lacks"),
        (
            lambda entry: entry.pop("mask"),
            r"objects\.json: 0\.mask is missing; it must be a list of objects with the keys",
        ),
        (lambda entry: entry.update(mask="masks/none.png"), r"none\.png does not exist"),
        (lambda entry: entry.update(mask="masks/small.png"), r"small\.png and .* differ in size \(8x8 and 80x64\)"),
    ],
)
def test_unsound_annotations_are_named(world, tmp_path, alter, message):
    root = Path(shutil.copytree(world / "objects", tmp_path / "objects"))
    Image.new("L", (8, 8)).save(root / "masks/small.png")
    entries = read_json(root / "objects.json", list)
    alter(entries[0])
    (root / "objects.json").write_text(json.dumps(entries))
    with pytest.raises(UserError, match=message):
        prepare_dataset("objects", DatasetSpec(format="objects", source="folder", path=str(root)), tmp_path / "out")


# ------------------------------------------------------------------------------------------------------------- language
LEFT, RIGHT = {"left", "leftmost"}, {"right", "rightmost"}
FRONT, BACK = {"front", "closest"}, {"back", "farthest"}
MIDDLE = {"middle", "center"}
POSITION_WORDS = LEFT | RIGHT | FRONT | BACK | MIDDLE | {"behind", "farther", "near", "next", "top", "bottom"}
RELATION = re.compile(
    r"(to the left of|on the left of|to the right of|on the right of|in front of|behind|farther away than) the "
)


def looks_like(words: set[str], instance) -> bool:
    """A reader of its own, which shares nothing with the writer: every attribute word must be true."""
    vocabulary = {*COLOURS, *THINGS, "small", "large", "striped"}
    return words & vocabulary <= {instance.colour, instance.name, instance.size, instance.pattern}


def understood(sentence: str, instances) -> list:
    """All instances that the sentence can mean."""
    for kind in KINDS:
        sentence = re.sub(rf" (in|in this picture of) (the|an|a) {kind.replace('_', ' ')}$", "", sentence)
    parts = RELATION.split(sentence)
    words = set(parts[0].split())
    found = [one for one in instances if looks_like(words, one)]
    if len(parts) == 3:
        anchors = [one for one in instances if looks_like(set(parts[2].split()), one)]
        assert len(anchors) == 1, sentence
        key = {"left": lambda o: -o.across, "right": lambda o: o.across, "front": lambda o: -o.distance}
        word = next((word for word in key if word in parts[1]), None)
        measure = key[word] if word else (lambda o: o.distance)
        return [one for one in found if measure(one) > measure(anchors[0])]
    for group, choose in (
        (LEFT, lambda: [min(found, key=lambda o: o.across)]),
        (RIGHT, lambda: [max(found, key=lambda o: o.across)]),
        (FRONT, lambda: [min(found, key=lambda o: o.distance)]),
        (BACK, lambda: [max(found, key=lambda o: o.distance)]),
        (MIDDLE, lambda: sorted(found, key=lambda o: o.across)[len(found) // 2 :][:1]),
    ):
        if words & group:
            return choose()
    return found


def sentences_of(root: Path, variant: str):
    jobs = list_jobs(drawn("refcoco"), root)
    for ref in refcoco.load_refs(refcoco.refs_path(root, variant)):
        scene = shown(jobs[ref["image_id"] - 1].seed)
        target = next(one for one in scene.instances if one.index == ref["ann_id"] - ref["image_id"] * 100 - 1)
        for sentence in ref["sentences"]:
            yield scene, target, sentence["sent"]


@pytest.mark.parametrize("variant", refcoco.VARIANTS)
def test_every_expression_means_its_object_alone(world, variant):
    for scene, target, sentence in (all_of_them := list(sentences_of(world / "refcoco", variant))):
        assert understood(sentence, scene.instances) == [target], sentence
    assert len(all_of_them) > 60


def test_refcoco_plus_has_no_position_words_and_the_others_do(world):
    for variant in refcoco.VARIANTS:
        words = {word for *_, text in sentences_of(world / "refcoco", variant) for word in text.split()}
        assert bool(words & POSITION_WORDS) == (variant != "refcoco+")


def test_test_a_holds_toys_and_test_b_furniture(world):
    toys = {LABELS[name] for name in ("ball", "box", "cone")}
    for variant in ("refcoco", "refcoco+"):
        for ref in refcoco.load_refs(refcoco.refs_path(world / "refcoco", variant)):
            assert ref["split"] not in ("testA", "testB") or (ref["category_id"] in toys) == (ref["split"] == "testA")


def test_captions_tell_the_truth(scenes):
    for scene in scenes:
        names = {one.name for one in scene.instances}
        openings = {opening.name for opening in scene.room.openings}
        for caption in itertools.islice(say(scene), 30):
            words = set(re.findall(r"\w+", caption))
            assert words & set(THINGS) <= names
            assert words & {"window", "door", "rug"} <= openings
            for colour, name in re.findall(rf"({'|'.join(COLOURS)}) ({'|'.join(THINGS)})", caption):
                assert any((one.colour, one.name) == (colour, name) for one in scene.instances)


def test_the_first_captions_name_every_thing_with_colour_and_place_and_the_room(scenes):
    sides = {"on the left": (0.0, 0.36), "in the middle": (0.36, 0.64), "on the right": (0.64, 1.0)}
    for scene in scenes:
        things = referable(scene)
        told = " and ".join(itertools.islice(say(scene), math.ceil(len(things) / 2)))
        assert told.count(scene.room.kind.replace("_", " ")) >= min(1, len(things))
        for one in things:
            side = next(words for words, (low, high) in sides.items() if low <= one.across <= high)
            assert f"{one.colour} {one.name} {side}".strip() in told


def test_lists_of_up_to_five_things_are_frequent(scenes):
    """Captions that name one or two things never say which of five colours belongs to which."""
    shares = []
    for scene in scenes:
        things = referable(scene)
        told = list(itertools.islice(say(scene), 60))[math.ceil(len(things) / 2) :]
        counts = [sum(f"{one.colour} {one.name}".strip() in caption for one in things) for caption in told]
        shares.append(sum(count >= min(len(things), 5) for count in counts) / len(told))
    assert 0.4 < sum(shares) / len(shares) < 0.7


def test_each_image_has_as_many_captions_as_asked_for(tmp_path):
    spec = DatasetSpec(format="captions", source="synthetic", images={"train": 3}, size=(64, 64), captions=5)
    prepare_dataset("captions", spec, tmp_path / "c")
    files = [entry["file"] for entry in read_json(tmp_path / "c/captions.json", list)]
    assert files == [f"images/{index:06d}.jpg" for index in range(3) for _ in range(5)]
    assert read_json(tmp_path / "c/manifest.json")["counts"] == {"train": 3}


# ----------------------------------------------------------------------------------------------- preparing and verifying
def test_a_lost_image_and_a_changed_spec_are_drawn_again(tmp_path):
    spec = DatasetSpec(format="captions", source="synthetic", images={"train": 2}, size=(48, 48))
    prepare_dataset("captions", spec, tmp_path / "c")
    check_unchanged(tmp_path / "c")
    lost = tmp_path / "c/images/000001.jpg"
    before = lost.read_bytes()
    lost.unlink()
    prepare_dataset("captions", spec, tmp_path / "c")
    assert lost.read_bytes() == before
    for count in (3, 0):
        prepare_dataset("captions", spec.model_copy(update={"images": {"train": count}}), tmp_path / "c")
        assert read_json(tmp_path / "c/manifest.json")["counts"] == {"train": count}
    assert (tmp_path / "c/preview.png").is_file()


def test_a_killed_preparation_leaves_nothing_and_is_completed(tmp_path):
    spec = DatasetSpec(format="captions", source="synthetic", images={"train": 40}, size=(96, 96))
    code = "from pathlib import Path\nfrom vpd.stages.data import prepare_dataset\nfrom vpd.config.schema import DatasetSpec\n"
    code += f"prepare_dataset('c', DatasetSpec.model_validate_json({spec.model_dump_json()!r}), Path({str(tmp_path / 'c')!r}))"
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    while process.poll() is None and len(list(tmp_path.rglob("*.jpg"))) < 5:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "c").exists()
    prepare_dataset("c", spec, tmp_path / "c")
    prepare_dataset("c", spec, tmp_path / "clean")
    assert read_json(tmp_path / "c/manifest.json") == read_json(tmp_path / "clean/manifest.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "clean"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"images": {"trainn": 3}}, "unknown split 'trainn'; did you mean 'train'"),
        ({"size": None}, "has no size"),
        ({"seed": -1}, "seed -1 is negative"),
        ({"expect": {"train": 7}}, "has 6 train, expected 7"),
    ],
)
def test_impossible_drawings_end_in_one_sentence(tmp_path, changes, sentence):
    with pytest.raises(UserError, match=sentence):
        prepare_dataset("captions", drawn("captions").model_copy(update=changes), tmp_path / "c")
    assert not (tmp_path / "c").exists()
