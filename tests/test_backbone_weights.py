"""Backbones' public weights by their real names, small: timm's and transformers' own loading says what they mean."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer, BertModel, BlipConfig, BlipModel, SamConfig, SamModel

from backbone_repositories import WORDS, WRITERS, same, small, write_bert, write_cache, write_timm, write_transformers
from hub_server import make
from vpd.config.params import load_params
from vpd.config.schema import BackboneSpec
from vpd.models.backbones import build_backbone, load_backbone
from vpd.pretrained.backbones import fetch_backbone
from vpd.utils.digests import changed
from vpd.utils.errors import UserError
from vpd.utils.files import read_json, write_json

PARAMS = load_params("params.yaml", "paper")
LINES = {name: PARAMS.backbone(name) for name in PARAMS.backbones}
TIMM = [name for name, line in LINES.items() if line.vision.library == "timm"]
SIZE = 64


def line(name: str, **changes) -> BackboneSpec:
    """The line of params.yaml with small sizes, from the hub unless changed."""
    given = LINES[name].model_dump()
    given["vision"]["options"] |= small(given["vision"]["architecture"])
    return BackboneSpec.model_validate(given | changes)


def write_repository(folder: Path, spec: BackboneSpec) -> None:
    if spec.vision.library == "transformers":
        write_transformers(folder, spec.vision.architecture, spec.vision.options)
        return
    classes = 0 if spec.repo.endswith((".mae", ".dino")) else 7
    write_timm(folder, spec.vision.architecture, spec.repo, spec.vision.options, classes)


@pytest.fixture(scope="module")
def repositories(tmp_path_factory) -> Path:
    """A folder with all repositories of params.yaml, by their names."""
    folder = tmp_path_factory.mktemp("repositories")
    for name in LINES:
        spec = line(name)
        if not (folder / spec.repo).exists():
            write_repository(folder / spec.repo, spec)
        if spec.language is not None:
            write_bert(folder / spec.language.repo)
    return folder


@pytest.fixture(scope="module")
def fetched(repositories, tmp_path_factory) -> dict[str, Path]:
    """Checkpoint folders of all lines, made offline from a hub cache."""
    home, out = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("checkpoints")
    for folder in sorted(repositories.glob("*/*")):
        write_cache(home, folder.relative_to(repositories).as_posix(), folder)
    jobs = [(name, line(name).model_dump(mode="json"), out / name) for name in LINES]
    assert make(home, jobs, HF_HUB_OFFLINE="1") == ["made"] * len(jobs)
    return {name: out / name for name in LINES}


def pictures(name: str) -> tuple[Tensor, Tensor]:
    """Images in [-1, 1], and the same as the architecture wants them (its own constants, not our code's)."""
    images = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)) * 2 - 1
    clip = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    imagenet = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    mean, std = clip if name.startswith(("clip", "blip")) else imagenet
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (mean, std))
    return images, ((images + 1) / 2 - mean) / std


def timm_features(spec: BackboneSpec, file: Path, images: Tensor) -> list[Tensor]:
    """What timm makes of the file by itself."""
    options = dict(spec.vision.options, pretrained=True, pretrained_cfg_overlay={"file": str(file)})
    if spec.vision.architecture.startswith(("swin", "convnext")):
        model = timm.create_model(spec.vision.architecture, features_only=True, **options).eval()
        channels_last = spec.vision.architecture.startswith("swin")
        return [x.permute(0, 3, 1, 2) if channels_last else x for x in model(images)]
    model = timm.create_model(spec.vision.architecture, num_classes=0, **options).eval()
    tokens = model.fc_norm(model.forward_features(images))[:, 1:]
    side = SIZE // model.patch_embed.patch_size[0]
    return [tokens.transpose(1, 2).unflatten(2, (side, side))]


def transformers_features(spec: BackboneSpec, folder: Path, images: Tensor) -> list[Tensor]:
    """What transformers makes of the folder by itself."""
    kind = type(WRITERS[spec.vision.architecture](spec.vision.options))
    model = kind.from_pretrained(folder).eval()
    if spec.vision.architecture == "sam":
        return [model.vision_encoder(images).last_hidden_state]
    tokens = model.vision_model(images).last_hidden_state[:, 1:]
    side = SIZE // spec.vision.options["patch_size"]
    return [tokens.transpose(1, 2).unflatten(2, (side, side))]


@pytest.mark.parametrize("name", LINES)
@torch.no_grad()
def test_features_are_those_of_the_librarys_own_model_from_the_same_files(fetched, repositories, name):
    spec = line(name)
    images, normalised = pictures(name)
    backbone = load_backbone(fetched[name]).eval()
    if spec.vision.library == "timm":
        expected = timm_features(spec, repositories / spec.repo / "model.safetensors", normalised)
    else:
        expected = transformers_features(spec, repositories / spec.repo, normalised)
    found = backbone(images)
    assert len(found) == len(expected) == len(backbone.channels)
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        assert ((a - b).abs().max() / b.abs().max()).item() < 1e-5


def test_the_text_encoder_is_the_one_that_transformers_loads(fetched, repositories):
    language = fetched["swin-b-bert"] / "language"
    expected = BertModel.from_pretrained(repositories / "google-bert/bert-base-uncased", add_pooling_layer=False)
    found = BertModel.from_pretrained(language, add_pooling_layer=False)
    assert same(found.state_dict(), expected.state_dict())
    tokens = AutoTokenizer.from_pretrained(language)("The red boxes")["input_ids"]
    assert [WORDS[token] for token in tokens] == ["[CLS]", "the", "red", "box", "##es", "[SEP]"]


def test_the_manifest_says_what_came_from_where(fetched, repositories):
    folder = fetched["swin-b-bert"]
    manifest, origin = read_json(folder / "manifest.json"), read_json(folder / "origin.json")
    assert (origin["source"], origin["repo"]) == ("hub", "timm/swin_base_patch4_window12_384.ms_in22k")
    assert origin["language"]["repo"] == "google-bert/bert-base-uncased"
    assert len(origin["revision"]) == len(origin["language"]["revision"]) == 40
    counted = sum(p.numel() for p in load_backbone(folder).network.parameters())
    bert = sum(p.numel() for p in BertModel.from_pretrained(folder / "language", add_pooling_layer=False).parameters())
    assert manifest["parameters"] == {"vision": counted, "language": bert}
    assert {"vision/network.json", "vision/model.safetensors", "language/model.safetensors"} <= set(manifest["files"])
    assert not changed(folder, manifest["files"])


CLASSIFIERS = {
    "swin": {"norm.weight", "norm.bias", "head.fc.weight", "head.fc.bias"},
    "convnext": {"head.norm.weight", "head.norm.bias", "head.fc.weight", "head.fc.bias"},
    "vit": {"head.weight", "head.bias"},
    "beitv2": {"head.weight", "head.bias"},
}


@pytest.mark.parametrize("name", TIMM)
def test_at_true_size_the_network_is_timms_without_its_classifier(name):
    architecture = LINES[name].vision.architecture
    with torch.device("meta"):
        whole = timm.create_model(architecture, num_classes=1000).state_dict()
        own = build_backbone(LINES[name].vision).network.state_dict()
    left = next(names for beginning, names in CLASSIFIERS.items() if architecture.startswith(beginning))
    assert whole.keys() - own.keys() == left
    assert {key: own[key].shape for key in own} == {key: whole[key].shape for key in whole if key not in left}


WHOLE = {"sam": (SamConfig, SamModel, "vision_encoder."), "blip": (BlipConfig, BlipModel, "vision_model.")}


@pytest.mark.parametrize("architecture", WHOLE)
def test_at_true_size_the_network_is_the_image_encoder_of_transformers(architecture):
    config, kind, prefix = WHOLE[architecture]
    spec = LINES[architecture].vision
    with torch.device("meta"):
        whole = kind(config(vision_config=spec.options)).state_dict()
        own = build_backbone(spec).network.state_dict()
    expected = {key.removeprefix(prefix): tensor.shape for key, tensor in whole.items() if key.startswith(prefix)}
    assert {key: tensor.shape for key, tensor in own.items()} == expected


@pytest.fixture
def copy(repositories, tmp_path):
    """A copy of a line's repository with some tensors changed (None: removed), and a way to make a checkpoint of it."""

    def run(name: str, changes: dict[str, Tensor | None] | None = None, **settings) -> Path:
        folder = tmp_path / "copy"
        shutil.copytree(repositories / LINES[name].repo, folder, dirs_exist_ok=True)
        if changes:
            state = load_file(folder / "model.safetensors") | changes
            save_file({k: v for k, v in state.items() if v is not None}, folder / "model.safetensors")
        spec = line(name, source="folder", path=str(folder), **settings)
        fetch_backbone(name, spec, tmp_path / "out")
        return tmp_path / "out"

    return run


def vision(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "vision/model.safetensors")


def test_a_copy_gives_the_same_checkpoint_as_the_hub(copy, fetched):
    out = copy("convnext-l")
    assert same(vision(out), vision(fetched["convnext-l"]))
    assert read_json(out / "manifest.json") == read_json(fetched["convnext-l"] / "manifest.json")


def test_position_embeddings_are_resampled_as_timm_does(copy, repositories):
    options = {**line("mae-vit-l").vision.options, "img_size": 32}
    architecture = LINES["mae-vit-l"].vision.architecture
    out = copy("mae-vit-l", vision={"library": "timm", "architecture": architecture, "options": options})
    file = str(repositories / LINES["mae-vit-l"].repo / "model.safetensors")
    settings = {"pretrained": True, "pretrained_cfg_overlay": {"file": file}, "num_classes": 0}
    expected = timm.create_model(architecture, **settings, **options)
    assert vision(out)["pos_embed"].shape == (1, 1 + 4, 32)
    assert same(vision(out), expected.state_dict())


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("convnext-l", {"stem.0.bias": None}, r"does not fit convnext_large \(1 missing, first 'stem\.0\.bias'\)"),
        ("swin-l", {"norm.more": torch.ones(1), "x": torch.ones(1)}, r"\(2 unexpected, first 'norm\.more'\)"),
        ("clip-vit-b", {"norm_pre.bias": torch.ones(3)}, r"1 of another shape, first 'norm_pre\.bias' \(3,\) instead"),
        ("sam", {"vision_encoder.neck.conv1.weight": None}, r"1 missing, first 'neck\.conv1\.weight'"),
        ("blip", {"vision_model.x": torch.ones(1)}, r"does not fit blip \(1 unexpected, first 'x'\)"),
    ],
)
def test_leftovers_are_refused(copy, tmp_path, name, changes, message):
    with pytest.raises(UserError, match=message) as caught:
        copy(name, changes)
    assert f"backbones.{name}: {tmp_path / 'copy'}" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_weights_get_images_normalised_as_in_their_training(copy):
    options = {name: value for name, value in line("mae-vit-l").vision.options.items() if name != "pretrained_cfg"}
    network = {"library": "timm", "architecture": "vit_large_patch16_224", "options": options}
    with pytest.raises(UserError, match=r"images of mean \(0\.485, .* gets \(0\.5, .*pretrained_cfg to 'mae'"):
        copy("mae-vit-l", vision=network)


def test_another_architecture_is_refused(repositories, tmp_path):
    def refuse(name: str, repo: str, message: str) -> None:
        with pytest.raises(UserError, match=message):
            fetch_backbone(name, line(name, source="folder", path=str(repositories / repo)), tmp_path / "out")

    refuse("convnext-l", LINES["convnext-xl"].repo, r"holds 'convnext_xlarge', but vision\.architecture is 'convnext_l")
    # OpenAI's weights go by the name of the architecture without their activation; other weights of it do not fit.
    refuse("mae-vit-l", LINES["clip-vit-b"].repo, r"holds 'vit_base_patch16_clip_224', but .* 'vit_large_patch16_224'")
    refuse("sam", LINES["blip"].repo, r"holds 'blip', but vision\.architecture is 'sam'")


def test_settings_that_no_shape_shows_are_compared(copy, tmp_path):
    options = {**line("sam").vision.options, "window_size": 3}
    network = {"library": "transformers", "architecture": "sam", "options": options}
    with pytest.raises(UserError, match=r"vision_config\.window_size 2, but the network has 3; set vision\.options\.w"):
        copy("sam", vision=network)


def test_incomplete_copies_are_named(tmp_path):
    place = tmp_path / "copy"

    def refuse(message: str, path: Path | None = place) -> None:
        with pytest.raises(UserError, match=message):
            fetch_backbone("sam", line("sam", source="folder", path=path and str(path)), tmp_path / "out")
        assert not (tmp_path / "out").exists()

    refuse(r"backbones\.sam has source 'folder' but no path", None)
    refuse(r"the folder .*nowhere does not exist", tmp_path / "nowhere")
    place.mkdir()
    refuse(r"has no config\.json")
    write_json(place / "config.json", {"model_type": "sam", "vision_config": dict(small("sam"))})
    refuse(r"has no model\.safetensors; name a repository that has")
    (place / "model.safetensors").write_bytes(b"short")
    refuse(r"model\.safetensors is damaged or cut off")


def test_mistakes_with_the_text_encoder_are_named(copy, repositories, tmp_path):
    bert, name = tmp_path / "bert", "swin-b-bert"
    shutil.copytree(repositories / "google-bert/bert-base-uncased", bert)

    def language(**changes) -> dict:
        return {"architecture": "bert", "repo": str(bert)} | changes

    with pytest.raises(UserError, match=r"swin-b-bert\.language: .* has hidden_size 32, but language\.options\.hid"):
        copy(name, language=language(options={"hidden_size": 64}))
    (bert / "vocab.txt").unlink()
    with pytest.raises(UserError, match=r"has no tokenizer\.json, no vocab\.txt"):
        copy(name, language=language())
    state = load_file(bert / "model.safetensors")
    del state["bert.embeddings.word_embeddings.weight"]
    save_file(state, bert / "model.safetensors")
    with pytest.raises(UserError, match=r"no whole BERT \(1 missing, first 'embeddings\.word_embeddings\.weight'\)"):
        copy(name, language=language())
    assert not (tmp_path / "out").exists()
