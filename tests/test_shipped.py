"""Weights in git: half the precision of what a scale pre-trained, and refused when a byte or a setting of the recipe differs."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vpd.config.params import load_params
from vpd.config.paths import Paths
from vpd.config.schema import BackboneSpec, NetworkSpec
from vpd.models.backbones import build_backbone, load_backbone, save_backbone
from vpd.pretrained.backbones import take_backbone
from vpd.pretrained.shipped import check_shipped, ship
from vpd.stages.keys import is_current
from vpd.utils.errors import UserError
from vpd.utils.files import read_json

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}
NETWORK = NetworkSpec(library="timm", architecture="vit_base_patch8_224", options=VIT)
RECIPE = {"backbone": {"training": {"lr": 1e-3, "batch_size": 32}}, "datasets.captions": {"images": {"train": 16000}}}
WEIGHTS = "vision/model.safetensors"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished backbone with single-precision weights."""
    folder = tmp_path_factory.mktemp("made")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_backbone(build_backbone(NETWORK), NETWORK, folder)
    (folder / "fingerprint.json").write_text("{}")
    return folder


@pytest.fixture
def shipped(made: Path, tmp_path: Path) -> Path:
    ship(made, tmp_path / "weights", RECIPE, {"images_seen": 204800, "objective": "masked-image"})
    return tmp_path / "weights"


def test_shipped_weights_are_the_trained_ones_in_half_precision(made, shipped):
    own, half = load_file(made / WEIGHTS), load_file(shipped / WEIGHTS)
    assert own.keys() == half.keys()
    assert {tensor.dtype for tensor in half.values()} == {torch.float16}
    assert all(torch.equal(half[name], tensor.half()) for name, tensor in own.items())
    assert not (shipped / "fingerprint.json").exists()
    assert check_shipped(shipped, RECIPE)["images_seen"] == 204800


def test_a_taken_backbone_computes_with_the_rounded_weights(made, shipped, tmp_path):
    recipe = {"objective": "masked-image", "vision": NETWORK.model_dump(), "recipe": RECIPE}
    spec = BackboneSpec.model_validate({"source": "shipped", "path": str(shipped), **recipe})
    take_backbone("mae", spec, tmp_path / "out")
    assert read_json(tmp_path / "out/manifest.json")["source"] == "shipped"
    own, taken = (load_backbone(folder).eval() for folder in (made, tmp_path / "out"))
    own.network.load_state_dict({name: x.half().float() for name, x in own.network.state_dict().items()})
    image = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(own(image), taken(image), strict=True))


def _flip(folder: Path) -> None:
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (folder / WEIGHTS).write_bytes(content)


def _cut(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-100])


def _pointer(folder: Path) -> None:
    (folder / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n")


def _another(folder: Path) -> None:
    save_file({"weight": torch.zeros(2)}, folder / WEIGHTS)


def _recipe(*keys: str, value: object):
    def change(folder: Path) -> None:
        manifest = read_json(folder / "manifest.json")
        inner = manifest["recipe"]
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value
        (folder / "manifest.json").write_text(json.dumps(manifest))

    return change


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (_flip, f"{WEIGHTS} differs from its manifest; restore it with `git checkout"),
        (_cut, f"{WEIGHTS} differs from its manifest"),
        (_pointer, f"{WEIGHTS} differs from its manifest"),
        (_another, f"{WEIGHTS} differs from its manifest"),
        (lambda folder: (folder / WEIGHTS).unlink(), f"{WEIGHTS} differs from its manifest"),
        (lambda folder: (folder / "evil.py").write_text(""), "evil.py is not in its manifest; remove it"),
        (lambda folder: (folder / "manifest.json").unlink(), "manifest.json does not exist"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "manifest.json"),
        (lambda folder: (folder / "manifest.json").write_text('{"schema": 99}'), "has schema 99"),
        (lambda folder: (folder / "manifest.json").write_text('{"schema": 1, "files": {}}'), "has no recipe"),
        (shutil.rmtree, "does not exist; restore it with git, or make it with `make pretrain`"),
        (_recipe("backbone", "training", "lr", value=2e-3), "made with backbone.training.lr 0.002, but params.yaml says 0.001"),
        (_recipe("backbone", "training", "momentum", value=0.9), "backbone.training.momentum 0.9, but params.yaml says None"),
        (_recipe("datasets.captions", "images", "train", value=4000), "datasets.captions.images.train 4000, but .* 16000"),
        (_recipe("datasets.captions", value=None), "datasets.captions None, but"),
    ],
)  # fmt: skip
def test_damaged_or_unfit_weights_are_one_sentence(shipped, damage, sentence):
    damage(shipped)
    with pytest.raises(UserError, match=sentence) as caught:
        check_shipped(shipped, RECIPE)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [70000.0, -1e30])
def test_a_tensor_beyond_half_precision_stays_in_single(made, tmp_path, value):
    _edit(made, tmp_path / "large", value)
    ship(tmp_path / "large", tmp_path / "out", RECIPE, {})
    state, before = load_file(tmp_path / "out" / WEIGHTS), load_file(tmp_path / "large" / WEIGHTS)
    assert torch.equal(state.pop("norm.weight"), before["norm.weight"])
    assert state
    assert {tensor.dtype for tensor in state.values()} == {torch.float16}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused(made, tmp_path, value):
    _edit(made, tmp_path / "broken", value)
    with pytest.raises(UserError, match=r"norm\.weight has values that are not finite"):
        ship(tmp_path / "broken", tmp_path / "out", RECIPE, {})
    assert not (tmp_path / "out").exists()


def _edit(made: Path, copy: Path, value: float) -> None:
    """Copy a folder with another first number of the tensor norm.weight."""
    shutil.copytree(made, copy)
    state = load_file(copy / WEIGHTS)
    state["norm.weight"][0] = value
    save_file(state, copy / WEIGHTS)


def test_a_recipe_lists_what_decides_the_weights_and_nothing_else():
    scratch, mini = (load_params("params.yaml", scale) for scale in ("scratch", "mini"))
    spec = mini.checkpoint("sd-1-5")
    assert (spec.path, spec.recipe) == ("weights/scratch/sd-1-5", scratch.recipe("sd-1-5"))
    assert set(spec.recipe) == {"pretraining", "datasets.captions"}
    backbone = mini.backbone("mae-vit-l")
    assert (backbone.path, backbone.recipe) == ("weights/scratch/mae-vit-l", scratch.recipe("mae-vit-l"))
    assert set(backbone.recipe) == {"backbone", "datasets.captions", "datasets.objects"}
    assert mini.milestones == scratch.pretraining.milestones


def test_without_weights_nothing_is_current(tmp_path):
    params = load_params("params.yaml", "mini")
    assert not is_current("checkpoint", "sd-1-5", params, Paths("mini", tmp_path))
