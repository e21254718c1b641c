"""`vpd.load` predicts what `vpd predict` writes, for pictures of every kind, and `import vpd` is quick."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vpd
from trained import KEYS, OPTIONS, TASKS, World
from vpd.utils.files import write_text

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    torch.manual_seed(0)
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def picture(world) -> Path:
    return world.data["segmentation"] / "ADEChallengeData2016/images/validation/ADE_val_00000001.jpg"


@pytest.fixture(scope="module")
def load(world, tmp_path_factory):
    """``vpd.load`` of a task's network by the paths of its parts."""

    def loaded(task: str, **options) -> vpd.Predictor:
        spec = tmp_path_factory.mktemp("spec") / "spec.json"
        write_text(spec, world.specs[task].model_dump_json())
        name = {"segmentation": "seg-full", "referring": "refcoco-full", "depth": "depth-full"}[task]
        parts = {"spec": spec, "weights": world.weights[task], "checkpoint": world.checkpoint, "data": world.data[task]}
        return vpd.load(name, project=ROOT, scale="smoke", **parts, **options)

    return loaded


@pytest.mark.parametrize("task", TASKS)
def test_predictions_are_those_of_the_command_for_pictures_of_every_kind(world, load, picture, tmp_path, task):
    expected = world.result(task, picture, tmp_path)
    network, options = load(task), OPTIONS[task]
    image = np.array(Image.open(picture))
    tensor = torch.from_numpy(image).permute(2, 0, 1)
    kinds = [str(picture), picture, Image.open(picture), image, tensor, tensor / 255]
    state = torch.random.get_rng_state()
    for found in [network.predict(kind, **options) for kind in kinds] + network.predict(kinds, **options):
        assert isinstance(
            found, {"segmentation": vpd.Segments, "referring": vpd.ReferredObject, "depth": vpd.DepthMap}[task]
        )
        np.testing.assert_array_equal(found.arrays[KEYS[task]], expected)
        np.testing.assert_array_equal(found.image, image)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("task", TASKS)
def test_a_panel_and_an_image_can_be_shown_and_saved(load, picture, tmp_path, task):
    found = load(task).predict(picture, **OPTIONS[task])
    found.panel("a title").save(tmp_path / "panel.png")
    width, height = Image.open(tmp_path / "panel.png").size
    assert width > height > 200
    assert found.png.size == Image.open(picture).size


def test_names_of_classes_come_with_the_prediction(world, load, picture):
    network = load("segmentation")
    found = network.predict(picture)
    assert found.names == network.names == world.reader("segmentation").classes
    assert found.labels.max() < len(found.names)


def test_each_picture_may_have_a_text_of_its_own(load, picture):
    network = load("referring")
    both = network.predict([picture, picture], text=["the red ball", "a bed"])
    for found, text in zip(both, ["the red ball", "a bed"], strict=True):
        np.testing.assert_array_equal(found.probability, network.predict(picture, text=text).probability)
    assert not np.array_equal(both[0].probability, both[1].probability)


@pytest.mark.parametrize("task", TASKS)
def test_bf16_predicts_nearly_the_same_in_half_the_memory(world, load, picture, tmp_path, task):
    exact = load(task).predict(picture, **OPTIONS[task]).arrays[KEYS[task]]
    network = load(task, precision="bf16")
    assert {tensor.dtype for tensor in network.model.parameters()} == {torch.bfloat16}
    found = network.predict(picture, **OPTIONS[task]).arrays[KEYS[task]]
    assert (found.dtype, found.shape) == (exact.dtype, exact.shape)
    assert not np.array_equal(found, exact)
    if task == "segmentation":
        assert np.mean(found == exact) > 0.95
    else:
        assert np.linalg.norm(found.astype(float) - exact) < 0.03 * np.linalg.norm(exact.astype(float))
    np.testing.assert_array_equal(found, world.result(task, picture, tmp_path, precision="bf16"))
    with pytest.raises(vpd.UserError, match="unknown precision 'fp16'; "):
        load(task, precision="fp16")


MISTAKES = {
    "no text": ("referring", {}, "looks for what a text describes"),
    "a blank text": ("referring", {"text": " "}, "looks for what a text describes"),
    "too few texts": ("referring", {"text": ["a", "b"]}, "there are 2 texts for 1 images"),
    "a text for depth": ("depth", {"text": "a"}, "text is for referring only"),
    "an unknown scene": ("depth", {"scene": "moon"}, "unknown scene 'moon'"),
    "no picture": ("depth", {"images": "no/such.png"}, "no/such.png does not exist"),
    "a number": ("depth", {"images": [3]}, "image 0 is a int; give a path"),
    "a thread": ("depth", {"images": np.zeros((1, 400, 3), np.uint8)}, "image 0 has a side of more than 100 times"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_sentence(load, picture, name):
    task, options, sentence = MISTAKES[name]
    network = load(task)
    with pytest.raises(vpd.UserError, match=sentence):
        network.predict(**{"images": picture, **options})


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("seg-ful", {}, "unknown experiment 'seg-ful'; did you mean 'seg-full'"),
        ("seg-full", {"scale": "huge"}, "unknown scale 'huge'"),
        ("seg-full", {"project": "no/such"}, "no/such/params.yaml does not exist"),
        ("models:/a/b/c", {}, "names no registered model"),
    ],
)
def test_what_cannot_be_loaded_is_one_sentence(name, options, sentence):
    with pytest.raises(vpd.UserError, match=sentence):
        vpd.load(name, **{"project": ROOT, "scale": "smoke", **options})


def test_public_names_exist_and_importing_them_is_quick():
    for name in vpd.__all__:
        assert getattr(vpd, name).__doc__
    program = "import sys, vpd; print(vpd.__version__, sorted({'torch', 'diffusers', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == f"{vpd.__version__} []\n"
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        _ = vpd.lod


def test_an_installed_package_has_no_network_without_its_weights(tmp_path, monkeypatch):
    """In an empty folder, where a checkout's own settings are not found."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(vpd.UserError, match=r"shipped/params\.yaml does not exist"):
        vpd.load("depth-full")


def test_a_misspelled_option_is_not_ignored():
    with pytest.raises(TypeError, match="weigths"):
        vpd.load("depth-full", project=ROOT, scale="smoke", weigths="final.safetensors")
