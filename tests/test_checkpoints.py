"""Checkpoint folders: made from a milestone or a pipeline folder, refused when they are not Stable Diffusion 1."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from pretraining_fakes import SPEC, draw_captions
from vpd.config.schema import CheckpointSpec
from vpd.pretrained.checkpoints import assemble, checkpoint_fingerprint
from vpd.pretrained.tensors import read_tensors
from vpd.pretraining.diffusion.pretrain import pretrain
from vpd.utils.digests import changed
from vpd.utils.errors import UserError
from vpd.utils.files import read_json

PRETRAINED = CheckpointSpec(source="pretrained")
UNET = "unet/diffusion_pytorch_model.safetensors"
NORM = "decoder.conv_norm_out.bias"


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
    counted = {name: getattr(pipeline, name).num_parameters() for name in ("vae", "text_encoder", "unet")}
    assert manifest["parameters"] == counted
    assert UNET in manifest["files"]


def test_folder_without_its_extras_loads(folder, tmp_path):
    change(folder / "model_index.json", safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"])
    (folder / "unet/diffusion_pytorch_model.fp16.safetensors").write_bytes(b"unused")
    out = assemble_folder(folder, tmp_path)
    names = {path.name for path in (out / "unet").iterdir()}
    assert names == {"config.json", "diffusion_pytorch_model.safetensors"}
    assert StableDiffusionPipeline.from_pretrained(out).safety_checker is None


def test_folder_that_has_only_the_variant_in_half_precision_is_used(folder, tmp_path):
    for path in folder.rglob("*.safetensors"):
        halved = {name: tensor.half() for name, tensor in load_file(path).items()}
        path.unlink()
        save_file(halved, path.with_suffix(".fp16.safetensors"), metadata={"format": "pt"})
    out = assemble_folder(folder, tmp_path)
    assert StableDiffusionPipeline.from_pretrained(out).unet.num_parameters()
    assert load_file(out / UNET).keys() == halved_names(folder / UNET)
    spec = CheckpointSpec(source="folder", path=str(folder))
    before = checkpoint_fingerprint("sd-1-5", spec, tmp_path)
    (folder / UNET).with_suffix(".fp16.safetensors").write_bytes(b"other")
    assert checkpoint_fingerprint("sd-1-5", spec, tmp_path) != before


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
STAND_INS = {
    "pointer": (POINTER, "is a Git LFS pointer, .* run `git lfs pull`"),
    "page": (b"<!DOCTYPE html><html><title>Log in</title></html>", "is a web page, not weights"),
    "page after blanks": (b"\n  <html lang=en>", "is a web page, not weights"),
    "error in XML": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "is a web page, not weights"),
    "nothing": (b"", "is damaged or cut off"),
    "text": (b"Not Found", "is damaged or cut off|is no file of plain tensors"),
    "JSON": (b'{"error": "gated"}', "is damaged or cut off|is no file of plain tensors"),
}


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt", ".pth", ""])
@pytest.mark.parametrize("name", STAND_INS)
def test_what_stands_in_for_weights_is_named(tmp_path, name, suffix):
    (tmp_path / f"w{suffix}").write_bytes(STAND_INS[name][0])
    with pytest.raises(UserError, match=STAND_INS[name][1]):
        read_tensors(tmp_path / f"w{suffix}")


@pytest.mark.parametrize("suffix", [".safetensors", ".SAFETENSORS", ".ckpt", ".pth", ".bin", ".txt", ""])
@pytest.mark.parametrize("kind", ["safetensors", "zip", "pickle"])
def test_weights_are_recognised_whatever_their_ending(tmp_path, kind, suffix):
    path, tensors = tmp_path / f"w{suffix}", {"a": torch.arange(3.0)}
    if kind == "safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=kind == "zip")
    assert torch.equal(read_tensors(path)["a"], tensors["a"])


def halved_names(path: Path):
    return load_file(path.with_suffix(".fp16.safetensors")).keys()


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


def test_unknown_or_changed_milestone_is_refused(pretraining, tmp_path):
    with pytest.raises(UserError, match=r"unknown milestone 'sd-c'; did you mean 'sd-[ab]'\? \(known: sd-a, sd-b\)"):
        assemble("sd-c", PRETRAINED, pretraining, tmp_path / "out")
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


def test_finished_checkpoint_is_left_alone_until_its_source_changes(folder, tmp_path):
    out, spec = assemble_folder(folder, tmp_path), CheckpointSpec(source="folder", path=str(folder))
    manifest, times = (out / "manifest.json").read_text(), {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assemble_folder(folder, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == times
    first = checkpoint_fingerprint("sd-1-5", spec, tmp_path)
    rewrite(folder, "unet", lambda state: {name: tensor + 1 for name, tensor in state.items()})
    assert checkpoint_fingerprint("sd-1-5", spec, tmp_path).differences(asdict(first)) == ["source"]
    assemble_folder(folder, tmp_path)
    assert (out / "manifest.json").read_text() != manifest


def test_planning_loads_neither_torch_nor_diffusers():
    script = """
import sys
from pathlib import Path
import vpd.pretraining.workdir
from vpd.config.params import load_params
from vpd.pretrained.checkpoints import checkpoint_fingerprint, fetched_backbone_fingerprint
params = load_params("params.yaml", "paper")
for name in params.checkpoints:
    checkpoint_fingerprint(name, params.checkpoint(name), Path("none"))
for name in params.backbones:
    fetched_backbone_fingerprint(name, params.backbone(name))
print({"torch", "diffusers", "transformers", "timm"} & set(sys.modules))
"""
    assert (
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "set()\n"
    )


def rewrite(folder: Path, part: str, change) -> None:
    (file,) = (folder / part).glob("*.safetensors")
    state = {name: tensor.clone().contiguous() for name, tensor in change(load_file(file)).items()}
    file.unlink()  # A checkpoint may be a hard link to it.
    save_file(state, file, {"format": "pt"})


def prefixed(prefix: str):
    return lambda state: {f"{prefix}{name.removeprefix(prefix)}": tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        (
            "unet",
            lambda x: {n: x[n] for n in x if n != "conv_out.bias"},
            r"the unet is not .*1 missing, first 'conv_out",
        ),
        ("unet", prefixed("module."), r"the unet is not .* missing, first .* unexpected, first 'module\."),
        ("vae", lambda x: x | {NORM: x[NORM] * torch.nan}, rf"the vae .*1 with NaN or infinite values, first '{NORM}'"),
        ("vae", lambda x: x | {NORM: x[NORM][1:]}, rf"the vae is not .*1 of another shape, first '{NORM}'"),
        ("text_encoder", prefixed("clip."), r"the text_encoder is not .*unexpected, first 'clip\."),
    ],
)
def test_every_tensor_of_a_folder_is_compared(folder, tmp_path, part, change, message):
    rewrite(folder, part, change)
    with pytest.raises(UserError, match=message) as caught:
        assemble_folder(folder, tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "checkpoint").exists()


def test_names_of_the_published_folders_are_known(folder, tmp_path):
    """They have the VAE's attention as diffusers had it in 2022, the text encoder's prefix, and its positions' numbers."""
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    for new, name in old.items():
        rewrite(folder, "vae", lambda state, n=new, o=name: {key.replace(n, o): x for key, x in state.items()})
    rewrite(folder, "text_encoder", prefixed("text_model."))
    positions = {"text_model.embeddings.position_ids": torch.arange(5)[None]}
    rewrite(folder, "text_encoder", lambda state: state | positions)
    pipeline = StableDiffusionPipeline.from_pretrained(assemble_folder(folder, tmp_path))
    assert pipeline.vae.num_parameters() > 0


INDEX, PICKLE = "model_index.json", "unet/diffusion_pytorch_model.bin"


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        (INDEX, None, r"has no model_index\.json"),
        (INDEX, {"vae": [None, None]}, r"lists no vae; .*unet"),
        (INDEX, {"text_encoder": ["transformers", "T5EncoderModel"]}, r"is a T5EncoderModel, but .* a CLIPTextModel"),
        (
            "unet/config.json",
            {"cross_attention_dim": 1024},
            r"is a Stable Diffusion 2 U-Net .*1024\), not .* 1 \(768\)",
        ),
        ("unet/config.json", {"in_channels": 9}, r"takes 9 channels"),
        ("scheduler/scheduler_config.json", {"prediction_type": "v_prediction"}, r"predicts 'v_prediction'"),
        (UNET, PICKLE, r"has diffusion_pytorch_model\.bin where .*safetensors is needed"),
        (UNET, b"", rf"downloaded/{UNET} is damaged"),
        ("tokenizer/tokenizer.json", None, r"tokenizer lacks vocab\.json and merges\.txt"),
    ],
)
def test_folder_that_is_not_stable_diffusion_1_is_refused(folder, tmp_path, file, damage, message):
    if isinstance(damage, dict):
        change(folder / file, **damage)
    elif isinstance(damage, bytes):
        (folder / file).write_bytes((folder / file).read_bytes()[:5000])
    else:
        (folder / file).rename(folder / (damage or "elsewhere"))
    with pytest.raises(UserError, match=message) as caught:
        assemble_folder(folder, tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "checkpoint").exists()
