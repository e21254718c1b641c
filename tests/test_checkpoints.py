"""Checkpoint folders: made from a milestone or a pipeline folder, refused when they are not Stable Diffusion 1."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

from pretraining_fakes import SPEC, draw_captions
from vpd.config.schema import CheckpointSpec
from vpd.pretrained.checkpoints import assemble
from vpd.pretraining.diffusion.pretrain import pretrain
from vpd.utils.digests import changed
from vpd.utils.errors import UserError
from vpd.utils.files import read_json

PRETRAINED = CheckpointSpec(source="pretrained")
UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def pretraining(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretraining")
    pretrain(SPEC, draw_captions(folder / "data"), folder / "out", folder / "state")
    return folder / "out"


@pytest.fixture
def folder(pretraining: Path, tmp_path: Path) -> Path:
    """A pipeline folder of the user's own, free to be damaged."""
    shutil.copytree(pretraining / "sd-a", tmp_path / "downloaded")
    return tmp_path / "downloaded"


def assemble_folder(folder: Path, tmp_path: Path) -> Path:
    out = tmp_path / "checkpoint"
    assemble("sd-1-5", CheckpointSpec(source="folder", path=str(folder)), tmp_path / "no-pretraining", out)
    return out


def change(file: Path, **values: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_milestone_becomes_a_verified_checkpoint(pretraining, tmp_path):
    assemble("sd-a", PRETRAINED, pretraining, tmp_path / "out")
    assert not changed(tmp_path / "out", read_json(tmp_path / "out/manifest.json")["files"])
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "out")
    manifest = read_json(tmp_path / "out/manifest.json")
    networks = {"vae": pipeline.vae, "text_encoder": pipeline.text_encoder, "unet": pipeline.unet}
    counted = {name: sum(weight.numel() for weight in network.parameters()) for name, network in networks.items()}
    assert manifest["parameters"] == counted
    assert UNET in manifest["files"]


def test_folder_without_its_extras_loads(folder, tmp_path):
    change(folder / "model_index.json", safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"])
    (folder / "unet/diffusion_pytorch_model.fp16.safetensors").write_bytes(b"unused")
    out = assemble_folder(folder, tmp_path)
    names = {path.name for path in (out / "unet").iterdir()}
    assert names == {"config.json", "diffusion_pytorch_model.safetensors"}
    assert StableDiffusionPipeline.from_pretrained(out).safety_checker is None


def test_folder_with_the_older_tokenizer_files_gives_the_same_tokens(folder, tmp_path):
    new = StableDiffusionPipeline.from_pretrained(folder).tokenizer
    model = json.loads((folder / "tokenizer/tokenizer.json").read_text())["model"]
    (folder / "tokenizer/tokenizer.json").unlink()
    (folder / "tokenizer/vocab.json").write_text(json.dumps(model["vocab"]))
    merges = ["#version: 0.2", *(" ".join(pair) for pair in model["merges"])]
    (folder / "tokenizer/merges.txt").write_text("\n".join(merges) + "\n")
    old = StableDiffusionPipeline.from_pretrained(assemble_folder(folder, tmp_path)).tokenizer
    text = "a photo of a red zebra"
    assert old(text).input_ids == new(text).input_ids


def test_unknown_milestone_names_the_nearest(pretraining, tmp_path):
    with pytest.raises(UserError, match=r"unknown milestone 'sd-c'; did you mean 'sd-[ab]'\? \(known: sd-a, sd-b\)"):
        assemble("sd-c", PRETRAINED, pretraining, tmp_path / "out")


def test_milestone_that_changed_since_is_refused(pretraining, tmp_path):
    copy = tmp_path / "pretraining"
    shutil.copytree(pretraining, copy)
    with open(copy / "sd-b" / UNET, "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    with pytest.raises(UserError, match=rf"differs from its manifest in sd-b/{UNET}"):
        assemble("sd-b", PRETRAINED, copy, tmp_path / "out")
    assemble("sd-a", PRETRAINED, copy, tmp_path / "out")


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match=r"absent does not exist"):
        assemble_folder(tmp_path / "absent", tmp_path)
    with pytest.raises(UserError, match=r"checkpoints\.sd-1-5 has source 'folder' but no path"):
        assemble("sd-1-5", CheckpointSpec(source="folder"), tmp_path, tmp_path / "out")


def damage_index(folder: Path) -> None:
    (folder / "model_index.json").unlink()


def damage_component(folder: Path) -> None:
    change(folder / "model_index.json", vae=[None, None])


def damage_class(folder: Path) -> None:
    change(folder / "model_index.json", text_encoder=["transformers", "T5EncoderModel"])


def damage_version(folder: Path) -> None:
    change(folder / "unet/config.json", cross_attention_dim=1024)


def damage_width(folder: Path) -> None:
    change(folder / "text_encoder/config.json", hidden_size=20)


def damage_channels(folder: Path) -> None:
    change(folder / "unet/config.json", in_channels=9)


def damage_prediction(folder: Path) -> None:
    change(folder / "scheduler/scheduler_config.json", prediction_type="v_prediction")


def damage_format(folder: Path) -> None:
    (folder / UNET).unlink()
    torch.save({}, folder / "unet/diffusion_pytorch_model.bin")


def damage_bytes(folder: Path) -> None:
    content = (folder / UNET).read_bytes()
    (folder / UNET).write_bytes(content[: len(content) // 2])


def damage_tokenizer(folder: Path) -> None:
    (folder / "tokenizer/tokenizer.json").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_index, r"has no model_index\.json"),
        (damage_component, r"lists no vae; .*unet"),
        (damage_class, r"text_encoder is a T5EncoderModel, but Stable Diffusion 1 has a CLIPTextModel"),
        (damage_version, r"is a Stable Diffusion 2 U-Net \(cross-attention width 1024\); Stable Diffusion 1 has 768"),
        (damage_width, r"cross-attention width is 16, but the text encoder's width is 20"),
        (damage_channels, r"takes 9 channels"),
        (damage_prediction, r"predicts 'v_prediction'"),
        (damage_format, r"has diffusion_pytorch_model\.bin where .*safetensors is needed"),
        (damage_bytes, rf"downloaded/{UNET} is damaged"),
        (damage_tokenizer, r"tokenizer lacks vocab\.json and merges\.txt"),
    ],
)
def test_folder_that_is_not_stable_diffusion_1_is_refused(folder, tmp_path, damage, message):
    damage(folder)
    with pytest.raises(UserError, match=message) as caught:
        assemble_folder(folder, tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "checkpoint").exists()
